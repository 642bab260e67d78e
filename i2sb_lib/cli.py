"""The command line: `i2sb train | restore | degrade | evaluate | info`, each with --help.

`i2sb --version` says which. Exit codes: 0 done, 1 an error told in one sentence on stderr, 2 wrong usage,
130, 143 and 129 interrupted by Ctrl-C, SIGTERM and SIGHUP, 141 where nobody reads what is printed any more.
"""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

import i2sb_lib
from i2sb_lib.checkpoints import DEFAULT, SHIPPED, Pretrained, describe, load_pretrained
from i2sb_lib.config import AS_THEY_ARE, PRESETS, TrainConfig, create_pair_maker
from i2sb_lib.console import explain, plain_console
from i2sb_lib.data import fingerprint, load_images, sides
from i2sb_lib.degradations import Degradation, create_degradation
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import MetricUnavailable, check_metrics, evaluate
from i2sb_lib.faults import TrainingError, check_writable
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.folders import each_image, ours, seed_of
from i2sb_lib.images import save_image, to_float
from i2sb_lib.pairs import load_pairs
from i2sb_lib.samplers import Sampler

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Target = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
More = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[MORE ...]")]


def _noise(seed: int, name: str = "") -> torch.Generator:
    """A degradation's randomness: another stream than the sampler's, which must not repeat x1's noise."""
    return torch.Generator().manual_seed((seed_of(seed, name) + 2**31) % 2**32)  # all that it keeps


def _degrade(degrade: Degradation, x: Tensor, names: list[str], seed: int) -> Tensor:
    """Degrade images of one size, each with the noise that belongs to its name."""
    return torch.cat([degrade(image[None], _noise(seed, n)) for image, n in zip(x, names, strict=True)])


def _training(model: Pretrained) -> dict[str, Any]:
    """How the model was trained; ValueError where its record does not say."""
    training = model.record.get("training") or {}
    wanted = {"degradation", "degradation_options", "noise", "quantise", "size"}
    if missing := wanted - set(training):
        raise ValueError(f"{model.folder}: expected a record of its training, got none of {sorted(missing)}")
    return training


@dataclass
class Restore:
    """Restore an image, every image of a folder, or several of both: i2sb restore A B C FOLDER."""

    source: Source  # image or folder
    target: Target  # image or folder to write; with a slash behind it, a folder
    more: More = ()  # of several sources all but the first, and last of all the folder to write
    checkpoint: str = DEFAULT  # for any picture; or another that is shipped, a run's folder, a hub id
    nfe: int | None = None  # network calls; unless said, the walk is the one that the model recommends
    sampler: Sampler | None = None  # sde is sharpest, ode has the smallest error; sde where nfe is said
    seed: int = 0  # of the sampler's noise, with each image's name
    power: float | None = None  # of the time grid; 2: more calls near the clean end; 1 where nfe is said
    consistency: float | None = None  # weight of the measurement, of a known blur; 0 where nfe is said
    # degrade the image first, for a demonstration: degraded and restored come out side by side
    degrade: bool = False
    device: str | None = None  # cpu, cuda or mps; a GPU where there is one unless said

    def run(self) -> None:
        model = load_pretrained(self.checkpoint, self.device)
        degrade = create_pair_maker(_training(model)) if self.degrade else None
        how: dict[str, Any] = {"power": self.power, "consistency": self.consistency}
        model.recommended(self.nfe, self.sampler, **how)  # refused before an image is read

        def work(x: Tensor, names: list[str]) -> Tensor:
            x1 = _degrade(degrade, x, names, self.seed) if degrade else x
            seeds = [seed_of(self.seed, name) for name in names]
            x0_hat = model.restore(x1, self.nfe, self.sampler, seeds, progress=True, **how)
            return torch.cat([x1, x0_hat], dim=-1) if degrade else x0_hat

        paths = [self.source, self.target, *self.more]
        each_image(paths[:-1], paths[-1], work, "restore", model.denoiser.config.channels)


@dataclass
class Degrade:
    """Degrade an image, every image of a folder, or several of both: i2sb degrade A B C FOLDER."""

    source: Source  # image or folder
    target: Target  # image or folder to write; with a slash behind it, a folder
    more: More = ()  # of several sources all but the first, and last of all the folder to write
    name: str = "blur-gauss"  # which degradation: see i2sb_lib.degradations
    # its options, such as kernel_size 7 sigma 2
    options: dict[str, float] = dataclasses.field(default_factory=dict)
    noise: float = 0.0  # standard deviation of added noise on the [0, 1] scale
    seed: int = 0  # of whatever is random

    def run(self) -> None:
        degrade = create_degradation(self.name, noise=self.noise, quantise=True, **self.options)
        paths = [self.source, self.target, *self.more]
        each_image(paths[:-1], paths[-1], lambda x, n: _degrade(degrade, x, n, self.seed), "degrade")


