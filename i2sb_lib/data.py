r"""Photographs from anywhere as one uint8 tensor (N, 3, size, size).

Sources: "embedded" (photographs inside scikit-image and scikit-learn), a folder or zip of images,
parquet in the hub's format (a file or a folder of shards), or a hub id such as
"korexyz/celeba-hq-256x256". Whatever is larger than `size` is cropped to its central square and
resized with Pillow's Lanczos filter, which is antialiased; 64 x 64 images pass unchanged.
"""

import contextlib
import hashlib
import os
import warnings
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from i2sb_lib.files import atomic_write
from i2sb_lib.images import to_tensor
from i2sb_lib.progress import progress as shown
from i2sb_lib.sources import Pictures, open_source

EMBEDDED_TRAIN = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "china.jpg")
EMBEDDED_TEST = ("astronaut.png", "flower.jpg")  # whole photographs held out, not crops of others
_FORMAT = "lanczos-2"  # part of the cache key: change it when preparation changes


def cache_dir() -> Path:
    """Where prepared data sets live: $I2SB_CACHE, or ~/.cache/i2sb."""
    return Path(os.environ.get("I2SB_CACHE", Path.home() / ".cache" / "i2sb"))


def fit(image: Image.Image, size: int, name: str = "image") -> Tensor:
    """Central square of an image, resized (Lanczos) to uint8 (3, size, size).

    Raises ValueError where the image is smaller than `size`: enlarging would invent a clean image.
    """
    side = min(image.size)
    if side < size:
        raise ValueError(f"{name}: expected at least {size}x{size} pixels, got {image.size}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = to_tensor(image)
    if side == size:
        return pixels
    resized = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return to_tensor(resized.resize((size, size), Image.Resampling.LANCZOS))


def embedded_photographs(split: str) -> dict[str, Image.Image]:
    """The embedded photographs by file name; split "train" or "test" hold different photographs."""
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


def _crops(split: str, size: int) -> Pictures:
    """Every crop of the embedded photographs on a grid, at half and quarter scale (train: also full).

    Train crops overlap by half; test crops do not.
    """
    for name, photo in embedded_photographs(split).items():
        for scale in (1, 2, 4) if split == "train" else (2, 4):
            small = photo.resize((photo.width // scale, photo.height // scale), Image.Resampling.LANCZOS)
            step = size // 2 if split == "train" else size
            for top in range(0, small.height - size + 1, step):
                for left in range(0, small.width - size + 1, step):
                    square = (left, top, left + size, top + size)
                    yield f"{name}/{scale}@{left},{top}", partial(small.crop, square)


def _content_key(files: list[Path], size: int, split: str | None) -> str:
    inside = f":{split}" if files[0].suffix.lower() == ".zip" else ""  # elsewhere a split is its files
    digest = hashlib.sha256(f"{_FORMAT}:{size}{inside}".encode())
    for file in files:
        content = hashlib.sha256()
        with contextlib.suppress(OSError), file.open("rb") as stream:  # told with its name when it is opened
            while part := stream.read(2**20):
                content.update(part)
        digest.update(os.fsencode(file.name) + content.digest())
    return digest.hexdigest()[:24]


def load_images(
    source: str, split: str | None = None, size: int = 64, progress: bool = True, skip_corrupt: bool = False
) -> Tensor:
    """All images of a source as uint8 (N, 3, size, size), in a fixed order.

    source: see the module's first lines. split: "train", "validation" or "test"; None takes the
    only split there is, else test, else validation ("embedded": test). Files are prepared once and,
    where it can be written, kept in `cache_dir()` under a hash of their content; a cache file is
    complete or absent. skip_corrupt: leave out images that are damaged or too small, with a warning that
    lists them, instead of one ValueError that does. Raises ValueError for no images or no such split, too.
    """
    source, cached = str(source), None
    if source == "embedded":
        images = _crops(split or "test", size)
    else:
        files, images = open_source(source, split)
        cached = cache_dir() / f"{_content_key(files, size, split)}.safetensors"
        with contextlib.suppress(SafetensorError, OSError, KeyError):  # absent or damaged: it is made again
            return load_file(cached)["images"]
    pixels, bad = [], []
    for name, open_it in shown(images, desc="preparing images", unit="image", show=progress):
        try:
            pixels.append(fit(open_it(), size, name))
        except ValueError as error:
            bad.append(str(error))
        if len(bad) == 100 and not pixels:  # the source is another than was thought
            break
    if bad and not (skip_corrupt and pixels):
        count = f"{source}: {len(bad)} of {len(bad) + len(pixels)} images cannot be used: " if bad[1:] else ""
        raise ValueError(count + "; ".join(bad))
    if not pixels:
        raise ValueError(f"{source}: expected images of at least {size}x{size} pixels, got none")
    stacked = torch.stack(pixels)
    if bad:
        warnings.warn(f"{source}: left out {len(bad)} images: {'; '.join(bad)}", stacklevel=2)
    elif cached:
        try:
            atomic_write(cached, lambda path: save_file({"images": stacked}, path))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"{cached.parent}: cannot keep the prepared images there ({reason})", stacklevel=2)
    return stacked


def fingerprint(images: Tensor) -> str:
    """Short hash of a uint8 tensor's shape and pixels: which data a result was made with."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
