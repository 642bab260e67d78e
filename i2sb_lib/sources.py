"""Where photographs come from: a folder, a zip, parquet in the hub's format, the hub itself, or one file.

What is taken of a source, and what of it is left, is said in a warning. A picture that cannot be read is
the matter of whoever opens it; a source that cannot be read is one ValueError with its name.
"""

import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from i2sb_lib.faults import extra, first_line, unreadable, warn
from i2sb_lib.files import is_special
from i2sb_lib.folders import is_hidden, list_images, tally
from i2sb_lib.images import MAX_BYTES, SUFFIXES, open_image

HUB_REVISIONS = {"korexyz/celeba-hq-256x256": "42078a1fb27b6079eaab8cf453efd3d79a8b7bda"}

Pictures = Iterable[tuple[str, Callable[..., Image.Image]]]  # a name, and what opens the picture (as RGBA)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # between separators, digits and changes of case
_SPLIT = re.compile(r"(?i)(?:train(?:ing|val)?|test(?:ing)?|val(?:id(?:ation)?)?)(?:set|[ab])?")
_SPLITS = {"tra": "train", "val": "validation", "tes": "test"}


def split_column(source: str) -> tuple[str, str]:
    """A source and the column of its parquet files: "image", or what stands behind a colon."""
    before, colon, column = source.rpartition(":")
    named = colon and before and not os.path.exists(source) and re.fullmatch(r"\w{2,}", column)
    return (before, column) if named else (source, "image")


def open_source(source: str, split: str | None) -> tuple[list[Path], Pictures]:
    """The files whose bytes are a source's content, and its pictures, opened as they are asked for.

    Raises ValueError where there is no such source, or no such split of it.
    """
    if not source:  # a shell's variable that is not set; Path would take the current folder
        raise ValueError("expected a source of images, got an empty name")
    source, column = split_column(source)
    path, kind = Path(source), Path(source).suffix.lower()  # os.path: a name may be too long for Path's own
    here = os.path.exists(path) or ("/" in source and os.path.isdir(path.parent))
    if not here and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        path = _download(source)
    if os.path.isdir(path):
        files, skipped = list_images(path, suffixes=(*SUFFIXES, ".parquet"))
        shards = sum(f.suffix.lower() == ".parquet" for f in files)
        if 0 < shards < len(files):
            got = f"got {len(files) - shards} and {shards}: give the folder of one kind"
            raise ValueError(f"{source}: expected either images or parquet files, {got}")
        _say_left(source, files, skipped)
        names = [f.relative_to(path).as_posix() for f in files]
        files = [files[i] for i in _of_split(names, split, source, folders=not shards)]
        return files, _parquet(files, column) if shards else [(str(f), partial(open_image, f)) for f in files]
    if kind == ".parquet" and os.path.isfile(path):
        _of_split([path.name], split, source)
        return [path], _parquet([path], column)
    if kind == ".zip" and os.path.isfile(path):
        return [path], _zip(path, split)
    if kind in SUFFIXES and os.path.isfile(path):
        _of_split([path.name], split, source, folders=True)
        return [path], [(source, partial(open_image, path))]
    none = f"got none {'there' if os.path.isabs(source) else f'at {os.path.abspath(source)}'}"
    got = f"got a file of another kind ({kind or 'no suffix'})" if os.path.exists(path) else none
    got = "got a pipe or a device" if is_special(path) else got
    raise ValueError(f"{source}: expected a folder, a .zip, a .parquet file or an image, {got}")


def _say_left(source: str | Path, files: list[Any], skipped: Counter[str]) -> None:
    """Warn of what is no image; ValueError where nothing is one."""
    if not files:
        but = f" but {tally(skipped)}" if skipped else ""
        raise ValueError(f"{source}: expected images ({', '.join(SUFFIXES)}), got none{but}")
    if skipped:
        warn(f"{source}: left out {tally(skipped)}")


def _split_of(name: str) -> str:
    """The split that a path names: that of its first part with the words of just one; "" for none."""
    for part in name.split("/"):
        found = {_SPLITS[word[:3].lower()] for word in _WORD.findall(part) if _SPLIT.fullmatch(word)}
        if len(found) == 1:
            return found.pop()
    return ""


