"""state.pt, which a run resumes from: tensors and plain values alone, so nothing in it is executed."""

import contextlib
import dataclasses
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from i2sb_lib.config import FREE_ON_RESUME, TrainConfig
from i2sb_lib.faults import TrainingError, first_line

_KINDS = {"step": int, "seconds": int | float, "history": list, "pending": list}


@contextlib.contextmanager
def complete(path: Path) -> Iterator[None]:
    """In which a state is read: what pickle, zip, torch and missing parts raise becomes a TrainingError."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error).split('. ')[0]}"  # what torch advises goes on
        raise TrainingError(f"{path}: expected a complete state, got {what}") from None


def read_state(path: Path, config: TrainConfig) -> dict[str, Any]:
    """The state at `path`, on the CPU.

    Raises TrainingError where there is none, where it is damaged, made with another configuration
    (what is in FREE_ON_RESUME may differ), or already past the steps that are asked for.
    """
    if not path.exists():
        raise TrainingError(f"expected a run to resume at {path}, got no file")
    with complete(path):
        with zipfile.ZipFile(path) as file:
            if bad := file.testzip():  # which torch does not look at
                raise ValueError(f"another {bad} than was written")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        ours = dataclasses.asdict(config)
        theirs = dataclasses.asdict(TrainConfig()) | state["config"]  # a new field has its default
        if changed := [k for k in ours if k not in FREE_ON_RESUME and ours[k] != theirs[k]]:
            what = ", ".join(f"{k}: {theirs[k]} -> {ours[k]}" for k in changed)
            raise TrainingError(f"{path} was made with another configuration ({what})")
        for name, kind in _KINDS.items():
            if name in state and not isinstance(state[name], kind):
                raise ValueError(f"{name} as {type(state[name]).__name__}")
        step = state["step"]
        if not (step >= 0 and 0 <= state.get("seconds", 0) < math.inf):
            raise ValueError(f"step {step} after {state.get('seconds')} seconds")
        if step > config.steps:
            raise TrainingError(f"{path} is at step {step} already, past {config.steps}: give more --steps")
    return state
