"""Prepared pictures on disk, written as they come and mapped into memory: they may be more than it holds."""

import contextlib
import json
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEAD = 4096  # bytes before the pixels: a safetensors header, whose counts are known at the end
NO_RESERVE = 0x4000  # of Linux, whose name for it is newer than the oldest Python supported


def mapped(path: Path) -> Tensor:
    """The pixels in a file of `spool`: a uint8 tensor whose bytes are read when they are asked for.

    The system may drop them again, and what is written to the tensor changes no file. Raises ValueError,
    KeyError or OSError where the file is not there, is damaged, or holds something else.
    """
    how: dict[str, Any] = {"access": mmap.ACCESS_COPY}
    if sys.platform == "linux":  # which else refuses a file that is larger than its memory
        how = {"flags": mmap.MAP_PRIVATE | NO_RESERVE}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(min(start, 2**20) - 8))["images"]
        memory = mmap.mmap(file.fileno(), 0, **how)
    low, high = about["data_offsets"]
    if about["dtype"] != "U8" or low or start + high != len(memory):
        raise ValueError(f"{path}: expected a whole file of pixels, got {len(memory)} bytes of {about}")
    return torch.frombuffer(memory, dtype=torch.uint8, offset=start).reshape(about["shape"])


def _write(file: Any, data: Any) -> None:
    """All of the bytes, or the OSError that a full disk tells only of the next ones."""
    while len(data := memoryview(data).cast("B")):
        data = data[file.write(data) :]


def spool(parts: Iterable[Tensor], path: Path) -> tuple[Tensor | None, OSError | None]:
    """Write parts (n, ...), uint8 and of one shape, one behind the other to a safetensors file.

    Where the disk refuses, also in the middle, what is returned is all of them as a tensor in memory, and
    the disk's error; else two times None.
    """
    count, shape, held, why = 0, torch.Size(), list[Tensor](), None
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w+b", buffering=0))
            _write(file, bytes(HEAD))
        except OSError as error:
            why = error
        for part in parts:
            if why is None:
                try:
                    _write(file, part.contiguous().numpy().data)
                except OSError as error:
                    why = error
                    if count:
                        file.seek(HEAD)
                        so_far = bytearray(file.read(count * shape.numel()))
                        held = [torch.frombuffer(so_far, dtype=torch.uint8).reshape(count, *shape)]
            if why is not None:
                held.append(part)
            count, shape = count + len(part), part.shape[1:]
        if why is not None:
            return torch.cat(held), why
        about = {"dtype": "U8", "shape": [count, *shape], "data_offsets": [0, count * shape.numel()]}
        file.seek(0)
        file.write((HEAD - 8).to_bytes(8, "little") + json.dumps({"images": about}).encode().ljust(HEAD - 8))
    return None, None
