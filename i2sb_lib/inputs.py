"""What a run is given: images, pairs or a degradation of one's own, a network, weights to start from."""

import contextlib
import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2sb_lib.batches import create_degrade
from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import AS_THEY_ARE, BLIND, TrainConfig
from i2sb_lib.data import load_images, sides
from i2sb_lib.degradations import Degradation
from i2sb_lib.denoiser import CUSTOM, Denoiser, Design, ModelConfig
from i2sb_lib.faults import TrainingError, first_line, warn
from i2sb_lib.pairs import as_images, load_pairs, say_if_equal
from i2sb_lib.wiener import LEAST

MEMORY = "memory"  # as the source of images that are given
_SHAPING = ("network", "process", "cond_x1", "prediction", "channels", "wiener")  # what weights are made for

Given = tuple[Tensor, Tensor | None]


def inputs(
    config: TrainConfig,
    net: nn.Module | None = None,
    images: Any = None,
    targets: Any = None,
    degrade: Callable[..., Tensor] | None = None,
) -> tuple[TrainConfig, Degradation, Given | None]:
    """The config of a run that is given these, its degradation, and its images where they are in memory.

    Paths become the config's data; the size and channels of images in memory become its own. Raises
    ValueError for what does not go together.
    """
    if (kind := torch.get_default_dtype()) != torch.float32:
        raise TrainingError(f"expected PyTorch's default type, float32, got {kind}")
    changes: dict[str, Any] = {} if net is None else {"network": CUSTOM}
    given: Given | None = None
    if isinstance(images, str | Path):
        changes["data"] = str(images)
    elif images is not None:
        x0, x1 = as_images(images, config.size, config.channels)
        if targets is not None:
            if x1 is not None:
                raise ValueError("expected pairs as images, or targets, got both")
            x1 = as_images(targets, config.size, config.channels, "targets")[0]
        if x1 is not None and x1.shape != x0.shape:
            raise ValueError(f"expected targets of the images' {tuple(x0.shape)}, got {tuple(x1.shape)}")
        say_if_equal(x0, x1)
        given, (channels, height, width) = (x0, x1), x0.shape[1:]
        size = height if height == width else (height, width)
        changes |= {"data": MEMORY, "size": size, "channels": channels}
        changes |= {"degraded": MEMORY} if x1 is not None else {}
    if isinstance(targets, str | Path):
        changes["degraded"] = str(targets)
    elif targets is not None and given is None:
        raise ValueError("expected images in memory beside targets in memory, got none")
    config = dataclasses.replace(config, **changes)
    if config.degraded and (degrade is not None or config.noise):
        raise ValueError(AS_THEY_ARE)
    if config.degraded or degrade is not None:
        if config.degradation not in (CUSTOM, TrainConfig.degradation) or config.degradation_options:
            warn(f"{config.degradation} is left out: pairs, or a degradation of one's own, take its place")
        config = dataclasses.replace(config, degradation=CUSTOM, degradation_options={})
    if config.degradation == CUSTOM and not config.degraded and degrade is None:
        raise ValueError("expected pairs, or in Python degrade=…, for a degradation of one's own, got none")
    if not (degrade is None or callable(degrade)):
        raise ValueError(f"expected degrade as a function of images, got {degrade!r}")
    # pairs are degraded already: nothing is done to them
    made = create_degrade(config, degrade or ((lambda x: x) if config.degraded else None))
    if config.degradation != CUSTOM:  # what it cannot do is refused before an image is read
        made(torch.zeros(1, config.channels, *sides(config.size)), torch.Generator())
    return config, made, given


