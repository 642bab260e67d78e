r"""One loop for every run: Algorithm 1 of [Liu 2023] with what a long run needs.

All that is random in step k (which images, flips, degradation, t, noise) comes from a generator
seeded by (seed, k) alone and is drawn for the whole batch, of which each process takes its share.
So a resumed run repeats an unbroken one exactly, and P processes compute what one would.
"""

import contextlib
import copy
import dataclasses
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from i2sb_lib import faults
from i2sb_lib.batches import Batches, seeded
from i2sb_lib.checkpoints import save_pretrained
from i2sb_lib.config import TrainConfig, config_hash, learning_rate
from i2sb_lib.data import fingerprint
from i2sb_lib.denoiser import Denoiser, follow, measure_moments
from i2sb_lib.devices import device_name
from i2sb_lib.faults import TrainingError, first_line
from i2sb_lib.files import atomic_write, partials
from i2sb_lib.images import psnr, save_image, to_float
from i2sb_lib.inputs import check_network, design, inputs, load, moments_of, start_from
from i2sb_lib.processes import MeanLoss, Processes
from i2sb_lib.progress import progress
from i2sb_lib.samplers import sample
from i2sb_lib.states import complete, read_state

LOG_EVERY = 50
CPU = torch.device("cpu")
PARTS = ("model", "ema", "optimizer", "scaler")  # of a state: what has a state of its own,
VALUES = ("step", "seconds", "history", "pending", "fingerprint")  # and what is written as it is


def _host(config: TrainConfig) -> Processes:
    return Processes(str(config.precision), config.batch_size, config.accumulate, str(config.device))


