r"""Photographs from anywhere as one uint8 tensor (N, 3, size, size).

Sources: "embedded" (photographs inside scikit-image and scikit-learn), a folder or zip of images,
parquet in the hub's format (a file or a folder of shards), or a hub id such as
"korexyz/celeba-hq-256x256". Whatever is larger than `size` is cropped to its central square and
resized with Pillow's Lanczos filter, which is antialiased; 64 x 64 images pass unchanged.
"""

import contextlib
import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from i2sb_lib.files import atomic_write
from i2sb_lib.images import SUFFIXES, open_image, to_tensor

EMBEDDED_TRAIN = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "china.jpg")
EMBEDDED_TEST = ("astronaut.png", "flower.jpg")  # whole photographs held out, not crops of others
HUB_REVISIONS = {"korexyz/celeba-hq-256x256": "42078a1fb27b6079eaab8cf453efd3d79a8b7bda"}
_FORMAT = "lanczos-1"  # part of the cache key: change it when preparation changes


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
    return {f.name: open_image(f).convert("RGB") for f in files}


def _crops(split: str, size: int) -> Iterator[tuple[str, Image.Image]]:
    """Every crop of the embedded photographs on a grid, at half and quarter scale (train: also full).

    Train crops overlap by half; test crops do not.
    """
    for name, photo in embedded_photographs(split).items():
        for scale in (1, 2, 4) if split == "train" else (2, 4):
            small = photo.resize((photo.width // scale, photo.height // scale), Image.Resampling.LANCZOS)
            step = size // 2 if split == "train" else size
            for top in range(0, small.height - size + 1, step):
                for left in range(0, small.width - size + 1, step):
                    where = f"{name}/{scale}@{left},{top}"
                    yield where, small.crop((left, top, left + size, top + size))


def _of_split(names: list[str], split: str | None, source: str) -> list[int]:
    """Positions of one split's files, by the first part of each name that starts with a split's name.

    The split that is asked for, or the only one, or test, or validation; all files of a source without
    splits, which is training data unless nothing is asked for.
    """
    parts = [re.findall(r"(?:^|/)(train|val|valid|validation|test)(?=$|[-_./])", n, re.I) for n in names]
    tags = ["validation" if p and p[0][:3].lower() == "val" else p[0].lower() if p else None for p in parts]
    known = {tag for tag in tags if tag}
    if not known:
        if split not in (None, "train"):
            raise ValueError(f"{source}: expected split {split!r}, got no splits: leave it out to take all")
        return list(range(len(names)))
    wanted = [split] if split else [*(known if len(known) == 1 else []), "test", "validation"]
    found = next((w for w in wanted if w in known), None)
    if found is None:
        raise ValueError(f"{source}: expected split {split or 'test'!r}, got splits {sorted(known)}")
    return [i for i, tag in enumerate(tags) if tag == found]


def is_image(name: str) -> bool:
    """Whether a file's name says so: its suffix, and not a Mac's shadow of another file."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._") and "__MACOSX" not in path.parts


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _from_bytes(data: bytes, name: str) -> tuple[str, Image.Image]:
    stream = io.BytesIO(data)
    stream.name = name
    return name, open_image(stream)


def _parquet(files: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    for file in files:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if "image" not in table.schema_arrow.names:
                raise pyarrow.ArrowInvalid(f'a column "image" is not among {table.schema_arrow.names}')
            batches = table.iter_batches(64, columns=["image"])
            rows = (row.as_py()["bytes"] for batch in batches for row in batch.column(0))
            for i, data in enumerate(rows):
                yield _from_bytes(data or b"", f"{file} row {i}")
        except (pyarrow.ArrowException, OSError, TypeError, KeyError) as error:
            raise ValueError(f"{file}: expected parquet in the hub's format, got: {error}") from None


def _zip(path: Path, split: str | None) -> Iterator[tuple[str, Image.Image]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(filter(is_image, archive.namelist()))
            for i in _of_split([_folder(name) for name in names], split, str(path)):
                yield _from_bytes(archive.read(names[i]), f"{path}/{names[i]}")
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(f"{path}: expected a complete zip file, got: {error}") from None


def _download(source: str) -> Path:
    """The hub's parquet files of a data set; files already here are not fetched again."""
    from huggingface_hub import snapshot_download

    try:
        revision = HUB_REVISIONS.get(source)
        pattern = "*.parquet"
        return Path(snapshot_download(source, repo_type="dataset", revision=revision, allow_patterns=pattern))
    except Exception as error:  # the hub's client has no common base class for its errors
        raise ValueError(f"{source}: expected a file, a folder or a reachable hub id: {error}") from None


def _open_source(source: str, split: str | None) -> tuple[list[Path], Iterator[tuple[str, Image.Image]]]:
    """(files whose bytes are the content, their names and images, opened as they are asked for)."""
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        path = _download(source)
    if path.is_dir():
        if shards := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
            shards = [shards[i] for i in _of_split([f.name for f in shards], split, source)]
            return shards, _parquet(shards)
        files = sorted(f for f in path.rglob("*") if is_image(f.name) and f.is_file())
        places = [_folder(f.relative_to(path).as_posix()) for f in files]
        files = [files[i] for i in _of_split(places, split, source)]
        return files, ((str(f), open_image(f)) for f in files)
    if path.suffix in (".parquet", ".zip") and path.is_file():
        return [path], _parquet([path]) if path.suffix == ".parquet" else _zip(path, split)
    raise ValueError(f"{source}: expected a folder, a .zip or a .parquet file, got none there")


def _content_key(files: list[Path], size: int, split: str | None) -> str:
    inside = f":{split}" if files and files[0].suffix == ".zip" else ""  # elsewhere a split is its files
    digest = hashlib.sha256(f"{_FORMAT}:{size}{inside}".encode())
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


def load_images(source: str, split: str | None = None, size: int = 64, progress: bool = True) -> Tensor:
    """All images of a source as uint8 (N, 3, size, size), in a fixed order.

    source: see the module's first lines. split: "train", "validation" or "test"; None takes the
    only split there is, else test, else validation ("embedded": test). Files are prepared once and
    kept in `cache_dir()` under a hash of their content; a cache file is complete or absent.
    Raises ValueError naming the file that is corrupt, too small or missing, and for no images.
    """
    if source == "embedded":
        files: list[Path] = []
        images = _crops(split or "test", size)
    else:
        files, images = _open_source(str(source), split)
    cached = cache_dir() / f"{_content_key(files, size, split)}.safetensors"
    if files and cached.exists():
        with contextlib.suppress(SafetensorError):  # a damaged cache is made again
            return load_file(cached)["images"]
    bar = tqdm(images, desc="preparing images", unit="image", disable=None if progress else True)
    pixels = [fit(image, size, where) for where, image in bar]
    if not pixels:
        raise ValueError(f"{source}: expected images ({', '.join(SUFFIXES)}), got none")
    stacked = torch.stack(pixels)
    if files:
        atomic_write(cached, lambda path: save_file({"images": stacked}, path))
    return stacked


def fingerprint(images: Tensor) -> str:
    """Short hash of a uint8 tensor's shape and pixels: which data a result was made with."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
