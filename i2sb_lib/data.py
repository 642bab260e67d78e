r"""Photographs from anywhere as one uint8 tensor (N, C, H, W), or two of pairs.

Sources: "embedded" (photographs inside scikit-image and scikit-learn), a folder or zip of images,
parquet in the hub's format (a file or a folder of shards), or a hub id such as
"korexyz/celeba-hq-256x256". Whatever is larger than `size` is cropped to its centre of that shape and
resized with Pillow's Lanczos filter, which is antialiased; images of that size pass unchanged.
"""

import contextlib
import hashlib
import os
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2sb_lib.faults import extra
from i2sb_lib.files import atomic_write
from i2sb_lib.images import to_rgb, to_tensor
from i2sb_lib.progress import progress as shown
from i2sb_lib.sources import Pictures, open_source, split_column

Row = tuple[str, list[Callable[..., Image.Image]]]  # a scene's name, and what opens each picture of it
Size = int | tuple[int, int]  # pixels of both sides, or height and width

EMBEDDED_TRAIN = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "china.jpg")
EMBEDDED_TEST = ("astronaut.png", "flower.jpg")  # whole photographs held out, not crops of others
_FORMAT = "lanczos-2"  # part of the cache key: change it when preparation changes


def cache_dir() -> Path:
    """Where prepared data sets live: $I2SB_CACHE, or ~/.cache/i2sb."""
    return Path(os.environ.get("I2SB_CACHE", Path.home() / ".cache" / "i2sb"))


class Preparation(NamedTuple):
    """How pictures become pixels."""

    size: Size
    channels: int
    crops: int
    progress: bool
    skip_corrupt: bool


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def fit(image: Image.Image, size: Size, name: str = "image", channels: int = 3) -> Tensor:
    """Central part of an image in size's shape, resized (Lanczos) to uint8 (channels, height, width).

    Raises ValueError where the image is smaller than that: enlarging would invent a clean image.
    """
    height, width = sides(size)
    if image.height < height or image.width < width:
        raise ValueError(f"{name}: expected at least {height}x{width} pixels, got {image.size[::-1]}")
    scale = min(image.height / height, image.width / width)
    h, w = round(height * scale), round(width * scale)
    left, top = (image.width - w) // 2, (image.height - h) // 2
    image = to_rgb(image, channels == 4).crop((left, top, left + w, top + h))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return to_tensor(image, channels)


def _cuts(pictures: Sequence[Image.Image], size: Size, name: str, channels: int, crops: int) -> list[Tensor]:
    """Pictures of one scene, each fitted (1, C, H, W), or the same random crops of each, from its name."""
    if len({p.size for p in pictures}) > 1:
        raise ValueError(f"{name}: expected two pictures of one size, got {[p.size for p in pictures]}")
    if not crops:
        return [fit(p, size, name, channels)[None] for p in pictures]
    (height, width), (w, h) = sides(size), pictures[0].size
    if h < height or w < width:
        raise ValueError(f"{name}: expected at least {height}x{width} pixels, got {(h, w)}")
    draw = random.Random(PurePath(name).name)
    places = [(draw.randint(0, h - height), draw.randint(0, w - width)) for _ in range(crops)]
    whole = [to_tensor(p, channels) for p in pictures]
    return [torch.stack([x[:, i : i + height, j : j + width] for i, j in places]) for x in whole]


