r"""Weights on disk: safetensors with the configuration inside, sharded where large.

A checkpoint is a folder with model.json (configuration, shards and the run's record) and one or
more model-*.safetensors. Weights are the exponential average in float16.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.images import check_images
from i2sb_lib.samplers import Sampler, Samples, sample

SHARD_BYTES = 45_000_000
DEFAULT = "celeba64-deblur-blind"


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_pretrained(folder: Path, model: Denoiser, record: dict[str, Any]) -> None:
    """Write model.json and float16 shards of at most 45 MB each to `folder`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in model.state_dict().items():
        value = value.detach().to("cpu", torch.float16).contiguous()
        if size + value.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    names = [f"model-{i + 1}-of-{len(shards)}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        atomic_write(folder / name, lambda p, shard=shard: save_file(shard, p))  # type: ignore[misc]
    content = {"model": dataclasses.asdict(model.config), "shards": names, "record": record}
    text = json.dumps(content, indent=2) + "\n"
    atomic_write(folder / "model.json", lambda p: p.write_text(text))
