"""Pairs of one's own: from two sources, or from memory, as uint8 tensors (N, C, H, W)."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2sb_lib.data import Size, content_key, fit, preparation, prepared, sides
from i2sb_lib.faults import told, warn
from i2sb_lib.files import same
from i2sb_lib.images import MODES
from i2sb_lib.sources import open_source, split_column


def load_pairs(
    clean: str | Path,
    degraded: str | Path,
    split: str | None = None,
    size: Size = 64,
    progress: bool = True,
    skip_corrupt: bool = False,
    *,
    channels: int = 3,
    crops: int = 0,
) -> tuple[Tensor, Tensor]:
    """Clean images of one source and the same degraded from another: x0 and x1, uint8 (N, C, H, W) both.

    A pair are two images of one size whose names in their sources are equal, suffixes aside; rows of
    parquet are paired in order, and "photos.parquet:column" names a column other than "image". What has no
    partner is listed in one ValueError, or, with skip_corrupt, left out with a warning. For the rest see
    `load_images`; crops are cut from both at the same places.
    """
    if str(clean) == "embedded" and not os.path.exists(clean):  # what it is where nobody says
        raise ValueError(f"expected clean images (--clean FOLDER) beside --degraded {degraded}, got none")
    found, how = [], preparation(size, channels, crops, progress, skip_corrupt)
    for source in map(str, (clean, degraded)):
        files, images = open_source(source, split)
        root, names = str(Path(split_column(source)[0])), dict[str, tuple[str, Any]]()
        for name, open_it in images:
            at = name.removeprefix(root).lstrip("/\\")
            at = at if re.search(r" row \d+$", at) or not at else str(PurePath(at).with_suffix(""))
            at = same(at)
            if at in names:
                raise ValueError(f"{source}: expected names that differ, got {names[at][0]} and {name}")
            names[at] = name, open_it
        found.append((files, names))
    (files, ours), (others, theirs) = found
    alone = [a[at][0] for a, b in ((ours, theirs), (theirs, ours)) for at in a if at not in b]
    both = [at for at in ours if at in theirs]
    if alone:
        what = f"{len(alone)} images without a partner of the same name: {', '.join(alone[:20])}"
        if not skip_corrupt or not both:
            raise ValueError(f"{clean} and {degraded}: expected pairs, got {what}{', …' * (len(alone) > 20)}")
        warn(f"left out {what}")
    rows = [(ours[at][0], [ours[at][1], theirs[at][1]]) for at in both]
    _say_if_shrunk(degraded, rows, how)
    columns = [split_column(str(source))[1] for source in (clean, degraded)]
    key = content_key([*files, *others], split, how, f":{len(files)}:{columns}")
    x0, x1 = prepared(f"{clean} and {degraded}", rows, key, how)
    say_if_equal(x0, x1)
    return x0, x1


def say_if_equal(x0: Tensor, x1: Tensor | None) -> None:
    """A folder may have been given twice."""
    if x1 is not None and torch.equal(x0.cpu(), x1.cpu()):
        warn("the degraded images are all equal to the clean ones: there is nothing to restore in them")


def _say_if_shrunk(degraded: str | Path, rows: list[Any], how: Any) -> None:
    """Damage is made small with its picture, and what is left of it may be next to nothing."""
    try:
        width, height = rows[0][1][1]().size
    except (ValueError, OSError, IndexError):  # which is said where all are read
        return
    small = sides(how.size)
    if not how.crops and height > small[0] and width > small[1]:
        said = f"{degraded}: pictures such as one of {height} x {width} are made {small[0]} x {small[1]}"
        warn(f"{said}, and their damage small with them; crops (--crops N) cuts parts at their own scale")


def as_images(items: Any, size: Size, channels: int, name: str = "images") -> tuple[Tensor, Tensor | None]:
    """What is in memory as uint8 (N, C, H, W), and its partners where the items are pairs (x0, x1).

    items: such a tensor, or any dataset or iterable of pictures or pairs of them, a picture being one of
    Pillow's, which is fitted to size and channels, or uint8: a tensor (C, H, W) or an array (H, W[, C]).
    Raises ValueError for other items, and for pictures of several shapes.
    """

    def pixels(item: Any) -> Tensor:
        if isinstance(item, Image.Image):
            return fit(item, size, name, channels)
        if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3):
            return torch.from_numpy(np.array(item if item.ndim == 3 else item[..., None])).permute(2, 0, 1)
        if isinstance(item, Tensor) and item.dtype == torch.uint8 and item.ndim == 3:
            return item
        kinds = "uint8 tensors (C, H, W), arrays (H, W, C) or Pillow's images"
        raise ValueError(f"{name}: expected {kinds}, got {told(item)}")

    if isinstance(items, Tensor):
        if items.dtype != torch.uint8 or items.ndim != 4 or items.shape[1] not in MODES or not items.numel():
            raise ValueError(f"{name}: expected uint8 (N, C, H, W), C 1, 3 or 4, got {told(items)}")
        return items, None
    if isinstance(items, Mapping | str) or not (hasattr(items, "__iter__") or hasattr(items, "__getitem__")):
        raise ValueError(f"{name}: expected a data set or pictures, got {type(items).__name__}")
    count = len(items) if hasattr(items, "__len__") else None  # a data set may have no end but its length
    source = (
        (items[i] for i in range(count)) if count is not None and hasattr(items, "__getitem__") else items
    )
    rows = [[pixels(x) for x in (item if isinstance(item, tuple | list) else (item,))] for item in source]
    shapes = Counter(tuple(x.shape) for row in rows for x in row)
    if len(shapes) != 1 or len({len(row) for row in rows}) != 1 or len(rows[0]) > 2:
        raise ValueError(f"{name}: expected pictures, or pairs of them, of one shape, got {dict(shapes)}")
    x0, *x1 = (torch.stack(one) for one in zip(*rows, strict=True))
    return as_images(x0, size, channels, name)[0], (x1[0] if x1 else None)
