r"""Weights on disk, and the model that restores with them.

A checkpoint is a folder with model.json (configuration, shards, the run's record), safetensors
shards of the averaged weights in float16, and, where it is shipped, a README.md: its model card.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.devices import auto_device
from i2sb_lib.files import atomic_write
from i2sb_lib.restoration import Pretrained

SHARD_BYTES = 45_000_000
DEFAULT = "celeba64-deblur"
_PACKAGE = Path(__file__).parent
SHIPPED = [_PACKAGE / "pretrained", _PACKAGE.parent / "data" / "checkpoints"]  # installed, or a clone


def save_pretrained(folder: Path, model: Denoiser, record: dict[str, Any]) -> None:
    """Write float16 shards of at most 45 MB each, then model.json, to `folder`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in model.state_dict().items():
        value = weight.detach().to("cpu", torch.float16).contiguous()
        if shards[-1] and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    names = [f"model-{i + 1}-of-{len(shards)}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        atomic_write(folder / name, lambda p, shard=shard: save_file(shard, p))  # type: ignore[misc]
    content = {"model": dataclasses.asdict(model.config), "shards": names, "record": record}
    atomic_write(folder / "model.json", lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def load_pretrained(name: str | Path = DEFAULT, device: str | torch.device | None = None) -> Pretrained:
    """The model of a checkpoint, in float32 on `device` (a GPU where there is one).

    name: one that is shipped, the folder of a run or checkpoint, or a hub id.
    Raises ValueError where there is no such checkpoint or a file of it is missing or damaged.
    """
    path = next((p for p in [Path(name), *(s / name for s in SHIPPED)] if (p / "model.json").exists()), None)
    if path is None and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not Path(name).exists():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(name)))
        except Exception as error:  # the hub's client has no common base class for its errors
            raise ValueError(f"{name}: expected a checkpoint or a reachable hub id: {error}") from None
    if path is None:
        known = sorted({p.parent.name for s in SHIPPED for p in s.glob("*/model.json")})
        raise ValueError(f"expected one of {known} or a folder with model.json, got {str(name)!r}")
    try:
        content = json.loads((path / "model.json").read_text())
        weights = {k: v for shard in content["shards"] for k, v in load_file(path / shard).items()}
        content["model"]["moments"] = tuple(content["model"]["moments"])
        denoiser = Denoiser(ModelConfig(**content["model"]))
        denoiser.load_state_dict({k: v.float() for k, v in weights.items()})
        record = content["record"]
    except Exception as error:
        raise ValueError(f"{path}: expected a complete checkpoint, got: {error}") from error
    device = torch.device(device) if device else auto_device()
    denoiser = denoiser.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()  # type: ignore[call-overload]
    return Pretrained(denoiser, record, path)
