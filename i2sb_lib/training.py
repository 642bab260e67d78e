r"""One configuration, one loop: Algorithm 1 of [Liu 2023] with everything a long run needs.

All that is random in step k (which images, flips, degradation, t, noise) comes from a generator
seeded by (seed, k) alone and is drawn for the whole batch, of which each process takes its share.
So a resumed run repeats an unbroken one exactly, and P processes compute what one would.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm.auto import tqdm

from i2sb_lib.checkpoints import atomic_write, save_pretrained
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import Degradation, create_degradation
from i2sb_lib.denoiser import Denoiser, ModelConfig, Prediction
from i2sb_lib.images import save_image, to_float
from i2sb_lib.samplers import sample

FREE_ON_RESUME = {"out", "minutes", "steps", "save_every", "eval_every", "tensorboard", "progress"}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where the last good state is."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on; each field is a flag of `i2sb train`."""

    data: str = "embedded"
    """embedded, a folder, a zip, parquet or a hub id"""
    out: str = "runs/run"
    """folder for the state, the weights, the history and the contact sheet"""
    size: int = 64
    """images are cropped square and resized to this many pixels"""
    degradation: str = "blur-gauss"
    """name of the degradation that makes x1 from x0"""
    degradation_options: dict[str, float] = field(default_factory=dict)
    """its options, such as kernel_size 7 sigma 2"""
    noise: float = 0.0
    """standard deviation of noise added to x1, on the [0, 1] scale"""
    quantise: bool = True
    """round x1 to 8 bits, as a file would"""
    network: str = "unet-small"
    """cunet, unet-tiny, unet-small or unet-full"""
    cond_x1: bool = True
    """show x1 to the network at every t"""
    prediction: Prediction = "precond"
    """what the network predicts: see i2sb_lib.denoiser"""
    beta_min: float = 0.1
    beta_max: float = 0.3
    dropout: float = 0.0
    steps: int = 20_000
    """optimiser steps in all; the learning rate falls to zero there"""
    batch_size: int = 64
    """images a step, over all processes"""
    lr: float = 5e-4
    warmup: int = 200
    """steps of linear warm-up"""
    weight_decay: float = 0.01
    clip: float = 1.0
    """largest gradient norm"""
    ema: float = 0.999
    """decay of the weight average that is evaluated and exported; shorter in the first steps"""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool = False
    """torch.compile the network (pays on a GPU, not on a CPU)"""
    seed: int = 0
    holdout: int = 64
    """training images set aside for the metrics along the way"""
    minutes: float | None = None
    """stop, resumably, after this long"""
    save_every: int = 500
    eval_every: int = 2000
    tensorboard: bool = False
    progress: bool = True


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a half cosine to zero at `steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    done = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
    return config.lr * warm * (1 + math.cos(math.pi * done)) / 2


def ema_decay(config: TrainConfig, step: int) -> float:
    """The configured decay, or (1 + step) / (10 + step) while that is smaller."""
    return min(config.ema, (1 + step) / (10 + step))


def auto_precision(device: torch.device) -> str:
    """bf16 where the hardware computes in it, fp16 on older GPUs (T4), float32 on other CPUs."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def device_name(device: torch.device) -> str:
    """What the run ran on, for its record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


class Batches:
    """Training pairs by step: `batches(k)` is the same for the same images, config and k."""

    def __init__(self, images: Tensor, degrade: Degradation, config: TrainConfig) -> None:
        self.images, self.degrade, self.config = images, degrade, config
        self._order: dict[int, Tensor] = {}

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._order:
            seed = torch.Generator().manual_seed(self.config.seed * 2**33 + 2**32 + epoch)
            order = torch.randperm(len(self.images), generator=seed)
            self._order = {k: v for k, v in self._order.items() if k == epoch - 1} | {epoch: order}
        return self._order[epoch]

    def indices(self, step: int) -> Tensor:
        """Positions of step's images: every epoch visits every image once, in a new order."""
        n, size = len(self.images), self.config.batch_size
        return torch.stack(
            [self._permutation(k // n)[k % n] for k in range(step * size, (step + 1) * size)]
        )

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, x1 (B, 3, H, W), t (B,) in (0, 1] stratified over the batch, and the bridge's noise."""
        device = self.images.device
        generator = torch.Generator(device).manual_seed(self.config.seed * 2**33 + step)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        x0 = to_float(self.images[self.indices(step).to(device)])
        size = len(x0)
        x0 = torch.where(uniform(size, 1, 1, 1) < 0.5, x0, x0.flip(-1))
        x1 = self.degrade(x0, generator)
        t = 1 - (torch.arange(size, device=device) + uniform(size)) / size * (1 - 1e-3)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        return x0, x1, t, noise


def config_hash(config: Any) -> str:
    """Short hash of a configuration's values."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def moments(images: Tensor, degrade: Degradation, seed: int) -> tuple[float, float, float]:
    """(mean x0^2, mean x1^2, mean x0 x1) over the first 512 images, for the preconditioning."""
    x0 = to_float(images[:512])
    x1 = degrade(x0, torch.Generator(x0.device).manual_seed(seed))
    values = [float((a * b).mean()) for a, b in ((x0, x0), (x1, x1), (x0, x1))]
    return (round(values[0], 4), round(values[1], 4), round(values[2], 4))


class Trainer:
    """A run: `train` makes one, or takes one up again. `step` counts finished optimiser steps."""

    def __init__(self, config: TrainConfig, resume: bool = False) -> None:
        auto = config.precision == "auto"
        chosen = auto_precision(PartialState().device) if auto else config.precision
        AcceleratorState._reset_state()  # a second run in this process may choose otherwise
        self.accelerator = Accelerator(mixed_precision=chosen)
        self.config, self.device, self.out = config, self.accelerator.device, Path(config.out)
        share = config.batch_size // self.accelerator.num_processes
        if share * self.accelerator.num_processes != config.batch_size:
            raise TrainingError(
                f"expected batch_size divisible by {self.accelerator.num_processes} processes, "
                f"got {config.batch_size}"
            )
        rank = self.accelerator.process_index
        self.share = slice(rank * share, (rank + 1) * share)
        self.degrade = create_degradation(
            config.degradation,
            noise=config.noise,
            quantise=config.quantise,
            **config.degradation_options,
        )
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
        self.held, images = images[: config.holdout], images[config.holdout :]
        self.batches = Batches(images, self.degrade, config)
        torch.manual_seed(config.seed)
        shared = {f.name for f in dataclasses.fields(ModelConfig)} & set(vars(config))
        self.model_config = ModelConfig(
            moments=moments(images, self.degrade, config.seed),
            **{name: getattr(config, name) for name in shared},
        )
        model = Denoiser(self.model_config).to(self.device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.step, self.history, self.pending = 0, [], []  # type: ignore[var-annotated]
        self.seconds = 0.0
        if resume:
            self._load()
        elif (self.out / "state.pt").exists():
            raise TrainingError(f"{self.out} holds a run; give --resume to go on, or another --out")
        self.wrapped, self.optimizer = self.accelerator.prepare(
            _Loss(self.model), self.optimizer
        )
        if config.compile:
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]

    def _load(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            raise TrainingError(f"expected a run to resume at {path}, got no file")
        state = torch.load(path, map_location="cpu", weights_only=True)
        ours, theirs = dataclasses.asdict(self.config), state["config"]
        changed = [k for k in ours if k not in FREE_ON_RESUME and ours[k] != theirs.get(k)]
        if changed:
            what = ", ".join(f"{k}: {theirs.get(k)} -> {ours[k]}" for k in changed)
            raise TrainingError(f"{path} was made with another configuration ({what})")
        if state["fingerprint"] != self.fingerprint:
            raise TrainingError(f"{path} was made with other images than {self.config.data}")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]
        self.pending = state["pending"]

    def save(self) -> None:
        """Write the state and the averaged weights, each whole or not at all."""
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
        history = json.dumps(self.history, indent=0)
        atomic_write(self.out / "history.json", lambda p: p.write_text(history))

    def record(self) -> dict[str, Any]:
        """What a result needs to be traced: configuration, data, device, progress, speed."""
        return {
            "training": dataclasses.asdict(self.config),
            "config_hash": config_hash(self.config),
            "data_fingerprint": self.fingerprint,
            "device": device_name(self.device),
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "torch": torch.__version__,
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "images_per_second": round(self.step * self.config.batch_size / self.seconds, 1)
            if self.seconds
            else None,
        }

    def optimise(self) -> Tensor:
        """One step of Algorithm 1; returns the batch's loss on this process, without waiting."""
        config = self.config
        torch.manual_seed(config.seed * 2**33 + 2**32 * 2 + self.step)  # dropout's stream
        batch = (v[self.share] for v in self.batches(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        loss = self.wrapped(*batch)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            weights = [list(m.parameters()) for m in (self.ema, self.model)]
            torch._foreach_lerp_(*weights, 1 - ema_decay(config, self.step))
        self.step += 1
        return loss.detach()

    def flush(self) -> float:
        """Mean loss since the last call, over all processes; TrainingError where it is not finite."""
        mean = float(self.accelerator.reduce(torch.stack(self.pending).mean(), "mean"))
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} before step {self.step}: nothing was saved since; the last "
                f"good state is {self.out / 'state.pt'} if it exists. Resume it, or start again "
                "with a lower lr"
            )
        self.pending = []
        lr = learning_rate(self.config, self.step - 1)
        self.history.append({"step": self.step, "loss": mean, "lr": lr})
        return mean

    @torch.no_grad()
    def monitor(self, nfe: int = 10) -> dict[str, float]:
        """PSNR (dB) of the held-out images at 1 and `nfe` steps, and a contact sheet of eight."""
        from i2sb_lib.evaluation import psnr

        x0 = to_float(self.held)
        x1 = self.degrade(x0, torch.Generator(x0.device).manual_seed(self.config.seed))
        cond = x1 if self.config.cond_x1 else None
        generator = torch.Generator(x0.device).manual_seed(self.config.seed)
        rows, result = [x0, x1], {"step": self.step}
        for n in (1, nfe):
            with self.accelerator.autocast():
                x = sample(
                    lambda xt, t: self.ema(xt, t, cond),
                    self.ema.bridge,
                    x1,
                    n,
                    generator=generator,
                ).x
            rows.append(x.clamp(-1, 1))
            result[f"psnr_{n}"] = float(psnr(rows[-1], x0).mean())
        sheet = torch.cat([torch.cat(list(r[:8]), dim=-1) for r in rows], dim=-2)
        self.out.mkdir(parents=True, exist_ok=True)
        save_image(sheet, self.out / "contact_sheet.png")
        return result


class _Loss(torch.nn.Module):
    """The mean loss as a module's forward, so that data parallelism and compilation see it."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    def forward(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.model.loss(x0, x1, t, noise).mean()


def train(config: TrainConfig, resume: bool = False) -> dict[str, Any]:
    """Run to `steps` or for `minutes`, whichever is first, and leave a state that resumes exactly.

    Returns the run's record with "finished" and the last metrics. Raises TrainingError where a run
    cannot start, resume or go on; what was saved stays as it was.
    """
    run, started, log_every = Trainer(config, resume), time.monotonic(), 50
    before, main = run.seconds, run.accelerator.is_main_process
    writer = None
    if config.tensorboard and main:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run.out), purge_step=run.step)
    bar = tqdm(
        total=config.steps,
        initial=run.step,
        unit="step",
        disable=None if config.progress and main else True,
    )
    metrics: dict[str, float] = {}
    while run.step < config.steps:
        run.pending.append(run.optimise())
        run.seconds = before + time.monotonic() - started
        bar.update()
        last = run.step == config.steps
        if run.step % log_every == 0 or last:
            loss = run.flush()
            bar.set_postfix(loss=f"{loss:.4f}", **{k: f"{v:.2f}" for k, v in metrics.items()})
            if writer:
                writer.add_scalar("loss", loss, run.step)
        if (run.step % config.eval_every == 0 or last) and main:
            metrics = run.monitor()
            run.history.append(metrics)
            metrics = {k: v for k, v in metrics.items() if k != "step"}
            for key, value in metrics.items() if writer else ():
                writer.add_scalar(key, value, run.step)  # type: ignore[union-attr]
        late = config.minutes is not None and run.seconds - before > 60 * config.minutes
        if run.accelerator.num_processes > 1 and config.minutes is not None:
            late = broadcast_object_list([late])[0]
        if run.step % config.save_every == 0 or last or late:
            run.save()
        if late:
            break
    bar.close()
    if writer:
        writer.close()
    return {**run.record(), **metrics, "finished": run.step >= config.steps}
