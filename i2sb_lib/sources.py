"""Where photographs come from: a folder, a zip, parquet in the hub's format, or the hub itself.

What is taken of a source, and what of it is left, is said in a warning. A picture that cannot be read is
the matter of whoever opens it; a source that cannot be read is one ValueError with its name.
"""

import io
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from i2sb_lib.images import SUFFIXES, is_hidden, list_images, open_image, tally

HUB_REVISIONS = {"korexyz/celeba-hq-256x256": "42078a1fb27b6079eaab8cf453efd3d79a8b7bda"}
MAX_BYTES = 2**30  # of a picture's file inside another

Pictures = Iterable[tuple[str, Callable[[], Image.Image]]]  # a name, and what opens the picture


def open_source(source: str, split: str | None) -> tuple[list[Path], Pictures]:
    """The files whose bytes are a source's content, and its pictures, opened as they are asked for.

    Raises ValueError where there is no such source, or no such split of it.
    """
    path = Path(source)
    here = path.exists() or ("/" in source and path.parent.is_dir())
    if not here and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        path = _download(source)
    kind = path.suffix.lower()
    if path.is_dir():
        files, skipped = list_images(path, suffixes=(*SUFFIXES, ".parquet"))
        shards = [f for f in files if f.suffix.lower() == ".parquet"]
        if 0 < len(shards) < len(files):
            got = f"got {len(files) - len(shards)} and {len(shards)}: give the folder that holds one kind"
            raise ValueError(f"{source}: expected either images or parquet files, {got}")
        if not shards:
            _say_left(source, skipped, bool(files))
            places = [f.relative_to(path).parent.as_posix() for f in files]
            files = [files[i] for i in _of_split(places, split, source)]
            return files, [(str(f), partial(open_image, f)) for f in files]
        names = [f.relative_to(path).as_posix() for f in shards]
        shards = [shards[i] for i in _of_split(names, split, source)]
        return shards, _parquet(shards)
    if kind == ".parquet" and path.is_file():
        _of_split([path.name], split, source)
        return [path], _parquet([path])
    if kind == ".zip" and path.is_file():
        return [path], _zip(path, split)
    raise ValueError(f"{source}: expected a folder, a .zip or a .parquet file, got none there")


def _say_left(source: str | Path, skipped: Counter[str], some: bool) -> None:
    if not some:
        but = f" but {tally(skipped)}" if skipped else ""
        raise ValueError(f"{source}: expected images ({', '.join(SUFFIXES)}), got none{but}")
    if skipped:
        warnings.warn(f"{source}: left out {tally(skipped)}", stacklevel=2)


def _of_split(names: list[str], split: str | None, source: str) -> list[int]:
    """Positions of one split's files, by the first part of each name that starts with a split's name.

    The split that is asked for, or the only one, or test, or validation; all files of a source without
    splits, which is training data unless nothing is asked for. There are splits only where every file
    belongs to one: beside others, a folder called train is a class of trains.
    """
    parts = [re.findall(r"(?:^|/)(train|val|valid|validation|test)(?=$|[-_./])", n, re.I) for n in names]
    tags = ["validation" if p and p[0][:3].lower() == "val" else p[0].lower() if p else "" for p in parts]
    counts = Counter(tags)
    outside, known = counts.pop("", 0), sorted(counts)
    if outside and len(known) > 1:
        raise ValueError(
            f"{source}: expected all files in splits, or none, got splits {known} and {outside} files "
            f"outside them, such as those of {names[tags.index('')]!r}"
        )
    if outside or not known:
        if split not in (None, "train"):
            raise ValueError(f"{source}: expected split {split!r}, got no splits: leave it out to take all")
        if known:
            one = f"{counts[known[0]]} under the name of {known[0]!r}, which is no split"
            warnings.warn(f"{source}: took all {len(names)} files, {one} beside the others", stacklevel=2)
        return list(range(len(names)))
    wanted = [split] if split else [*(known if len(known) == 1 else []), "test", "validation"]
    found = next((w for w in wanted if w in known), None)
    if found is None:
        raise ValueError(f"{source}: expected split {split or 'test'!r}, got splits {known}")
    if rest := ", ".join(f"{counts[k]} of {k!r}" for k in known if k != found):
        took = f"took the {counts[found]} files of split {found!r}, left {rest}"
        warnings.warn(f"{source}: {took}", stacklevel=2)
    return [i for i, tag in enumerate(tags) if tag == found]


