"""What a script writes that measures restorations: the head of its record, and its numbers."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.config import config_hash
from i2sb_lib.data import fingerprint
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import evaluate
from i2sb_lib.files import atomic_write, git_commit


def head(source: str, clean: Tensor, config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A record without results: of which photographs, of what, where and by which commit."""
    return {
        "data": {"source": Path(source).name, "images": len(clean), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(device),
        "git_commit": git_commit(),
        "config": config,
        "config_hash": config_hash(config),
        "results": [],
    }


def numbers(x: Tensor, x0: Tensor, metrics: list[str]) -> dict[str, dict[str, float]]:
    """Each metric of x against x0: value, low and high, to six digits."""
    found = evaluate(x, x0, metrics)
    return {k: {n: round(getattr(m, n), 6) for n in ("value", "low", "high")} for k, m in found.items()}


def save(out: Path, record: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))
