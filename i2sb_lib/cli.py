"""The command line: `i2sb train | restore | degrade | evaluate | info`, each with --help.

Exit codes: 0 done, 1 an error told in one sentence on stderr, 2 wrong usage, 130 interrupted.
"""

import dataclasses
import itertools
import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from accelerate import PartialState
from torch import Tensor

from i2sb_lib.checkpoints import DEFAULT, SHIPPED, load_pretrained
from i2sb_lib.config import PRESETS, TrainConfig, create_pair_maker
from i2sb_lib.data import fingerprint, is_image, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import MetricUnavailable, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import SUFFIXES, open_image, save_image, to_float, to_tensor
from i2sb_lib.samplers import Sampler
from i2sb_lib.training import TrainingError, train

Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Target = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]


def _noise(seed: int, name: str = "") -> torch.Generator:
    """A degradation's randomness: another stream than the sampler's, which must not repeat x1's noise."""
    return torch.Generator().manual_seed(seed + 2**31 + zlib.crc32(name.encode()))


def _each_image(source: Path, target: Path, work: Callable[[Tensor, str], Tensor]) -> None:
    """Run `work` on one image or on every image of a folder, with its name there; the same names come out."""
    if not source.exists():
        raise ValueError(f"expected an image or a folder at {source}, got nothing there")
    if source.resolve() == target.resolve():
        raise ValueError(f"expected a target beside the source, got {target} for both")
    named = target.suffix.lower() in SUFFIXES and not target.is_dir()
    if source.is_dir() and named:
        raise ValueError(f"expected a folder as the target of a folder, got {target}")
    if not source.is_dir() and target.suffix and not named and not target.is_dir():
        raise ValueError(f"expected a folder or an image ({', '.join(SUFFIXES)}) as the target, got {target}")
    inside = (f for f in source.rglob("*") if is_image(f.name) and f.is_file())
    files = (
        sorted(f for f in inside if target.resolve() not in f.resolve().parents)
        if source.is_dir()
        else [source]
    )
    if not files:
        raise ValueError(f"{source}: expected images ({', '.join(SUFFIXES)}), got none")
    failed = []
    for file in files:
        name = file.relative_to(source).as_posix() if source.is_dir() else ""
        out = target if named else target / (name or file.name)
        try:
            x = to_float(to_tensor(open_image(file)))[None]
            save_image(work(x, name)[0], out)
            print(out)
        except ValueError as error:  # the others can still be done
            failed.append(error if str(file) in str(error) else ValueError(f"{file}: {error}"))
    for other in failed[1:]:
        print(f"i2sb: {other}", file=sys.stderr)
    if failed:
        rest = f"; {len(files) - len(failed)} of {len(files)} images were written" if len(files) > 1 else ""
        raise ValueError(f"{failed[0]}{rest}")


@dataclass
class Restore:
    """Restore an image, or every image of a folder."""

    source: Source  # image or folder
    target: Target  # image or folder to write
    checkpoint: str = DEFAULT  # a shipped model, a run's folder or a hub id
    nfe: int = 10  # network calls
    sampler: Sampler = "sde"  # sde is sharpest, ode has the smallest error
    seed: int = 0  # of the sampler's noise
    power: float = 1.0  # of the time grid; 2 puts more of few calls near the clean end
    consistency: float = 0.0  # weight of the measurement, where the blur is known; 0: none
    # degrade the image first, for a demonstration: degraded and restored come out side by side
    degrade: bool = False

    def run(self) -> None:
        model = load_pretrained(self.checkpoint)
        degrade = create_pair_maker(model.record["training"])

        def work(x: Tensor, name: str) -> Tensor:
            x1 = degrade(x, _noise(self.seed, name)) if self.degrade else x
            how: dict[str, Any] = {"power": self.power, "consistency": self.consistency}
            x0_hat = model.restore(x1, self.nfe, self.sampler, self.seed, **how)
            return torch.cat([x1, x0_hat], dim=-1) if self.degrade else x0_hat

        _each_image(self.source, self.target, work)


@dataclass
class Degrade:
    """Degrade an image, or every image of a folder."""

    source: Source  # image or folder
    target: Target  # image or folder to write
    name: str = "blur-gauss"  # which degradation: see i2sb_lib.degradations
    # its options, such as kernel_size 7 sigma 2
    options: dict[str, float] = dataclasses.field(default_factory=dict)
    noise: float = 0.0  # standard deviation of added noise on the [0, 1] scale
    seed: int = 0  # of whatever is random

    def run(self) -> None:
        degrade = create_degradation(self.name, noise=self.noise, quantise=True, **self.options)
        _each_image(self.source, self.target, lambda x, name: degrade(x, _noise(self.seed, name)))