@dataclass
class Evaluate:
    """Degrade clean images as the model was trained to see, restore them and measure."""

    checkpoint: str = DEFAULT  # for any picture; or another that is shipped, a run's folder, a hub id
    data: str = "embedded"  # clean images: embedded, a folder, a zip, parquet or a hub id
    # the same images degraded, under the same names, in place of the model's own degradation; "": none
    degraded: str = ""
    split: str | None = None  # which split of them, or all; test or validation unless said
    nfe: tuple[int, ...] | None = None  # network calls, each a row; as the model recommends, or 1 and 10
    samplers: tuple[Sampler, ...] | None = None  # each with each nfe; sde where nfe is said
    metrics: tuple[str, ...] | None = None  # among psnr ssim lpips fid kid; psnr, and ssim if installed
    limit: int | None = None  # only the first so many images
    crops: int | None = None  # parts of each image at its own scale; 0: its middle, made small
    skip_corrupt: bool = False  # leave out files that cannot be read, and name them
    seed: int = 0  # of the degradation and the samplers
    power: float | None = None  # of the time grid; 2: more calls near the clean end; 1 where nfe is said
    consistency: float | None = None  # weight of the measurement, of a known blur; 0 where nfe is said
    out: str | None = None  # folder for metrics.json, a contact sheet and a copy of the run's history
    device: str | None = None  # cpu, cuda or mps; a GPU where there is one unless said

    def run(self) -> None:
        metrics = check_metrics(self.metrics)
        for name in ("out", "nfe", "samplers", "metrics"):
            if getattr(self, name) in ("", ()):
                raise ValueError(f"expected something as {name}, got nothing")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"expected a limit of at least 1, got {self.limit}")
        model = load_pretrained(self.checkpoint, self.device)
        training = _training(model)
        calls = self.nfe or ((None,) if model.alone or "nfe" in model.record else (1, 10))
        how = {"power": self.power, "consistency": self.consistency}
        walks = [model.walk(n, name, **how) for name in self.samplers or (None,) for n in calls]
        for walk in walks:
            model.recommended(**walk)
        degrade = None if self.degraded else create_pair_maker(training)
        if self.out is not None:
            out = Path(self.out)
            written = {"restored.png", "metrics.json", "metrics.partial.json", "history.json"}
            if theirs := [n for n in sorted(written - ours(out)) if (out / n).exists()]:
                raise ValueError(f"{out}: expected a folder whose {theirs[0]} is ours to replace")
            check_writable(out)
        read: dict[str, Any] = {"split": self.split, "skip_corrupt": self.skip_corrupt}
        read |= {"size": sides(training["size"]), "channels": model.denoiser.config.channels}
        read["crops"] = crops = min(1, training.get("crops", 0)) if self.crops is None else self.crops
        if degrade:
            clean = load_images(self.data, **read)
        else:
            clean, seen = load_pairs(self.data, self.degraded, **read)
        metrics = check_metrics(self.metrics, clean[: self.limit].shape)
        if fingerprint(clean, *[] if degrade else [seen]) == model.record.get("data_fingerprint"):
            print("i2sb: these are the images that the model was trained on", file=sys.stderr)
        # no image's noise depends on limit
        x1 = (degrade(to_float(clean), _noise(self.seed)) if degrade else to_float(seen))[: self.limit]
        clean = clean[: self.limit]
        x0 = to_float(clean)
        rows: list[dict[str, Any]] = []
        sheet = [x0[:8], x1[:8]]
        content = {
            "data": {"source": Path(self.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
            **({"seed": self.seed, "crops": crops} if crops else {"seed": self.seed}),
            **{k: walks[0][k] for k in how},
            "git_commit": git_commit(),
            "device": device_name(next(model.denoiser.parameters()).device),
            "checkpoint": model.record,
            "results": rows,
        }
        for walk in [{"sampler": "identity", "nfe": 0}, *walks]:
            x = model.restore(x1, seed=self.seed, progress=True, **walk) if walk["nfe"] else x1
            result = evaluate(x, x0, metrics)
            parts = ("value", "low", "high")
            values = {k: {n: _plain(getattr(m, n)) for n in parts} for k, m in result.items()}
            if not rows:
                print(f"{len(x0)} images, {degrade or self.degraded}")
                print("  ".join(f"{h:>9}" for h in ("sampler", "nfe", *result)))
            rows.append({"sampler": walk["sampler"], "nfe": walk["nfe"], **values})
            cells = [f"{rows[-1][k]:>9}" for k in ("sampler", "nfe")]
            print("  ".join([*cells, *(f"{m.value:9.4f}" for m in result.values())]), flush=True)
            sheet += [x[:8]] if walk["nfe"] else []
            if self.out is not None:  # after each row: the rows before a failure are kept, under this name
                partial = Path(self.out) / "metrics.partial.json"
                atomic_write(partial, lambda p: p.write_bytes(json.dumps(content, indent=1).encode() + b"\n"))
        if self.out is None:
            return
        out, history = Path(self.out), model.folder / "history.json"
        save_image(torch.cat([torch.cat(list(r), dim=-1) for r in sheet], dim=-2), out / "restored.png")
        if not (out / "state.pt").exists() and model.folder.resolve() != out.resolve():
            (out / "history.json").unlink(missing_ok=True)
            if history.exists():
                shutil.copy(history, out / "history.json")
        (out / "metrics.partial.json").replace(out / "metrics.json")


def _plain(value: float) -> float | None:
    """A number as JSON has it; None stands for an infinite PSNR, the one value that `evaluate` lets be so."""
    return value if math.isfinite(value) else None


@dataclass
class Info:
    """Describe a checkpoint: its card, its model and its run; or list those that are shipped."""

    # a shipped model, a run's folder or a hub id
    checkpoint: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CHECKPOINT]")] = None

    def run(self) -> None:
        if self.checkpoint is None:
            names = sorted({p.parent.name for s in SHIPPED for p in s.glob("*/model.json")})
            print("\n".join(f"{name} (default)" if name == DEFAULT else name for name in names))
            return
        folder, model, _, record = describe(self.checkpoint)
        card = folder / "README.md"
        print(card.read_bytes().decode(errors="replace") if card.exists() else f"{card}: no model card")
        print(json.dumps({"model": model, **record}, indent=1))


@dataclass
class Train:
    """Train a bridge, or go on with a run. Flags after --preset change what it sets.

    Pairs of your own, by name: --clean DIR --degraded DIR (--clean is --data by another name).
    Several processes, on GPUs or CPUs: torchrun --nproc-per-node N -m i2sb_lib train ... (accelerate launch
    does for GPUs; on CPUs it starts one process only, and is refused where it was asked for more).
    """

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    resume: bool = False  # go on with the run in --out
    preset: Literal[tuple(PRESETS)] | None = None  # type: ignore[valid-type]
    """start from the flags of the demonstration or of a full-size run for a GPU"""

    def run(self) -> None:
        result = i2sb_lib.train(self.config, self.resume)
        from accelerate import PartialState  # with the extra that training needs, and it alone

        done = "finished" if result["finished"] else "stopped, go on with --resume"
        quality = "".join(f", {k} {v}" for k, v in result.items() if k.startswith("psnr"))
        if PartialState().is_main_process:
            print(f"{self.config.out}: {done} at step {result['step']} of {self.config.steps}{quality}")
        PartialState().destroy_process_group()


COMMANDS = {"train": Train, "restore": Restore, "degrade": Degrade, "evaluate": Evaluate, "info": Info}


def _start(args: list[str]) -> Train:
    """What the flags of `train` start from: the run that is resumed, a preset, or the defaults."""
    flags = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    given = {a: b for a, b in itertools.pairwise(flags) if a in ("--preset", "--out")}
    state = Path(given.get("--out", TrainConfig().out)) / "state.pt"
    if "--resume" in flags and "--preset" not in given and state.exists():
        try:
            return Train(TrainConfig(**torch.load(state, "meta", weights_only=True, mmap=True)["config"]))
        except Exception:  # the training says what is wrong with it
            return Train(TrainConfig())
    return Train(PRESETS.get(given.get("--preset", ""), TrainConfig()))


@plain_console()
def main(args: list[str] | None = None) -> None:
    """Entry point; leaves by SystemExit where a command fails."""
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    home = os.path.expanduser  # also after "=" and in quotes, where no shell says so
    rest = ["=".join([*flag, home(v)]) for *flag, v in (a.split("=", a[:2] == "--") for a in rest)]
    if os.environ.get("COLUMNS") in list("123456789"):  # where the help is never done
        os.environ["COLUMNS"] = "80"
    if name not in COMMANDS:
        asked = {"-h": __doc__, "--help": __doc__, "--version": f"i2sb {i2sb_lib.__version__}"}
        said = asked.get(name) or f"i2sb: expected one of {list(COMMANDS)}, got {name!r}"
        print(said, file=sys.stdout if name in asked else sys.stderr)
        sys.exit(0 if name in asked else 2)
    rest = [re.sub("^--clean(?=$|=)", "--data", a) for a in rest] if name in ("train", "evaluate") else rest
    default = _start(rest) if name == "train" else None
    command: Any = tyro.cli(COMMANDS[name], prog=f"i2sb {name}", args=rest, default=default)
    try:
        if name == "train" and command.config.degraded and any(a.startswith("--degradation") for a in rest):
            raise ValueError(AS_THEY_ARE)
        command.run()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        raise
    except (TrainingError, MetricUnavailable) as error:
        sys.exit(f"i2sb: {error}")
    except Exception as error:
        if (why := explain(error)) is None:
            raise
        sys.exit(f"i2sb: {why}")
