"""Images, alone or in folders: read, worked on in batches of one size, written where nothing is lost."""

import contextlib
import json
import math
import os
import sys
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from i2sb_lib.console import explain
from i2sb_lib.faults import Notice, check_writable
from i2sb_lib.files import is_special, same
from i2sb_lib.images import MAX_BYTES, OPAQUE, SUFFIXES, is_ours, open_image, save_image, to_float, to_tensor

GROUP = 2**18  # pixels of one batch, or a single image: 64 of 64 x 64
HELD = 2**22  # pixels that wait for others of their size
# the records of our runs and evaluations: what each says, and the picture that is drawn beside it
_RECORDS = {"state.pt": "config ema pending fingerprint", "model.json": "model shards record"}
_RECORDS |= dict.fromkeys(("metrics.json", "metrics.partial.json"), "checkpoint git_commit results seed")
_SHEETS = {name: ("restored" if "metrics" in name else "contact_sheet") + ".png" for name in _RECORDS}


@contextlib.contextmanager
def _named(names: list[str]) -> Iterator[None]:
    """Inside, what the library warns of is said of these images, also where the work then fails."""
    said, of = list[warnings.WarningMessage](), names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", Notice)
            yield
    finally:
        for one in said:
            text = f"{of}: {one.message}" if issubclass(one.category, Notice) else one.message
            warnings.warn_explicit(text, one.category, one.filename, one.lineno)


class Job(NamedTuple):
    """An image's file, its name in the source, its result's file, and of what that is one, once read."""

    file: Path
    name: str
    out: Path
    making: str | None = None


Work = Callable[[Tensor, list[str]], Tensor]


def seed_of(seed: int, name: str) -> int:
    """The seed of an image's own randomness, from its file's name: alone, in a folder and in any batch."""
    return seed + zlib.crc32(same(PurePosixPath(name).name).encode("utf-8", "surrogateescape"))


def _key(path: Path) -> tuple[int, int]:
    """What a file is, whatever it is called: links and names in other cases have the same key."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _within(inner: Path, outer: Path) -> bool:
    """Whether `inner`, which need not exist, is `outer` or lies inside it, links followed."""
    whole = real(inner)
    return outer.exists() and any(p.exists() and p.samefile(outer) for p in (whole, *whole.parents))


_TOOLS = ("@eaDir", "__MACOSX", "#recycle", "@Recycle", "$RECYCLE.BIN")


def real(path: Path) -> Path:
    """Where a path leads, through its links; a link that leads to itself is where it is."""
    return Path(os.path.realpath(path))


def is_hidden(name: str) -> bool:
    """Whether a part of a path is a tool's own: starts with a dot, or holds thumbnails, shadows or waste."""
    return any(p.startswith(".") or p in _TOOLS for p in PurePosixPath(name).parts)


def ours(folder: Path) -> set[str]:
    """Names of what a run or an evaluation of ours keeps there: known by what its records say."""
    names = set[str]()
    for file in (folder / name for name in _RECORDS if os.path.isfile(folder / name)):
        with contextlib.suppress(Exception):  # whatever else it is, it is not ours
            if file.suffix == ".pt":  # of which no tensor is read
                content = torch.load(file, map_location="meta", weights_only=True, mmap=True)
            else:  # which is not large
                content = json.loads(file.read_bytes()) if file.stat().st_size < 10**7 else {}
            if content.keys() >= {*_RECORDS[file.name].split()}:
                names |= {file.name, _SHEETS[file.name], "history.json"}
    return names