def _from_bytes(name: str, read: Callable[[], bytes]) -> Image.Image:
    try:
        stream = io.BytesIO(read())
    except Exception as error:  # zipfile and its decompressors have no common base for their errors
        raise ValueError(f"{name}: expected an image, got something unreadable ({error})") from None
    stream.name = name
    return open_image(stream)


def _zip(path: Path, split: str | None) -> Pictures:
    """The pictures of a zip file. Names may be written with either slash."""

    def read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
        if info.file_size > MAX_BYTES:
            raise ValueError(f"{info.file_size} bytes, of at most {MAX_BYTES}")
        return archive.read(info)

    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise ValueError(f"{path}: expected a complete zip file, got: {error}") from None
    inside = [(i.filename.replace("\\", "/"), i) for i in archive.infolist()]
    seen = ((name, i) for name, i in inside if not (name.endswith("/") or is_hidden(name)))
    entries = sorted(seen, key=lambda entry: entry[0])
    kinds = [PurePosixPath(name).suffix.lower() for name, _ in entries]
    entries = [e for e, k in zip(entries, kinds, strict=True) if k in SUFFIXES]
    _say_left(path, Counter(k or "no suffix" for k in kinds if k not in SUFFIXES), bool(entries))
    places = [str(PurePosixPath(name).parent) for name, _ in entries]
    taken = (entries[i] for i in _of_split(places, split, str(path)))
    named = ((f"{path}/{name}", partial(read, archive, info)) for name, info in taken)
    return [(name, partial(_from_bytes, name, data)) for name, data in named]


def _parquet(files: list[Path]) -> Pictures:
    """The rows of parquet files: a column "image" of encoded pictures, bytes or a struct that holds them."""

    def bytes_of(row: Any) -> bytes:
        data = row.as_py()
        data = data["bytes"] if isinstance(data, dict) else data
        if data is None:
            raise ValueError("no bytes")
        return data

    for file in files:
        try:
            import pyarrow.parquet
            import pyarrow.types as types

            table = pyarrow.parquet.ParquetFile(file)
            columns = {c.name: c.type for c in table.schema_arrow}
            kind: Any = columns.get("image", pyarrow.null())
            if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if not (types.is_binary(kind) or types.is_large_binary(kind)):
                got = ", ".join(f"{name}: {of}" for name, of in columns.items())
                raise ValueError(f'a column "image" of encoded pictures is not among {got}')
            batches = table.iter_batches(64, columns=["image"])
            rows = (row for batch in batches for row in batch.column(0))
            for i, row in enumerate(rows):
                name = f"{file} row {i}"
                yield name, partial(_from_bytes, name, partial(bytes_of, row))
        except Exception as error:
            first = str(error).split("\n")[0]
            raise ValueError(f"{file}: expected parquet in the hub's format, got: {first}") from None


def _download(source: str) -> Path:
    """The hub's parquet files of a data set; files already here are not fetched again."""
    from huggingface_hub import snapshot_download

    try:
        revision = HUB_REVISIONS.get(source)
        pattern = "*.parquet"
        return Path(snapshot_download(source, repo_type="dataset", revision=revision, allow_patterns=pattern))
    except Exception as error:  # the hub's client has no common base class for its errors
        first = str(error).split("\n")[0]
        raise ValueError(f"{source}: expected a file, a folder or a reachable hub id: {first}") from None
