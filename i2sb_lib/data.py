r"""Photographs from anywhere as one uint8 tensor (N, C, H, W), or two of pairs.

Sources: "embedded" (photographs inside scikit-image and scikit-learn), a folder or zip of images,
parquet in the hub's format (a file or a folder of shards), one image's file, or a hub id such as
"korexyz/celeba-hq-256x256". Whatever is larger than `size` is cropped to its centre of that shape and
resized with Pillow's Lanczos filter, which is antialiased; images of that size pass unchanged.
"""

import contextlib
import hashlib
import os
import random
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from importlib.metadata import distribution
from numbers import Integral
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from i2sb_lib.faults import extra, listed, warn
from i2sb_lib.images import MODES, to_rgb, to_tensor
from i2sb_lib.pixels import mapped, spool
from i2sb_lib.progress import progress as shown
from i2sb_lib.sources import Pictures, open_source, split_column

Row = tuple[str, list[Callable[..., Image.Image]]]  # a scene's name, and what opens each picture of it
Size = int | tuple[int, int]  # pixels of both sides, or height and width

EMBEDDED_TRAIN = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "china.jpg")
EMBEDDED_TEST = ("astronaut.png", "flower.jpg")  # whole photographs held out, not crops of others
_homeless = cache(partial(tempfile.TemporaryDirectory, prefix="i2sb-"))  # one, which goes with the process
_FORMAT = "lanczos-2"  # part of the cache key: change it when preparation changes


def cache_dir() -> Path:
    """Where prepared data sets live: $I2SB_CACHE, or ~/.cache/i2sb; until the end where there is no home."""
    home = os.path.expanduser("~/.cache/i2sb")  # which stays as it is where there is none
    return Path(os.environ.get("I2SB_CACHE") or (_homeless().name if home[0] == "~" else home))


class Preparation(NamedTuple):
    """How pictures become pixels."""

    size: Size
    channels: int
    crops: int
    progress: bool
    skip_corrupt: bool


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a size; ValueError unless it is one or two whole numbers of at least 1."""
    both = size if isinstance(size, tuple | list) else (size,)
    good = all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 1 for n in both)
    if not good or len(both) not in (1, 2):
        raise ValueError(f"expected a size of at least 1, or height and width, got {size!r}")
    return int(both[0]), int(both[-1])


def preparation(size: Size, channels: int, crops: int, progress: bool, skip_corrupt: bool) -> Preparation:
    """The same, checked; ValueError for what cannot be."""
    height, width = sides(size)
    if not isinstance(channels, Integral) or isinstance(channels, bool) or channels not in MODES:
        raise ValueError(f"expected 1, 3 or 4 channels, got {channels!r}")
    if not isinstance(crops, Integral) or isinstance(crops, bool) or crops < 0:
        raise ValueError(f"expected a number of crops of at least 0, got {crops!r}")
    if crops * channels * height * width > 2**32:  # bytes, in memory at once
        raise ValueError(f"expected crops of an image in 4 GiB, got {crops} of {height}x{width} pixels")
    return Preparation(size, channels, crops, progress, skip_corrupt)


def fit(image: Image.Image, size: Size, name: str = "image", channels: int = 3) -> Tensor:
    """Central part of an image in size's shape, resized (Lanczos) to uint8 (channels, height, width).

    Raises ValueError where the image is smaller than that: enlarging would invent a clean image.
    """
    image, (height, width) = to_rgb(image, channels == 4), sides(size)  # upright before it is measured
    if image.height < height or image.width < width:
        raise ValueError(f"{name}: expected at least {height}x{width} pixels, got {image.size[::-1]}")
    scale = min(image.height / height, image.width / width)
    h, w = round(height * scale), round(width * scale)
    left, top = (image.width - w) // 2, (image.height - h) // 2
    image = image.crop((left, top, left + w, top + h))
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


def _embedded(split: str) -> list[Path]:
    """The files of the embedded photographs."""
    with extra("demo", "embedded"):
        # where they are installed: importing scikit-learn takes more than a second
        parts = {"scikit-image": "skimage/data", "scikit-learn": "sklearn/datasets/images"}
        roots = [Path(str(distribution(name).locate_file(part))) for name, part in parts.items()]
    names = {"train": EMBEDDED_TRAIN, "test": EMBEDDED_TEST}.get(split)
    if names is None:
        raise ValueError(f'embedded photographs have splits "train" and "test", got {split!r}')
    return [next((r / n for r in roots if (r / n).exists()), Path(n)) for n in names]


def embedded_photographs(split: str) -> dict[str, Image.Image]:
    """The embedded photographs by file name; split "train" or "test" hold different photographs."""
    photographs = {f.name: Image.open(f).convert("RGB") for f in _embedded(split)}
    for photo in photographs.values():  # as scikit-image decodes them: one's Adobe RGB profile is not applied
        photo.info = {}
    return photographs


def _cut(photo: Image.Image, place: tuple[int, int, int, int], alpha: bool = False) -> Image.Image:
    return photo.crop(place)  # opaque also where opacity is asked for


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
                    yield f"{name}/{scale}@{left},{top}", partial(_cut, small, place)


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

    source: "embedded", a folder or zip of images, parquet in the hub's format, a hub id, or one image.
    split: "train", "validation", "test" or "all"; None takes all of a source that has no splits, else the
    only one, else test, else validation ("embedded" has train and test alone: test). size: one number, or
    height and width. crops: so many random crops of that size from each image, in place of its centre made
    small. Files are prepared once and, where it can be written, kept in `cache_dir()` under a hash of their
    content; a cache file is complete or absent, and mapped into memory, which it may exceed. skip_corrupt:
    leave out images that are damaged or too small, with a warning that lists them, instead of one ValueError
    that does. Raises ValueError for no images or no such split, too.
    """
    how = preparation(size, channels, crops, progress, skip_corrupt)
    if str(source) == "embedded":
        key = content_key(_embedded(split or "test"), None, how, ":embedded")
        return prepared("embedded", _rows(_crops(split or "test", size)), key, how)[0]
    files, images = open_source(str(source), split)
    column = split_column(str(source))[1]
    key = content_key(files, split, how, f":{column}" * (column != "image"))
    return prepared(str(source), _rows(images), key, how)[0]