def check_network(model: Denoiser, config: TrainConfig, init: Any = None) -> None:
    """Refuse what cannot be trained, or started from `init`; one's own network is tried once, as a copy."""
    height, width = sides(config.size)
    if height % (stride := model.stride) or width % stride:
        raise TrainingError(f"{config.network}: expected a size that {stride} divides, got {config.size}")
    if config.wiener and min(height, width) < LEAST:  # nothing is guessed, and no trust learnt
        raise TrainingError(f"wiener: expected sides of at least {LEAST} pixels, got {height} x {width}")
    own = config.network == CUSTOM
    if init:
        start_from(init, design(config), copy.deepcopy(model.net) if own else None, say=False)
    if not own:
        return
    for name, p in model.named_parameters():
        if nn.parameter.is_lazy(p):
            raise TrainingError(f"expected weights that have a shape, got {name}: call the net once before")
        if p.dtype != torch.float32 if p.requires_grad else not p.is_floating_point():
            kind = "weights to train in torch.float32" if p.requires_grad else "frozen weights as floats"
            raise TrainingError(f"expected {kind}, got {name} in {p.dtype}")
    try:
        tried, trained = copy.deepcopy(model).eval(), [p for p in model.parameters() if p.requires_grad]
    except Exception as error:
        said = f"expected a network that copy.deepcopy can copy, for the average, got: {first_line(error)}"
        raise TrainingError(said) from error
    x = torch.zeros(1, config.channels, height, width, device=trained[0].device if trained else "cpu")
    try:
        with torch.enable_grad():
            learns = bool(trained) and tried(x, torch.ones_like(x[:, 0, 0, 0]), x, x).requires_grad
    except (RuntimeError, TypeError) as error:
        what = f"planes {(1, model.planes, height, width)} and t (1,), got: {first_line(error)}"
        raise TrainingError(f"expected a network of {what}") from error
    if not learns:
        raise TrainingError(
            "expected a network whose result depends on weights to train (requires_grad), got none"
        )


def load(config: TrainConfig) -> Given:
    """The training images that a config names, and their partners where it has pairs."""
    how: dict[str, Any] = {"channels": config.channels, "crops": config.crops}
    if MEMORY in (config.data, config.degraded) and not Path(MEMORY).exists():
        raise TrainingError(
            f"expected a {MEMORY}, or a run's images as they were given in Python: train(…, resume=True)"
        )
    common = "train", config.size, config.progress, config.skip_corrupt
    if config.degraded:
        return load_pairs(config.data, config.degraded, *common, **how)
    return load_images(config.data, *common, **how), None


def _flag(name: str, value: Any) -> str:
    """An option of the configuration as the command line takes it."""
    flag = f"--{'no-' * (value is False)}{name}".replace("_", "-")
    values = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]
    return flag if isinstance(value, bool) else " ".join([flag, *values])


def design(config: TrainConfig) -> ModelConfig:
    """What a run's model is, before it has seen an image."""
    return ModelConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Design)})


def moments_of(run: str) -> tuple[float, float, float] | None:
    """Those of the run in this folder, whatever it was started from; None where it has none on record."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        model = json.loads((Path(run) / "model.json").read_text(encoding="utf-8"))["model"]
        a, b, c = map(float, model["moments"])
        return a, b, c
    return None


def start_from(init: Any, config: ModelConfig, net: nn.Module | None, say: bool) -> Denoiser:
    """A denoiser of this config with the weights and moments of `init`, a Pretrained or a checkpoint.

    Says on stderr what differs between the two; TrainingError where the weights are made for another
    network, with the flags to give.
    """
    try:
        model = init if isinstance(init, Pretrained) else load_pretrained(init, "cpu", net=copy.deepcopy(net))
    except ValueError as error:
        raise ValueError(f"init: {error}") from error
    theirs = model.denoiser.config
    if theirs.tikhonov and config.degradation == CUSTOM:
        raise TrainingError(f"{model.folder.name}: {BLIND.format(theirs.tikhonov)}")
    differ = {f.name: (getattr(theirs, f.name), getattr(config, f.name)) for f in dataclasses.fields(Design)}
    differ = {name: (a, b) for name, (a, b) in differ.items() if a != b}
    wrong = {k: a for k, (a, b) in differ.items() if k in _SHAPING or (k == "tikhonov" and not (a and b))}
    if wrong:
        free = ("dropout",) if theirs.tikhonov else ("dropout", "degradation", "degradation_options")
        flags = " ".join(_flag(k, a) for k, (a, _) in differ.items() if k not in free)
        raise TrainingError(f"{model.folder.name}: expected a run of its own kind of network: give {flags}")
    if differ and say:
        what = ", ".join(f"{k} {a} -> {b}" for k, (a, b) in differ.items())
        print(f"i2sb: from the weights of {model.folder.name}, with other settings: {what}", file=sys.stderr)
    denoiser = Denoiser(dataclasses.replace(config, moments=theirs.moments), net)
    try:
        denoiser.load_state_dict(model.denoiser.state_dict())
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise TrainingError(
            f"{model.folder.name}: expected the weights of this network, got: {what:.200}"
        ) from error
    return denoiser