@dataclass
class Evaluate:
    """Degrade clean images as the model was trained to see, restore them and measure."""

    checkpoint: str = DEFAULT  # a shipped model, a run's folder or a hub id
    data: str = "embedded"  # clean images: embedded, a folder, a zip, parquet or a hub id
    split: str | None = None  # which split of them; test or validation unless said
    nfe: tuple[int, ...] | None = None  # network calls, each a row; 1 and 10, or 1 for a regression
    samplers: tuple[Sampler, ...] = ("sde",)  # each with each nfe
    metrics: tuple[str, ...] = ("psnr", "ssim")  # among psnr ssim lpips fid kid
    limit: int | None = None  # only the first so many images
    seed: int = 0  # of the degradation and the samplers
    power: float = 1.0  # of the time grid; 2 puts more of few calls near the clean end
    consistency: float = 0.0  # weight of the measurement, where the blur is known; 0: none
    out: str | None = None  # folder for metrics.json, a contact sheet and a copy of the run's history

    def run(self) -> None:
        model = load_pretrained(self.checkpoint)
        training = model.record["training"]
        alone = training.get("process") == "regression"
        calls = ((1,) if alone else (1, 10)) if self.nfe is None else self.nfe
        if min(calls, default=0) < 1 or (alone and set(calls) != {1}):
            raise ValueError(f"expected nfe of {'1: a regression' if alone else 'at least 1'}, got {calls}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"expected a limit of at least 1, got {self.limit}")
        clean = load_images(self.data, self.split, training["size"])
        if fingerprint(clean) == model.record.get("data_fingerprint"):
            print("i2sb: these are the images that the model was trained on", file=sys.stderr)
        clean = clean[: self.limit]
        x0, degrade = to_float(clean), create_pair_maker(training)
        x1 = degrade(x0, _noise(self.seed))
        rows: list[dict[str, Any]] = []
        sheet = [x0[:8], x1[:8]]
        how: dict[str, Any] = {"power": self.power, "consistency": self.consistency}
        content = {
            "data": {"source": Path(self.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
            "seed": self.seed,
            **how,
            "git_commit": git_commit(),
            "device": device_name(next(model.denoiser.parameters()).device),
            "checkpoint": model.record,
            "results": rows,
        }
        print(f"{len(x0)} images, {degrade}")
        print("  ".join(f"{h:>9}" for h in ("sampler", "nfe", *self.metrics)))
        for sampler, nfe in [("identity", 0), *((s, n) for s in self.samplers for n in calls)]:
            x = model.restore(x1, nfe, sampler, self.seed, progress=True, **how) if nfe else x1  # type: ignore[arg-type]
            result = evaluate(x, x0, self.metrics)
            values = {
                k: {n: _plain(getattr(m, n)) for n in ("value", "low", "high")} for k, m in result.items()
            }
            rows.append({"sampler": sampler, "nfe": nfe, **values})
            cells = [f"{sampler:>9}", f"{nfe:>9}", *(f"{m.value:9.4f}" for m in result.values())]
            print("  ".join(cells), flush=True)
            sheet += [x[:8]] if nfe else []
            if self.out is not None:  # after each row: the rows before a failure are kept, under this name
                partial = Path(self.out) / "metrics.partial.json"
                atomic_write(partial, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))
        if self.out is None:
            return
        out, history = Path(self.out), model.folder / "history.json"
        save_image(torch.cat([torch.cat(list(r), dim=-1) for r in sheet], dim=-2), out / "restored.png")
        if history.exists() and model.folder.resolve() != out.resolve():
            shutil.copy(history, out / "history.json")
        (out / "metrics.partial.json").replace(out / "metrics.json")


def _plain(value: float) -> float | None:
    """A number as JSON has it; None stands for an infinite PSNR, where every byte is right."""
    return value if math.isfinite(value) else None


@dataclass
class Info:
    """Describe a checkpoint: its card, its model and its run; or list those that are shipped."""

    # a shipped model, a run's folder or a hub id
    checkpoint: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = None

    def run(self) -> None:
        if self.checkpoint is None:
            names = sorted({p.parent.name for s in SHIPPED for p in s.glob("*/model.json")})
            print("\n".join(f"{name} (default)" if name == DEFAULT else name for name in names))
            return
        model = load_pretrained(self.checkpoint, "cpu")
        card = model.folder / "README.md"
        print(card.read_text() if card.exists() else f"{model.folder}: no model card")
        content = {"model": dataclasses.asdict(model.denoiser.config), **model.record}
        print(json.dumps(content, indent=1))


@dataclass
class Train:
    """Train a bridge, or go on with a run. Flags after --preset change what it sets."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    resume: bool = False  # go on with the run in --out
    preset: Literal["embedded", "celeba64-deblur", "celeba64-deblur-blind", "celeba64-deblur-noisy",
                    "celeba64-deblur-cunet"] | None = None  # fmt: skip
    """start from the flags of the demonstration or of a full-size run for a GPU"""

    def run(self) -> None:
        result = train(self.config, self.resume)
        done = "finished" if result["finished"] else "stopped, go on with --resume"
        quality = "".join(f", {k} {v}" for k, v in result.items() if k.startswith("psnr"))
        if PartialState().is_main_process:
            print(f"{self.config.out}: {done} at step {result['step']} of {self.config.steps}{quality}")


COMMANDS = {"train": Train, "restore": Restore, "degrade": Degrade, "evaluate": Evaluate, "info": Info}


def _start(args: list[str]) -> Train:
    """What the flags of `train` start from: the run that is resumed, a preset, or the defaults."""
    flags = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    given = {a: b for a, b in itertools.pairwise(flags) if a in ("--preset", "--out")}
    state = Path(given.get("--out", TrainConfig().out)) / "state.pt"
    if "--resume" in flags and "--preset" not in given and state.exists():
        try:
            return Train(TrainConfig(**torch.load(state, weights_only=True, mmap=True)["config"]))
        except Exception:  # the training says what is wrong with it
            return Train(TrainConfig())
    return Train(PRESETS.get(given.get("--preset", ""), TrainConfig()))


def main(args: list[str] | None = None) -> None:
    """Entry point; leaves by SystemExit where a command fails."""
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name not in COMMANDS:
        asked = name in ("-h", "--help")
        print(__doc__ if asked else f"i2sb: expected one of {list(COMMANDS)}, got {name!r}")
        sys.exit(0 if asked else 2)
    default = _start(rest) if name == "train" else None
    command: Any = tyro.cli(COMMANDS[name], prog=f"i2sb {name}", args=rest, default=default)
    try:
        command.run()
    except (ValueError, OSError, TrainingError, MetricUnavailable) as error:
        sys.exit(f"i2sb: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