def _of_split(files: list[str], split: str | None, source: str, folders: bool = False) -> list[int]:
    """Positions of one split's files, by the words of their names: X_train_HR, "Test images", valSet2.

    folders: by those of their folders alone.

    The split that is asked for, or the only one, or test, or validation; all files of a source without
    splits, which is training data unless nothing or "all" is asked for. There are splits only where every
    file belongs to one: beside others, a folder called train is a class of trains. Two splits beside
    others may be that or not: there test, validation or all has to be asked for.
    """
    names = [str(PurePosixPath(f).parent) for f in files] if folders else files
    counts = Counter(tags := [_split_of(n) for n in names])
    outside, known = counts[""], sorted(filter(None, counts))
    unclear = outside and len(known) > 1
    options = ", ".join(k for k in known if not (unclear and k == "train"))
    way = f"give one folder as the source, or, to evaluate, --split {options} or all"
    if unclear and split in (None, "train"):
        where = f"{outside} outside them, as in {names[tags.index('')]!r}: {way}"
        raise ValueError(f"{source}: expected all files in splits, or none, got splits {known} and {where}")
    if split == "all" or not known or (outside and not unclear):
        if split not in (None, "train", "all"):
            raise ValueError(f"{source}: expected split {split!r}, got no splits: leave it out to take all")
        alike = sorted(set(re.findall("train|test|val", " ".join(names).lower())))
        said = [f"{counts[k]} under the name of {k!r}, which is no split beside the others" for k in known]
        said += [f"though their names hold {' and '.join(alike)}: none is a split"] * (len(alike) > 1)
        inside = sorted({_split_of(PurePosixPath(f).name) for f in files if folders} - {""})
        words = " and ".join(inside)
        said += [f"though names of files hold {words}: only folders are splits"] * (len(inside) > 1)
        if said and split != "all":
            warn(f"{source}: took all {len(names)} files, {said[0]}")
        return list(range(len(names)))
    wanted = [split] if split else [*(known if len(known) == 1 else []), "test", "validation"]
    found = next((w for w in wanted if w in known), None)
    if found is None:
        raise ValueError(f"{source}: expected split {split or 'test'!r}, got splits {known}: {way}")
    if rest := ", ".join(f"{k or 'no split'!r} ({counts[k]})" for k in sorted(counts) if k != found):
        warn(f"{source}: took split {found!r} ({counts[found]}), left {rest}")
    return [i for i, tag in enumerate(tags) if tag == found]


def _from_bytes(name: str, read: Callable[[], bytes], alpha: bool = False) -> Image.Image:
    try:
        stream = io.BytesIO(read())
    except Exception as error:  # zipfile and its decompressors have no common base for their errors
        raise unreadable(name, "an image", error) from None
    stream.name = name
    return open_image(stream, alpha)


def _zip(path: Path, split: str | None) -> Pictures:
    """The pictures of a zip file. Names may be written with either slash."""

    def read(info: zipfile.ZipInfo) -> bytes:
        if info.file_size > MAX_BYTES:
            raise ValueError(f"{info.file_size} bytes, of at most {MAX_BYTES}")
        return archive.read(info)

    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise unreadable(path, "a complete zip file", error) from None
    entries = [(info.filename.replace("\\", "/"), info) for info in archive.infolist()]
    entries = [(name, info) for name, info in entries if name[-1:] != "/" and not is_hidden(name)]
    inside = dict(entries)
    if twice := [name for name, count in Counter(name for name, _ in entries).items() if count > 1]:
        what = f"{len(entries) - len(inside)} entries whose names come again later, as {twice[0]!r}"
        warn(f"{path}: left out {what}: the last is taken, as in unpacking")
    kinds = {name: PurePosixPath(name).suffix.lower() for name in sorted(inside)}
    names = [name for name, kind in kinds.items() if kind in SUFFIXES]
    _say_left(path, names, Counter(k or "no suffix" for k in kinds.values() if k not in SUFFIXES))
    taken = [names[i] for i in _of_split(names, split, str(path), folders=True)]
    return [(f"{path}/{n}", partial(_from_bytes, f"{path}/{n}", partial(read, inside[n]))) for n in taken]


def _parquet(files: list[Path], named: str) -> Pictures:
    """The rows of parquet files: a column of encoded pictures, bytes or a struct that holds them."""

    def bytes_of(row: Any) -> bytes:
        data = row.as_py()
        data = data["bytes"] if isinstance(data, dict) else data
        if data is None:
            raise ValueError("no bytes")
        return data

    with extra("train", "parquet"):
        import pyarrow.parquet
    for file in files:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            columns = {column.name: str(column.type) for column in table.schema_arrow}
            if not re.match(r"(large_)?binary|struct<.*\bbytes: (large_)?binary", columns.get(named, "")):
                raise ValueError(f'a column "{named}" of encoded pictures is not among {columns}')
            batches = table.iter_batches(64, columns=[named])
            for i, row in enumerate(row for batch in batches for row in batch.column(0)):
                name = f"{file} row {i}"
                yield name, partial(_from_bytes, name, partial(bytes_of, row))
        except Exception as error:
            raise unreadable(file, "parquet in the hub's format", error) from None


def _download(source: str) -> Path:
    """The hub's parquet files of a data set; files already here are not fetched again."""
    from huggingface_hub import snapshot_download

    how: dict[str, Any] = {"revision": HUB_REVISIONS.get(source), "allow_patterns": "*.parquet"}
    try:
        return Path(snapshot_download(source, repo_type="dataset", **how))
    except Exception as error:  # the hub's client has no common base class for its errors
        wanted = f"a file or a folder (got none at {os.path.abspath(source)}) or a reachable hub id"
        raise ValueError(f"{source}: expected {wanted}: {first_line(error)}") from None