class Trainer:
    """A run: `train` makes one, or takes one up again. `step` counts finished optimiser steps.

    own: what `train` takes beside the config. What can be refused is refused before an image is read.
    """

    def __init__(self, config: TrainConfig, resume: bool = False, **own: Any) -> None:
        self.net, self.init = own.pop("net", None), own.pop("init", None) or config.init
        self.moments = moments_of(config.out) if resume else None
        config, degrade, given = inputs(config, self.net, **own)
        self.config, self.out = config, Path(config.out)
        if not resume and any((self.out / name).exists() for name in ("state.pt", "model.json")):
            raise TrainingError(f"{self.out} holds a run; give --resume to go on, or another --out")
        written = [self.out / name for name in ("contact_sheet.png", "history.json")]
        written += [*self.out.glob("model-*-of-*"), *[self.out / "best"] * (config.keep_best != "no")]
        if not resume and (there := [file.name for file in written if file.exists()]):
            raise TrainingError(f"{self.out}: expected no {there[0]} there, which the run would replace")
        saved = read_state(self.out / "state.pt", config) if resume else None
        self.host = _host(config)
        self.device, self.degrade = self.host.device, degrade
        with seeded(config.seed, CPU):
            check_network(Denoiser(design(config), self.net), config, None if self.moments else self.init)
        if config.compile:
            faults.check_compiler(self.device)
        self.writer: Any = faults.create_writer(self.out) if config.tensorboard and self.host.main else None
        with self.host.state.main_process_first():  # one process prepares, the others read
            images, targets = given or load(config)
        if (count := len(images)) < (least := config.holdout + config.batch_size):
            said = f"{config.data}: expected at least {least} images (holdout + batch_size), got {count}"
            raise TrainingError(f"{said}: give less --holdout or --batch-size, or --crops of larger pictures")
        self.fingerprint = fingerprint(images, *[] if targets is None else [targets])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
        held, places = order[: config.holdout], order[config.holdout :]
        some = None if targets is None else targets[held]
        self.checked = Batches(images[held], self.degrade, config, some, device=self.device)
        self.batches = Batches(images, self.degrade, config, targets, places, self.device)
        self.held = self.checked.images
        with seeded(config.seed, CPU):
            self.model = self._build().place(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        how = {"weight_decay": config.weight_decay, "fused": self.device.type in ("cpu", "cuda")}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.lr, **how)  # type: ignore[arg-type]
        self.scaler = self.host.scaler
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.pending: list[Tensor] = []  # losses since the last line of the history
        if saved:
            self._load(saved)
        loss = MeanLoss(self.model, 2 * config.damage_floor / 255)
        self.wrapped = self.host.wrap(torch.compile(loss) if config.compile else loss)

    def _build(self) -> Denoiser:
        """The denoiser: as `init` has it, or random with the moments of the run, or of 512 training pairs."""
        config = design(self.config)
        if self.moments:  # its weights are in its state
            return Denoiser(dataclasses.replace(config, moments=self.moments), self.net)
        if self.init:
            return start_from(self.init, config, self.net, self.host.main)
        indices = torch.arange(min(512, len(self.batches.places)))
        x0 = self.batches.clean(indices)
        x1 = self.batches.start(x0, indices, torch.Generator(self.device).manual_seed(self.config.seed))
        moments = measure_moments(x0, x1 if config.wiener else Denoiser(config, self.net).guess(x1))
        return Denoiser(dataclasses.replace(config, moments=moments), self.net)

    def _load(self, state: dict[str, Any]) -> None:
        path = self.out / "state.pt"
        with complete(path):
            if state["fingerprint"] != self.fingerprint:
                raise TrainingError(f"{path} was made with other images than {self.config.data}")
            for name in PARTS:
                if name != "scaler" or state[name]:  # empty without fp16
                    getattr(self, name).load_state_dict(state[name])
            vars(self).update((name, state[name]) for name in VALUES)
        for half in partials(self.out) + partials(self.out / "best") if self.host.main else ():
            half.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the state and the averaged weights, each whole or not at all, model.json last.

        TrainingError where the disk is full or refuses; what was saved before stays as it was.
        """
        self._mean_loss()  # never over a good state with a bad one
        if self.pending:  # of all processes, since one of them writes
            self.pending = list(self.host.mean(torch.stack(self.pending)))
        if not self.host.main:
            return
        state = {name: getattr(self, name).state_dict() for name in PARTS}
        course = [(line["step"], line.get(self.config.keep_best, math.nan)) for line in self.history]
        found = {step: value for step, value in course if not math.isnan(value)}
        state |= {name: getattr(self, name) for name in VALUES} | {"config": dataclasses.asdict(self.config)}
        history = "[\n" + ",\n".join(json.dumps(line) for line in self.history) + "\n]\n"
        try:
            if found.get(self.step, -math.inf) >= max(found.values(), default=0):
                # before the state: what a kill takes between them, a resumed run repeats
                save_pretrained(self.out / "best", self.ema, self.record())
            atomic_write(self.out / "state.pt", lambda p: torch.save(state, p))
            atomic_write(self.out / "history.json", lambda p: p.write_text(history, encoding="utf-8"))
            save_pretrained(self.out, self.ema, self.record())
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the disk's
            what = f"{self.out}: step {self.step} could not be saved ({first_line(error)}); make room, then"
            there = (self.out / "state.pt").exists()
            how = "--resume: what was saved before is whole" if there else "start again: nothing was saved"
            raise TrainingError(f"{what} {how}") from error

    def record(self) -> dict[str, Any]:
        """What a result needs to be traced: configuration, data, device, progress, speed."""
        paths = {name: Path(getattr(self.config, name)).name for name in ("data", "degraded", "out", "init")}
        training = dataclasses.asdict(self.config) | paths
        return {
            "training": training,
            "config_hash": config_hash(training),
            "data_fingerprint": self.fingerprint,
            "device": device_name(self.device),
            "processes": self.host.count,
            "precision": self.host.precision,
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "images_per_second": round(self.step * self.config.batch_size / (self.seconds or math.inf), 1),
        }

    @torch.no_grad()
    def batch(self) -> tuple[Tensor, ...]:
        """x0, x1, t, noise of the next step and the guess: apart from the network, which compiles as one."""
        x0, x1, t, noise = self.batches(self.step)
        return x0, x1, t, noise, self.model.guess(x1)

    def optimise(self) -> None:
        """One step of Algorithm 1; its loss waits in `pending`, so that no device is waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        batch = self.batch()
        with self.batches.dropout(self.step):
            loss = self.host.descend(self.wrapped, batch, self.optimizer, self.config.clip)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        follow(self.ema, self.model, 1 - decay)
        self.step += 1
        self.pending.append(loss)

    def _mean_loss(self) -> float:
        """Mean of the pending losses over all processes; TrainingError where a loss or weight is bad."""
        if not self.pending:
            return 0.0
        bad = 0 * torch.stack(torch._foreach_norm(list(self.ema.parameters()))).sum()  # NaN or 0
        mean = float(self.host.mean(torch.stack(self.pending).mean() + bad))
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} before step {self.step}: nothing was saved since; the last "
                f"good state is {self.out / 'state.pt'} if it exists. Start again with a lower lr"
            )
        return mean

    def log(self) -> dict[str, float]:
        """Move the pending losses to the history as one line: step, mean loss, learning rate."""
        rate = learning_rate(self.config, self.step - 1)
        self._note({"step": self.step, "loss": self._mean_loss(), "lr": rate})
        self.pending = []
        return self.history[-1]

    def _note(self, line: dict[str, float]) -> None:
        """Add a line to the history, and to TensorBoard where it is asked for."""
        self.history.append(line)
        for name in line.keys() - {"step"} if self.writer else ():
            self.writer.add_scalar(name, line[name], self.step)

    @torch.no_grad()
    def monitor(self, nfe: int = 10) -> dict[str, float]:
        """PSNR (dB) of the held-out images, degraded and after 1 and `nfe` steps, and a contact sheet."""
        x0 = to_float(self.held)
        generator = torch.Generator(x0.device).manual_seed(self.config.seed)
        x1 = self.checked.start(x0, torch.arange(len(x0)), generator)
        rows, result = [x0, x1], {"step": float(self.step)}
        if math.isfinite(before := float(psnr(x1, x0).mean())):  # none of them is without damage
            result["psnr_input"] = before
        for n in (1,) if self.config.process == "regression" else (1, nfe):
            with self.host.autocast():
                restored = sample(partial(self.ema, x1=x1), self.ema.bridge, x1, n, generator=generator)
            rows.append(restored.x.clamp(-1, 1))
            result[f"psnr_{n}"] = float(psnr(rows[-1], x0).mean())
        sheet = torch.cat([torch.cat(list(r[:8]), dim=-1) for r in rows], dim=-2)
        save_image(sheet.nan_to_num().clamp(-1, 1), self.out / "contact_sheet.png")
        self._note(result)
        return result


