"""The training configuration: its fields are the flags of `i2sb train`.

The presets are the demonstration of `make book`, what a CPU trained (`-small`, shipped, and `-blind-longer`
and, from its weights, the shipped `-blind-long`), and the full-size runs for a GPU, of which
`celeba64-deblur-long` is a shipped model's and `celeba64-deblur-blind-full` a recorded one's.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from i2sb_lib.degradations import DEGRADATIONS, Degradation, create_degradation
from i2sb_lib.denoiser import CUSTOM, Design

AS_THEY_ARE = "expected pairs as they are, got a degradation or noise for them, too"
BLIND = "expected a blind model for pairs or a degradation of one's own, such as celeba64-deblur-blind, got "
BLIND += "one that is told its blur (tikhonov {})"
FREE_ON_RESUME = {"data", "out", "minutes", "steps", "save_every", "eval_every", "tensorboard", "progress"}
FREE_ON_RESUME |= {"skip_corrupt", "degraded", "accumulate", "device"}
_TAKES: dict[Any, Any] = {
    float: float | int,
    float | None: float | int | None,
    dict[str, float]: dict,
    int | tuple[int, int]: int | tuple,
}


@dataclass(frozen=True)
class TrainConfig(Design):
    """Everything that a run depends on: the model's design and what follows; each field is a flag."""

    data: str = "embedded"  # clean images: embedded, a folder, a zip, parquet or a hub id
    # the same images degraded, under the same names, instead of a degradation; "": none
    degraded: str = ""
    out: str = "runs/run"  # folder for the state, the weights, the history and the contact sheet
    # pixels, one number or height and width: images are cropped to that shape and resized
    size: int | tuple[int, int] = 64
    crops: int = 0  # instead: so many crops of that size, anywhere in each image as it is
    noise: float = 0.0  # standard deviation of noise added to x1, on the [0, 1] scale
    quantise: bool = True  # round x1 to 8 bits, as a file would
    init: str = ""  # checkpoint whose weights (and moments) the run starts from; "": random ones
    steps: int = 20_000  # optimiser steps in all; the learning rate falls to zero there
    batch_size: int = 64  # images a step, over all processes
    accumulate: int = 1  # parts of each process's images, one at a time in memory: the same step
    lr: float = 5e-4  # largest learning rate
    warmup: int = 200  # steps of linear warm-up
    weight_decay: float = 0.01  # AdamW's
    # above 0, with precond and cond_x1: an image's error counts in terms of its own damage and this many
    # grey levels; 0: all alike
    damage_floor: float = 0.0
    clip: float = 1.0  # largest gradient norm
    # decay of the weight average that is evaluated and exported; shorter in the first steps
    ema: float = 0.999
    # auto: bf16 where the hardware has it, fp16 on older GPUs, float32 on other CPUs
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU where there is one
    compile: bool = False  # torch.compile the network (pays on a GPU, not on a CPU)
    seed: int = 0  # of everything random
    holdout: int = 64  # training images set aside for the metrics along the way
    skip_corrupt: bool = False  # leave out images that cannot be read, and name them
    minutes: float | None = None  # stop, resumably, after this long
    save_every: int = 500  # steps between saved states
    eval_every: int = 2000  # steps between metrics and contact sheets
    # keep in out/best the weights with the highest PSNR of held-out images so far, in one call or in ten
    keep_best: Literal["no", "psnr_1", "psnr_10"] = "no"
    tensorboard: bool = False  # log to TensorBoard in `out`
    progress: bool = True  # show a progress bar where the output is a terminal

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value: Any = getattr(self, f.name)
            if isinstance(value, Path):  # which a state would not bring back
                object.__setattr__(self, f.name, value := str(value))
            if isinstance(value, list):  # as JSON has it
                object.__setattr__(self, f.name, value := tuple(value))
            if isinstance(value, Integral) and not isinstance(value, bool):  # NumPy's, too
                object.__setattr__(self, f.name, value := int(value))
            choices = get_args(f.type) if get_origin(f.type) is Literal else ()
            good = value in choices if choices else isinstance(value, _TAKES.get(f.type, f.type))
            if not good or (isinstance(value, bool) and f.type is not bool):
                kind = choices or getattr(f.type, "__name__", None) or f.type
                raise ValueError(f"expected {f.name} as {kind}, got {value!r}")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"expected {f.name} below 2^63, got one of {value.bit_length()} bits")

        def expect(names: str, what: str, good: Callable[[Any], bool]) -> None:
            for name in names.split():
                if (value := getattr(self, name)) is not None and not good(value):
                    raise ValueError(f"expected {name} {what}, got {value!r}")

        expect("data out", "that is not empty", bool)
        numbers = int | float
        expect("degradation_options", "of numbers", lambda v: all(isinstance(n, numbers) for n in v.values()))
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        if len(sides) not in (1, 2) or not all(type(n) is int and n >= 1 for n in sides):
            raise ValueError(f"expected size of at least 1, or height and width, got {self.size}")
        if self.degradation == CUSTOM and self.tikhonov:
            raise ValueError(BLIND.format(self.tikhonov))
        expect("keep_best", "psnr_1 of regressions", lambda v: "10" not in v or self.process != "regression")
        expect("steps batch_size accumulate holdout save_every eval_every", "of at least 1", lambda v: v >= 1)
        zero = "damage_floor noise tikhonov warmup weight_decay seed minutes crops"
        expect(zero, "of at least 0", lambda v: 0 <= v < math.inf)
        expect("lr clip beta_max", "above 0", lambda v: 0 < v < math.inf)
        expect("noise", "of at most 10", lambda v: v <= 10)
        expect("ema dropout", "from 0 to below 1", lambda v: 0 <= v < 1)


