"""The training configuration: its fields are the flags of `i2sb train`.

The presets are the demonstration of `make book` and the full-size runs for a GPU. The shipped models
are the same recipes with the network unet-small and 4,400 steps of 16 images: their cards have the flags.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from i2sb_lib.degradations import Degradation, create_degradation
from i2sb_lib.denoiser import Prediction, Process

FREE_ON_RESUME = {"data", "out", "minutes", "steps", "save_every", "eval_every", "tensorboard", "progress"}
FREE_ON_RESUME |= {"skip_corrupt"}
_TAKES: dict[Any, Any] = {float: float | int, float | None: float | int | None, dict[str, float]: dict}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run depends on; each field is a flag of `i2sb train`."""

    data: str = "embedded"  # embedded, a folder, a zip, parquet or a hub id
    out: str = "runs/run"  # folder for the state, the weights, the history and the contact sheet
    size: int = 64  # images are cropped square and resized to this many pixels
    degradation: str = "blur-gauss"  # name of the degradation that makes x1 from x0
    # its options, such as kernel_size 7 sigma 2
    degradation_options: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0  # standard deviation of noise added to x1, on the [0, 1] scale
    quantise: bool = True  # round x1 to 8 bits, as a file would
    network: str = "unet-small"  # cunet, unet-tiny, unet-small or unet-full
    process: Process = "bridge"  # or the baselines regression (t = 1 alone) and diffusion from noise
    cond_x1: bool = True  # show x1 to the network at every t
    # also show it the Tikhonov inverse of the blur with this weight (operator-aware); 0: blind
    tikhonov: float = 0.0
    prediction: Prediction = "precond"  # what the network predicts: see i2sb_lib.denoiser
    beta_min: float = 0.1  # diffusion at both ends of the bridge
    beta_max: float = 0.3  # value that its ramp would reach at t = 1; both together set sigma_1
    dropout: float = 0.0  # probability of dropping a feature
    steps: int = 20_000  # optimiser steps in all; the learning rate falls to zero there
    batch_size: int = 64  # images a step, over all processes
    lr: float = 5e-4  # largest learning rate
    warmup: int = 200  # steps of linear warm-up
    weight_decay: float = 0.01  # AdamW's
    clip: float = 1.0  # largest gradient norm
    # decay of the weight average that is evaluated and exported; shorter in the first steps
    ema: float = 0.999
    # auto: bf16 where the hardware has it, fp16 on older GPUs, float32 on other CPUs
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool = False  # torch.compile the network (pays on a GPU, not on a CPU)
    seed: int = 0  # of everything random
    holdout: int = 64  # training images set aside for the metrics along the way
    skip_corrupt: bool = False  # leave out images that cannot be read, and name them
    minutes: float | None = None  # stop, resumably, after this long
    save_every: int = 500  # steps between saved states
    eval_every: int = 2000  # steps between metrics and contact sheets
    tensorboard: bool = False  # log to TensorBoard in `out`
    progress: bool = True  # show a progress bar where the output is a terminal

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value: Any = getattr(self, f.name)
            if isinstance(value, Path):  # which a state would not bring back
                object.__setattr__(self, f.name, value := str(value))
            choices = get_args(f.type) if get_origin(f.type) is Literal else ()
            if value not in choices if choices else not isinstance(value, _TAKES.get(f.type, f.type)):
                kind = choices or getattr(f.type, "__name__", None) or f.type
                raise ValueError(f"expected {f.name} as {kind}, got {value!r}")

        def expect(names: str, what: str, good: Callable[[float], bool]) -> None:
            for name in names.split():
                if (value := getattr(self, name)) is not None and not good(value):
                    raise ValueError(f"expected {name} {what}, got {value}")

        expect("size steps batch_size holdout save_every eval_every", "of at least 1", lambda v: v >= 1)
        expect(
            "noise tikhonov warmup weight_decay seed minutes", "of at least 0", lambda v: 0 <= v < math.inf
        )
        expect("lr clip beta_max", "above 0", lambda v: 0 < v < math.inf)
        expect("ema dropout", "from 0 to below 1", lambda v: 0 <= v < 1)


def _full(**changes: Any) -> TrainConfig:
    base = TrainConfig(network="unet-full", steps=60_000, batch_size=128, compile=True, ema=0.9995)
    return dataclasses.replace(base, **changes)


PRESETS = {
    "embedded": TrainConfig(network="unet-tiny", steps=400, batch_size=16, lr=2e-3, warmup=20),
    "celeba64-deblur": _full(tikhonov=2e-4),
    "celeba64-deblur-blind": _full(),
    "celeba64-deblur-noisy": _full(noise=0.05, tikhonov=5e-2),
    "celeba64-deblur-cunet": _full(network="cunet", cond_x1=False, prediction="eps", beta_min=0.01),
}


def create_pair_maker(config: dict[str, Any]) -> Degradation:
    """The degradation x0 -> x1 of a configuration, as it stands in a run's record."""
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