def train(config: TrainConfig, resume: bool = False, **own: Any) -> dict[str, Any]:
    """Run to `steps` or for `minutes`, whichever is first, and leave a state that resumes exactly.

    own: see `i2sb_lib.train`; what was given to a run is given again to resume it. Returns the run's record
    with "finished" and the last metrics. Raises TrainingError where a run cannot start, resume or go on, or
    another is at work in `out`; what was saved stays as it was. SIGINT (Ctrl-C), SIGTERM and SIGHUP end the
    step, save, say how to go on, and then do what they do elsewhere: KeyboardInterrupt, exit with 143. The
    host's random numbers, Accelerator and signal handlers are afterwards what they were.
    Several processes, on GPUs or CPUs: `torchrun --nproc-per-node N -m i2sb_lib train …`, or on GPUs
    `accelerate launch`, which on CPUs starts one process only and is refused.
    """
    try:
        only = faults.alone(Path(config.out)) if _host(config).main else contextlib.nullcontext()
        with only, torch.inference_mode(False), torch.enable_grad():  # whatever the host has
            return _train(config, resume, own)
    except (MemoryError, RuntimeError) as error:
        if not faults.is_out_of_memory(error):
            raise
        said = first_line(error)
    raise TrainingError(  # not inside `except`, whose error would hold the memory
        f"out of memory with {config.batch_size} images a step: give a smaller --batch-size, --size or "
        f"--network, and another --out; what was saved in {config.out} is whole ({said})"
    )


def _train(config: TrainConfig, resume: bool, own: dict[str, Any]) -> dict[str, Any]:
    run, started = Trainer(config, resume, **own), time.monotonic()
    config, before, main = run.config, run.seconds, run.host.main
    metrics, show = dict[str, float](), config.progress and main
    bar = progress(desc="training", unit="steps", show=show, total=config.steps, initial=run.step)
    stop = 0  # 1: out of time; else one more than the number of a signal
    if run.step == config.steps:
        run.save()  # a kill may have come between the last state and its weights
    with faults.noted_signals() as signals:
        while run.step < config.steps and not stop:
            seen = (run.step + 1) % config.eval_every == 0 or run.step + 1 == config.steps
            if seen and not (run.out / "state.pt").exists():
                run.save()  # before a sheet: a folder that holds that alone could not be gone on with
            try:
                run.optimise()
            except Exception:  # a terminal's Ctrl-C ends the compiler at work, too
                if not signals or run.host.count > 1:
                    raise
                stop = signals[0] + 1
                run.save()
                break
            run.seconds = before + time.monotonic() - started
            bar.update()
            last = run.step == config.steps
            if run.step % LOG_EVERY == 0 or last:
                bar.set_postfix(loss=f"{run.log()['loss']:.4f}", **metrics, refresh=False)
            if seen and main:
                metrics = {k: round(v, 3) for k, v in run.monitor().items() if k != "step"}
            late = config.minutes is not None and run.seconds - before > 60 * config.minutes
            stop = run.host.largest(signals[0] + 1 if signals else int(late))
            if run.step % config.save_every == 0 or last or stop or (seen and config.keep_best != "no"):
                run.save()
    bar.close()
    if run.writer:
        run.writer.close()
    if stop > 1:
        faults.pass_on(stop - 1, f"step {run.step} of {config.steps}", config.out if main else None)
    return {**run.record(), **metrics, "finished": run.step >= config.steps}