S1: dict[str, Any] = {"beta_min": 0.7089, "beta_max": 2.1266}  # the shipped shape with sigma_1 = 1


LONGER = "runs/celeba64-deblur-blind-longer"  # where its run is looked for, unless --init says


def _full(**changes: Any) -> TrainConfig:
    base = TrainConfig(network="unet-full", steps=60_000, batch_size=128, compile=True, ema=0.9995)
    return dataclasses.replace(base, **changes)


def _small(**changes: Any) -> TrainConfig:
    """The trainings of two cores and two hours."""
    base = TrainConfig(steps=4400, batch_size=16, lr=8e-4, warmup=100, ema=0.999, save_every=250)
    return dataclasses.replace(base, eval_every=500, **changes)


PRESETS = {
    "embedded": TrainConfig(network="unet-tiny", tikhonov=1e-3, steps=200, batch_size=8, lr=2e-3, warmup=20),
    "celeba64-deblur": _full(tikhonov=2e-4),
    "celeba64-deblur-blind": _full(),
    "celeba64-deblur-long": _full(**S1, network="unet-small", tikhonov=2e-4, steps=5600, lr=2e-3, warmup=180),
    "celeba64-deblur-blind-full": _full(**S1, steps=3500, batch_size=64, lr=1e-3, warmup=300),
    "celeba64-deblur-small": _small(tikhonov=2e-4),
    "celeba64-deblur-blind-small": _small(),
    "celeba64-deblur-blind-longer": _small(**S1, steps=14_400),
    "celeba64-deblur-blind-long": _small(**S1, steps=12_000, lr=6e-4, ema=0.9995, seed=1, init=LONGER),
    "celeba64-deblur-noisy-small": _small(noise=0.05, tikhonov=5e-2),
    # larger pictures in more parts: a GPU's memory as at 64 x 64, about 10 GB (benchmarks/budget.py)
    "celeba128-deblur": _full(size=128, accumulate=4),
    "celeba256-deblur": _full(size=256, accumulate=16),
    # any picture, of unknown damage: crops of photographs as they are
    "photos-robust": _full(degradation="mixture", wiener=True, **S1, damage_floor=4.0, crops=48),
    "celeba64-deblur-noisy": _full(noise=0.05, tikhonov=5e-2),
    "celeba64-deblur-cunet": _full(network="cunet", cond_x1=False, prediction="eps", beta_min=0.01),
    **{f"celeba64-{name}": _full(degradation=name) for name in DEGRADATIONS if name[:2] in ("sr", "in")},
    "celeba64-deblur-uniform": _full(degradation="blur-uniform"),
    "celeba64-colour": _full(degradation="grey"),
    "celeba64-jpeg-5": _full(degradation="jpeg", degradation_options={"quality": 5}),
    "celeba64-jpeg-10": _full(degradation="jpeg", degradation_options={"quality": 10}),
}


def create_pair_maker(config: dict[str, Any]) -> Degradation:
    """The degradation x0 -> x1 of a configuration, as it stands in a run's record.

    Raises ValueError where that is of one's own.
    """
    if config["degradation"] == CUSTOM:
        got = "expected a model of a degradation with a name, got one of pairs or a degradation of one's own"
        raise ValueError(f"{got}: evaluate with --degraded FOLDER, restore degraded images without --degrade")
    options = config["degradation_options"] | {k: config[k] for k in ("noise", "quantise")}
    return create_degradation(config["degradation"], **options)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a half cosine to zero at `steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    done = min(1.0, max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup)))
    return config.lr * warm * (1 + math.cos(math.pi * done)) / 2


def stream(seed: int, k: int) -> int:
    """The generator seed of step k: 32 bits, all that a CPU generator keeps, runs far apart by seed."""
    return (2654435761 * seed + k) % 2**32


def config_hash(values: dict[str, Any]) -> str:
    """Short hash of a configuration, as it stands in a run's record."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