def _rows(images: Pictures) -> Iterable[Row]:
    """A row for each picture; a list where their number is known."""
    rows = ((name, [open_it]) for name, open_it in images)
    return list(rows) if isinstance(images, list) else rows


def prepared(source: str, rows: Iterable[Row], key: str | None, how: Preparation) -> list[Tensor]:
    """The pixels of each row's pictures, stacked picture by picture, from the cache where they are there.

    They are mapped from a file, not read, unless there is no key or the cache cannot be written.
    """
    cached = cache_dir() / f"{key}.safetensors"
    if key:
        with contextlib.suppress(OSError, ValueError, KeyError):  # absent or damaged: it is made again
            return _split(mapped(cached))
    rows, count = (rows, len(rows)) if isinstance(rows, list) else (rows, None)
    alpha: dict[str, Any] = {"alpha": True} if how.channels == 4 and key else {}
    bad: list[str] = []

    def parts() -> Iterator[Tensor]:
        good, every = 0, shown(rows, desc="preparing images", unit="image", show=how.progress, total=count)
        for name, openers in every:
            try:
                pictures = [open_it(**alpha) for open_it in openers]
                cuts = _cuts(pictures, how.size, name, how.channels, how.crops)
            except ValueError as error:
                bad.append(str(error))
                if len(bad) == 100 and not good:  # the source is another than was thought
                    break
                continue
            good += 1
            yield torch.stack(cuts, 1) if len(cuts) > 1 else cuts[0]
        if bad and not (how.skip_corrupt and good):
            some = f"{source}: {len(bad)} of {len(bad) + good} images cannot be used: " if bad[1:] else ""
            raise ValueError(some + listed(bad))
        if not good:
            height, width = sides(how.size)
            raise ValueError(f"{source}: expected images of at least {height}x{width} pixels, got none")

    if not key:
        return _split(torch.cat(list(parts())))
    partial = cached.with_name(f".i2sb-{uuid.uuid4().hex}.tmp.safetensors")
    try:
        pixels, error = spool(parts(), partial)
        if pixels is None and not bad:
            os.replace(partial, cached)
        pixels = mapped(partial if bad else cached) if pixels is None else pixels
    finally:
        with contextlib.suppress(OSError):  # never made, or moved
            partial.unlink()
    if bad:
        warn(f"{source}: left out {len(bad)} images: {listed(bad)}")
    if error:
        reason = error.strerror or error
        warn(f"{cached.parent}: cannot keep the prepared images there ({reason})")
    return _split(pixels)


def _split(pixels: Tensor) -> list[Tensor]:
    """Pictures (N, C, H, W), or scenes of several, (N, K, C, H, W), picture by picture."""
    return [pixels] if pixels.ndim == 4 else list(pixels.unbind(1))


def fingerprint(*parts: Tensor) -> str:
    """Short hash of a uint8 tensor's shape and pixels, or of several of one shape: which data was used."""
    shape = (*([len(parts)] if len(parts) > 1 else []), *parts[0].shape)
    digest = hashlib.sha256(str(shape).encode())
    for images in parts:
        for some in images.split(256):  # which may be more than memory holds
            digest.update(some.contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]