def list_images(
    folder: Path, exclude: Path | None = None, suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[list[Path], Counter[str]]:
    """Image files in a folder and below, sorted, and how many other files there are of each suffix.

    Linked folders are followed, each real folder once and none above `folder`. Left out without a count:
    what `is_hidden`, the folder `exclude`, and the sheets and records of our own runs.
    """
    files, skipped, todo = [], Counter[str](), deque([folder])
    seen = {*real(folder).parents, *([real(exclude)] if exclude else [])} - {real(folder)}
    while todo:
        here = todo.popleft()
        if real(here) in seen:
            continue
        seen.add(real(here))
        try:
            inside = [p for p in sorted(here.iterdir()) if not is_hidden(p.name)]
        except OSError:
            skipped["unreadable folder"] += 1
            continue
        made = ours(here)
        for path in inside:
            if path.is_dir():  # real ones first: a folder that is also linked is listed under its own name
                (todo.append if path.is_symlink() else todo.appendleft)(path)
            elif is_special(path):
                skipped["pipe or device"] += 1
            elif path.suffix.lower() not in suffixes:
                skipped[path.suffix.lower() or "no suffix"] += not made
            elif path.name not in made:
                files.append(path)
    return sorted(files), +skipped


def tally(skipped: Counter[str]) -> str:
    """The second value of `list_images` in words: "3 other files (.gif 2, no suffix 1)"."""
    count, kinds = skipped.total(), ", ".join(f"{kind} {n}" for kind, n in sorted(skipped.items()))
    return f"{count or 'no'} other file{'s' * (count != 1)}" + f" ({kinds})" * bool(skipped)


def _images(source: Path, exclude: Path) -> list[Path]:
    """The image that a source is, or those of a folder and not of `exclude`; ValueError where it has none."""
    if not source.is_dir():
        return [source]
    files, skipped = list_images(source, exclude if _within(exclude, source) else None)
    if skipped:
        print(f"i2sb: {source}: skipped {tally(skipped)}", file=sys.stderr)
    if not files:
        raise ValueError(f"{source}: expected images ({', '.join(SUFFIXES)}), got none")
    return files


def _making(by: str, file: Path) -> str | None:
    """What a command's result of an image is one of, wherever that lies; None where it cannot be read."""
    with contextlib.suppress(OSError):
        if file.is_file():
            with file.open("rb") as opened:
                return f"{by} {zlib.crc32(opened.read(MAX_BYTES)):08x}"
    return None


def _lost(out: Path, by: str, file: Path, originals: set[tuple[int, int]]) -> str:
    """What a result would be written over; empty where that is nothing, or a result that may be made anew."""
    source = out.exists() and _key(out) in originals
    if out.is_symlink() and not source:
        return f"link, got {out} there"
    if not out.exists() or (not source and os.access(out, os.W_OK) and is_ours(out, _making(by, file))):
        return ""
    unmarked = out.suffix.lower() in (".bmp", ".ppm") and not source
    how = f", and no {out.suffix} tells if it is one: delete it, or choose another target" * unmarked
    if is_ours(out) and not source:
        made = "which another command or picture, or this one before it was edited, made: delete it to go on"
        return f"other result, got {out} there, {made}"
    return f"original, got {out} there{how}"


def plan(sources: Sequence[str | Path], target: str, by: str, channels: int = 3) -> list[Job]:
    """What is made of each source, an image or all of a folder, by the command of that name.

    A target is a folder where it is one, ends in a slash or has no suffix; of several sources it has to be
    one. A result goes by its image's name, with .png behind it where that suffix cannot be written, or hold
    opacity; beside other sources a folder's results go to a folder of its name. What was skipped, and that
    results lie inside their source, is said on stderr. Raises ValueError where there is no image, where the
    target cannot be, where two results would have one name, and where a result would fall on a source, or on
    a file that is no result of this command and the same picture, wherever that lies.
    """
    for name, what in [*((s, "source") for s in sources), (target, "target")]:
        if not str(name):  # a shell's variable that is not set
            raise ValueError(f"expected an image or a folder as the {what}, got an empty name")
    place, paths = Path(target), [Path(s) for s in sources]
    if ".." in place.parts:  # new/../a.png is a.png, also while there is no new
        place = real(place)
    for name, source in zip(sources, paths, strict=True):
        if not source.exists():
            raise ValueError(f"expected an image or a folder at {name}, got nothing there")
    single = len(paths) == 1 and not paths[0].is_dir()
    named = place.suffix.lower() in SUFFIXES
    takes = [s for s in SUFFIXES if channels < 4 or s not in OPAQUE]
    new = not place.exists() and not named and not (single and place.suffix)
    folder = place.is_dir() or target.endswith(("/", os.sep)) or new
    if not folder and not (single and named):
        what = f"a folder or an image ({', '.join(SUFFIXES)})" if single else "a folder"
        raise ValueError(f"expected {what} as the target, got {target}")
    found = [(source, _images(source, place)) for source in paths]
    originals, jobs = {_key(f) for _, files in found for f in files if f.exists()}, list[Job]()
    for source, files in found:
        own = Path(os.path.abspath(source)).name if source.is_dir() and len(paths) > 1 else ""
        for file in files:
            name = file.relative_to(source).as_posix() if source.is_dir() else file.name
            plain = name if file.suffix.lower() in takes else f"{name}.png"
            out = place / own / plain if folder else place
            if out.suffix.lower() not in takes:
                raise ValueError(f"{out}: expected a format that holds opacity, such as .png")
            if lost := _lost(out, by, file, originals):
                raise ValueError(f"expected a target that overwrites no {lost}")
            jobs.append(Job(file, name, out))
        if source.is_dir() and _within(place, source):
            if not all(map(is_ours, list_images(place)[0])):
                raise ValueError(f"expected a target without originals inside the source, got {place}")
            print(f"i2sb: as data, {source} holds what is written to {place}, too", file=sys.stderr)
    out, count = Counter(job.out for job in jobs).most_common(1)[0]
    if count > 1:
        raise ValueError(f"expected a file for each image, got {out} for {count} images")
    return jobs


@contextlib.contextmanager
def _noted(failed: dict[Path | str, str], file: Path | str) -> Iterator[None]:
    """Note what fails inside as this file's failure and go on; a fault of the program goes through."""
    try:
        yield
    except Exception as error:
        if (why := explain(error)) is None or isinstance(error, BrokenPipeError):
            raise
        failed[file] = why.removeprefix(f"{file}: ")


def each_image(sources: Sequence[str | Path], target: str, work: Work, by: str, channels: int = 3) -> None:
    """Run `work` on each source, an image or every image of a folder, and write the results as `plan` says.

    work: (images (B, C, H, W) in [-1, 1] of one size, their names) -> results (B, C, H', W'); a batch has
    at most GROUP pixels, or one image. The path of each result is printed when the file is whole. One
    image's failure leaves the others: ValueError tells the first at the end, stderr the rest; what all
    fail by is told once. Ctrl-C says on stderr how many were written before it.
    """
    jobs, written = plan(sources, target, by, channels), set[tuple[int, int]]()
    failed: dict[Path | str, str] = {}
    groups: dict[tuple[int, ...], list[tuple[Job, Tensor]]] = {}
    check_writable(jobs[0].out.parent)

    def finish(group: list[tuple[Job, Tensor]]) -> None:
        with _noted(failed if len(group) == 1 else {}, group[0][0].file):
            x, names = to_float(torch.stack([pixels for _, pixels in group])), [job.name for job, _ in group]
            with _named(names):
                done = work(x, names)
            for (job, _), y in zip(group, done, strict=True):
                with _noted(failed, job.file):
                    if job.out.exists() and _key(job.out) in written:
                        raise ValueError(f"expected a file for each image, got {job.out} for two images")
                    save_image(y, job.out, job.making)
                    written.add(_key(job.out))
                    with _noted(failed, "standard output"):
                        print(job.out)
            return
        for one in group if len(group) > 1 else []:  # which of them is it?
            finish([one])

    def size(shape: tuple[int, ...]) -> int:
        return len(groups[shape]) * math.prod(shape[-2:])

    try:
        for job in jobs:
            with _noted(failed, job.file):
                pixels = to_tensor(open_image(job.file, channels == 4), channels)
                read = job._replace(making=_making(by, job.file))
                groups.setdefault(pixels.shape, []).append((read, pixels))
                if size(pixels.shape) + math.prod(pixels.shape[-2:]) > GROUP:
                    finish(groups.pop(pixels.shape))
                elif sum(map(size, groups)) > HELD:
                    finish(groups.pop(max(groups, key=size)))
        for group in groups.values():
            finish(group)
    except KeyboardInterrupt:
        count = f"{len(written)} of {len(jobs)} images"
        print(f"i2sb: stopped: {count} were written to {target}", file=sys.stderr)
        raise
    if not written and len(reasons := set(failed.values())) == 1:
        failed = {sources[0] if len(sources) == 1 else f"{len(sources)} sources": reasons.pop()}
    first, *others = [f"{file}: {why}" for file, why in failed.items()] or [""]
    for line in others:
        print(f"i2sb: {line}", file=sys.stderr)
    if failed:
        raise ValueError(first + f"; {len(written)} of {len(jobs)} images were written" * (len(jobs) > 1))
