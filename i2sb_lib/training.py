r"""One loop for every run: Algorithm 1 of [Liu 2023] with what a long run needs.

All that is random in step k (which images, flips, degradation, t, noise) comes from a generator
seeded by (seed, k) alone and is drawn for the whole batch, of which each process takes its share.
So a resumed run repeats an unbroken one exactly, and P processes compute what one would.
"""

import copy
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import Tensor, nn
from tqdm.auto import tqdm

from i2sb_lib.batches import Batches
from i2sb_lib.checkpoints import save_pretrained
from i2sb_lib.config import FREE_ON_RESUME, TrainConfig, config_hash, create_pair_maker, learning_rate, stream
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.devices import auto_precision, device_name
from i2sb_lib.files import atomic_write
from i2sb_lib.images import psnr, save_image, to_float
from i2sb_lib.samplers import sample

LOG_EVERY = 50


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and where the last good state is."""


class _Loss(nn.Module):
    """The mean loss as a module's forward, so that data parallelism and compilation see it."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    def forward(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.model.loss(x0, x1, t, noise).mean()


class Trainer:
    """A run: `train` makes one, or takes one up again. `step` counts finished optimiser steps."""

    def __init__(self, config: TrainConfig, resume: bool = False) -> None:
        self.config, self.out = config, Path(config.out)
        if not resume and any((self.out / name).exists() for name in ("state.pt", "model.json")):
            raise TrainingError(f"{self.out} holds a run; give --resume to go on, or another --out")
        gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not gpu  # else several CPU processes stay apart
        device, precision = PartialState(cpu=cpu).device, str(config.precision)
        AcceleratorState._reset_state()  # a second run in this process may choose otherwise
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=auto_precision(device) if precision == "auto" else precision,
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=config.out,
        )
        self.device, ranks = self.accelerator.device, self.accelerator.num_processes
        if config.batch_size % ranks:
            raise TrainingError(f"expected batch_size divisible by {ranks}, got {config.batch_size}")
        share, rank = config.batch_size // ranks, self.accelerator.process_index
        self.share = slice(rank * share, (rank + 1) * share)
        with self.accelerator.main_process_first():  # one process prepares, the others read
            images = load_images(config.data, "train", config.size, config.progress)
        if len(images) < config.holdout + config.batch_size:
            raise TrainingError(
                f"{config.data}: expected at least {config.holdout + config.batch_size} images "
                f"(holdout + batch_size), got {len(images)}"
            )
        self.fingerprint = fingerprint(images)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
        images = images[order].to(self.device)
        self.held = images[: config.holdout]
        self.degrade = create_pair_maker(dataclasses.asdict(config))
        self.batches = Batches(images[config.holdout :], self.degrade, config)
        torch.manual_seed(config.seed)
        self.model = self._build().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.pending: list[Tensor] = []  # losses since the last line of the history
        if resume:
            self._load()
        loss = _Loss(self.model)
        self.wrapped, self.optimizer = self.accelerator.prepare(
            torch.compile(loss) if config.compile else loss, self.optimizer
        )

    def _build(self) -> Denoiser:
        """The denoiser that the config describes, its moments measured on 512 training pairs."""
        shared = {f.name for f in dataclasses.fields(ModelConfig)} & set(vars(self.config))
        config = ModelConfig(**{name: getattr(self.config, name) for name in shared})
        x0 = to_float(self.batches.images[:512])
        x1 = self.degrade(x0, torch.Generator(x0.device).manual_seed(self.config.seed))
        g = Denoiser(config).guess(x1)
        m00, m11, m01 = (round(float((a * b).mean()), 4) for a, b in ((x0, x0), (g, g), (x0, g)))
        return Denoiser(dataclasses.replace(config, moments=(m00, m11, m01)))

    def _load(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            raise TrainingError(f"expected a run to resume at {path}, got no file")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # cut or damaged: pickle, zip and torch each have their own
            raise TrainingError(f"{path}: expected a complete state, got: {error}") from error
        ours = dataclasses.asdict(self.config)
        theirs = dataclasses.asdict(TrainConfig()) | state["config"]  # a new field has its default
        changed = [k for k in ours if k not in FREE_ON_RESUME and ours[k] != theirs[k]]
        if changed:
            what = ", ".join(f"{k}: {theirs[k]} -> {ours[k]}" for k in changed)
            raise TrainingError(f"{path} was made with another configuration ({what})")
        if state["fingerprint"] != self.fingerprint:
            raise TrainingError(f"{path} was made with other images than {self.config.data}")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history, self.pending = state["history"], state["pending"]

    def save(self) -> None:
        """Write the state and the averaged weights, each whole or not at all."""
        self._mean_loss()  # never over a good state with a bad one
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "pending": self.pending,
            "config": dataclasses.asdict(self.config),
            "fingerprint": self.fingerprint,
        }
        atomic_write(self.out / "state.pt", lambda p: torch.save(state, p))
        save_pretrained(self.out, self.ema, self.record())
        history = "[\n" + ",\n".join(json.dumps(line) for line in self.history) + "\n]\n"
        atomic_write(self.out / "history.json", lambda p: p.write_text(history))

    def record(self) -> dict[str, Any]:
        """What a result needs to be traced: configuration, data, device, progress, speed."""
        speed = self.step * self.config.batch_size / self.seconds if self.seconds else 0.0
        paths = {"data": Path(self.config.data).name, "out": Path(self.config.out).name}
        training = dataclasses.asdict(self.config) | paths
        return {
            "training": training,
            "config_hash": config_hash(training),
            "data_fingerprint": self.fingerprint,
            "device": device_name(self.device),
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "images_per_second": round(speed, 1),
        }

    def optimise(self) -> None:
        """One step of Algorithm 1; its loss waits in `pending`, so that no device is waited for."""
        torch.manual_seed(stream(self.config.seed, 2**31 + self.step))  # dropout's
        batch = (v[self.share] for v in self.batches(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        loss = self.wrapped(*batch)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            slow, fast = (list(m.parameters()) for m in (self.ema, self.model))
            torch._foreach_lerp_(slow, fast, 1 - decay)
        self.step += 1
        self.pending.append(loss.detach())

    def _mean_loss(self) -> float:
        """Mean of the pending losses over all processes; TrainingError where a loss or weight is bad."""
        if not self.pending:
            return 0.0
        bad = 0 * torch.stack(torch._foreach_norm(list(self.ema.parameters()))).sum()  # NaN or 0
        mean = float(self.accelerator.reduce(torch.stack(self.pending).mean() + bad, "mean"))
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} before step {self.step}: nothing was saved since; the last "
                f"good state is {self.out / 'state.pt'} if it exists. Start again with a lower lr"
            )
        return mean

    def log(self) -> dict[str, float]:
        """Move the pending losses to the history as one line: step, mean loss, learning rate."""
        rate = learning_rate(self.config, self.step - 1)
        self.history.append({"step": self.step, "loss": self._mean_loss(), "lr": rate})
        self.pending = []
        return self.history[-1]

    @torch.no_grad()
    def monitor(self, nfe: int = 10) -> dict[str, float]:
        """PSNR (dB) of the held-out images at 1 and `nfe` steps, and a contact sheet of eight."""
        x0 = to_float(self.held)
        generator = torch.Generator(x0.device).manual_seed(self.config.seed)
        x1 = self.degrade(x0, generator)
        rows, result = [x0, x1], {"step": float(self.step)}
        for n in (1,) if self.config.process == "regression" else (1, nfe):
            with self.accelerator.autocast():
                restored = sample(
                    lambda xt, t: self.ema(xt, t, x1), self.ema.bridge, x1, n, generator=generator
                )
            rows.append(restored.x.clamp(-1, 1))
            result[f"psnr_{n}"] = float(psnr(rows[-1], x0).mean())
        sheet = torch.cat([torch.cat(list(r[:8]), dim=-1) for r in rows], dim=-2)
        self.out.mkdir(parents=True, exist_ok=True)
        save_image(sheet, self.out / "contact_sheet.png")
        self.history.append(result)
        return result