def embedded_photographs(split: str) -> dict[str, Image.Image]:
    """The embedded photographs by file name; split "train" or "test" hold different photographs."""
    with extra("demo", "embedded"):
        import skimage
        import sklearn.datasets

    roots = [Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"]
    names = {"train": EMBEDDED_TRAIN, "test": EMBEDDED_TEST}.get(split)
    if names is None:
        raise ValueError(f'embedded photographs have splits "train" and "test", got {split!r}')
    files = [next((r / n for r in roots if (r / n).exists()), Path(n)) for n in names]
    photographs = {f.name: Image.open(f).convert("RGB") for f in files}
    for photo in photographs.values():  # as scikit-image decodes them: one's Adobe RGB profile is not applied
        photo.info = {}
    return photographs


def _crops(split: str, size: Size) -> Pictures:
    """Every crop of the embedded photographs on a grid, at half and quarter scale (train: also full).

    Train crops overlap by half; test crops do not.
    """
    height, width = sides(size)
    for name, photo in embedded_photographs(split).items():
        for scale in (1, 2, 4) if split == "train" else (2, 4):
            small = photo.resize((photo.width // scale, photo.height // scale), Image.Resampling.LANCZOS)
            half = 2 if split == "train" else 1
            for top in range(0, small.height - height + 1, height // half):
                for left in range(0, small.width - width + 1, width // half):
                    place = (left, top, left + width, top + height)
                    yield f"{name}/{scale}@{left},{top}", partial(small.crop, place)


def content_key(files: list[Path], split: str | None, how: Preparation, more: str = "") -> str:
    (height, width), one = sides(how.size), {".zip": f":{split}"}  # elsewhere a split is its files
    size = height if height == width else how.size
    other = f":{how.channels}:{how.crops}" if (how.channels, how.crops) != (3, 0) else ""
    inside = one.get(files[0].suffix.lower(), "") + other + more
    digest = hashlib.sha256(f"{_FORMAT}:{size}{inside}".encode())
    for file in files:
        content = hashlib.sha256()
        with contextlib.suppress(OSError), file.open("rb") as stream:  # told with its name when it is opened
            while part := stream.read(2**20):
                content.update(part)
        digest.update(os.fsencode(file.name) + content.digest())
    return digest.hexdigest()[:24]


def load_images(
    source: str | Path,
    split: str | None = None,
    size: Size = 64,
    progress: bool = True,
    skip_corrupt: bool = False,
    *,
    channels: int = 3,
    crops: int = 0,
) -> Tensor:
    """All images of a source as uint8 (N, channels, height, width), in a fixed order.

    source: see the module's first lines. split: "train", "validation" or "test"; None takes the
    only split there is, else test, else validation ("embedded": test). size: one number, or height and
    width. crops: so many random crops of that size from each image, in place of its centre made small.
    Files are prepared once and, where it can be written, kept in `cache_dir()` under a hash of their
    content; a cache file is complete or absent. skip_corrupt: leave out images that are damaged or too
    small, with a warning that lists them, instead of one ValueError that does. Raises ValueError for no
    images or no such split, too.
    """
    how = Preparation(size, channels, crops, progress, skip_corrupt)
    if str(source) == "embedded":
        return prepared("embedded", [(n, [f]) for n, f in _crops(split or "test", size)], None, how)[0]
    files, images = open_source(str(source), split)
    column = split_column(str(source))[1]
    key = content_key(files, split, how, f":{column}" * (column != "image"))
    return prepared(str(source), _rows(images), key, how)[0]


def _rows(images: Pictures) -> Iterable[Row]:
    """A row for each picture; a list where their number is known."""
    rows = ((name, [open_it]) for name, open_it in images)
    return list(rows) if isinstance(images, list) else rows


def prepared(source: str, rows: Iterable[Row], key: str | None, how: Preparation) -> list[Tensor]:
    """The pixels of each row's pictures, stacked picture by picture, from the cache where they are there."""
    cached = cache_dir() / f"{key}.safetensors"
    if key:
        with contextlib.suppress(SafetensorError, OSError, KeyError):  # absent or damaged: it is made again
            kept = load_file(cached)
            return [kept[k] for k in ("images", "degraded") if k in kept or k == "images"]
    rows, count = (rows, len(rows)) if isinstance(rows, list) else (rows, None)
    alpha: dict[str, Any] = {"alpha": True} if how.channels == 4 and key else {}
    pixels, bad = [], []
    for name, openers in shown(rows, desc="preparing images", unit="image", show=how.progress, total=count):
        try:
            pictures = [open_it(**alpha) for open_it in openers]
            pixels.append(_cuts(pictures, how.size, name, how.channels, how.crops))
        except ValueError as error:
            bad.append(str(error))
        if len(bad) == 100 and not pixels:  # the source is another than was thought
            break
    if bad and not (how.skip_corrupt and pixels):
        some = f"{source}: {len(bad)} of {len(bad) + len(pixels)} images cannot be used: " if bad[1:] else ""
        raise ValueError(some + "; ".join(bad))
    if not pixels:
        height, width = sides(how.size)
        raise ValueError(f"{source}: expected images of at least {height}x{width} pixels, got none")
    stacked = [torch.cat(one) for one in zip(*pixels, strict=True)]
    if bad:
        warnings.warn(f"{source}: left out {len(bad)} images: {'; '.join(bad)}", stacklevel=3)
    elif key:
        content = dict(zip(("images", "degraded"), stacked, strict=False))
        try:
            atomic_write(cached, lambda path: save_file(content, path))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"{cached.parent}: cannot keep the prepared images there ({reason})", stacklevel=3)
    return stacked


def fingerprint(images: Tensor) -> str:
    """Short hash of a uint8 tensor's shape and pixels: which data a result was made with."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