def train(config: TrainConfig, resume: bool = False) -> dict[str, Any]:
    """Run to `steps` or for `minutes`, whichever is first, and leave a state that resumes exactly.

    Returns the run's record with "finished" and the last metrics. Raises TrainingError where a run
    cannot start, resume or go on; what was saved stays as it was.
    """
    run, started = Trainer(config, resume), time.monotonic()
    before, main = run.seconds, run.accelerator.is_main_process
    if config.tensorboard:
        run.accelerator.init_trackers(".")
    quiet = None if config.progress and main else True  # None: only where stderr is a terminal
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=quiet)
    metrics: dict[str, float] = {}
    late = False
    while run.step < config.steps and not late:
        run.optimise()
        run.seconds = before + time.monotonic() - started
        bar.update()
        last = run.step == config.steps
        if run.step % LOG_EVERY == 0 or last:
            line = run.log()
            run.accelerator.log(line, step=run.step)
            bar.set_postfix(loss=f"{line['loss']:.4f}", **metrics)
        if (run.step % config.eval_every == 0 or last) and main:
            metrics = {k: round(v, 3) for k, v in run.monitor().items() if k != "step"}
            run.accelerator.log(metrics, step=run.step)
        if config.minutes is not None:
            late = run.seconds - before > 60 * config.minutes
            late = broadcast_object_list([late])[0]  # the first process's clock decides
        if run.step % config.save_every == 0 or last or late:
            run.save()
    bar.close()
    run.accelerator.end_training()
    return {**run.record(), **metrics, "finished": run.step >= config.steps}
