"""Mutated pictures, zips, parquet files and checkpoints: each is read, or refused in one sentence.

Every file is a sound one with some bytes changed, cut out, doubled or taken from another file; numbers in
headers go to their extremes, and half of the PNG files get new checksums. A worker opens them one by one. A
fault is any other exception than ValueError or one with several lines, memory that ran out, LIMIT seconds of
its processor, a crash, and anything that it writes outside its folder, starts or connects to. Prints a
table, writes it as JSON and leaves the files at fault in --work; exits with 1 where there is one.

    python benchmarks/fuzz.py [--quick] [--seed 0] [--work runs/fuzz] [--out data/runs/fuzz/fuzz.json]
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageCms

from i2sb_lib import load_images, load_pretrained
from i2sb_lib.checkpoints import save_pretrained
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import open_image, to_tensor

LIMIT = 10.0  # seconds of processor time for one file
PATIENCE = 120.0  # seconds after which a worker that does not answer is taken to hang
MEMORY = 8 * 2**30  # bytes of address space for a worker
CLAIMS = 0.002  # share of the pictures whose header claims to be huge
MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "jpeg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P"),
    "bmp": ("1", "L", "P", "RGB"),
    "ppm": ("1", "L", "RGB"),
    "avif": ("RGB", "RGBA"),
    "mpo": ("RGB",),
}


def picture(seed: int) -> Image.Image:
    """31 x 23 pixels: a smooth picture with some noise."""
    y, x = np.mgrid[:23, :31][..., None]
    random_ = np.random.default_rng(seed)
    waves = 127 + 90 * np.sin(x * random_.uniform(0.1, 0.9, 3) + y * random_.uniform(0.1, 0.9, 3))
    return Image.fromarray((waves + random_.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    deep = np.array(image.convert("L")).astype(np.uint16) * 257
    return Image.fromarray(deep) if mode == "I;16" else image.convert(mode)


@cache
def pictures() -> list[tuple[str, bytes]]:
    """Sound pictures of every kind that is opened, with and without tags, profiles and several frames."""
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[274], exif[282], exif[270] = 6, 72.0, "a picture"
    exif.get_ifd(34665)[37500] = b"maker" * 9
    how: dict[str, list[dict[str, Any]]] = {kind: [{}] for kind in MODES}
    for kind in ("png", "jpeg", "webp", "tiff", "avif"):
        how[kind].append({"exif": exif, "icc_profile": profile})
    for kind in ("gif", "webp", "png", "tiff", "avif", "mpo"):
        how[kind].append({"save_all": True, "append_images": True})
    how["jpeg"].append({"progressive": True, "quality": 30})
    how["tiff"] += [{"compression": c} for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits")]
    how["png"].append({"transparency": 0})
    files = []
    for kind, modes in MODES.items():
        for mode in modes:
            for options in how[kind]:
                stream, (first, *more) = io.BytesIO(), (in_mode(picture(i), mode) for i in range(3))
                try:
                    several = {"append_images": more} if "append_images" in options else {}
                    first.save(stream, kind, **options | several)
                except (ValueError, OSError, TypeError, struct.error):  # not in this mode
                    continue
                files.append((kind, stream.getvalue()))
    return files


@cache
def archives() -> list[tuple[str, bytes]]:
    """Sound zip and parquet files of three pictures."""
    files = []
    data = [next(d for k, d in pictures() if k == kind) for kind in ("png", "jpeg", "bmp")]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for i, content in enumerate(data):
                archive.writestr(f"{'train' if i else 'test'}/{i}.png", content)
        files.append(("zip", stream.getvalue()))
    rows: list[Any] = [pa.array([{"bytes": d, "path": "a.png"} for d in data]), pa.array(data)]
    for codec in ("none", "snappy", "gzip", "zstd"):
        for column in rows:
            stream = io.BytesIO()
            pq.write_table(pa.table({"image": column, "label": [1, 2, 3]}), stream, compression=codec)
            files.append(("parquet", stream.getvalue()))
    return files


@cache
def checkpoint() -> dict[str, bytes]:
    """The files of a small sound checkpoint."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder), Denoiser(ModelConfig(network="unet-tiny")), {"training": {}, "step": 1})
        return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
VALUES = [-1, 0, 3, 1e308, 2**20, 2**40, "", "../../outside.safetensors", "/etc/hostname", "a\0b"]
VALUES += [None, [], {}, True]


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to eight changes, half of them in the first 512 bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if not out:
            break
        end = len(out) if rng.random() < 0.5 else min(512, len(out))
        at, length = rng.randrange(end), rng.choice((1, 2, 4, 16, 100))
        what = rng.randrange(9)
        if what < 2:
            out[at] ^= 1 << rng.randrange(8)
        elif what < 5:
            number = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
            width = rng.choice((1, 2, 4))
            out[at : at + width] = number[:width] if rng.random() < 0.5 else number[-width:]
        elif what == 5:
            del out[at : at + length]
        elif what == 6:
            out[at:at] = out[at : at + length]
        elif what == 7:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            out[at : at + length] = other[start : start + length]
        elif rng.random() < 0.3:
            del out[at:]
    return with_checksums(bytes(out)) if rng.random() < 0.5 else bytes(out)


def claim(data: bytes, size: int = 11_500) -> bytes:
    """A picture whose header claims almost as many pixels as are decoded, wherever it says 31 x 23."""
    for order in "<>":
        for kind in ("II", "HH"):
            for sides in ((31, 23), (23, 31), (30, 22)):
                old = struct.pack(order + kind, *sides)
                new = struct.pack(order + kind, *(2 * [size - (sides[0] == 30)]))
                if old in data[:600]:
                    return data.replace(old, new, 1)
    return data


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums of what they hold; other files as they are."""
    out, at = bytearray(data), 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + size > len(data):
            break
        checksum = zlib.crc32(data[at + 4 : at + 8 + size])
        out[at + 8 + size : at + 12 + size] = checksum.to_bytes(4, "big")
        at += 12 + size
    return bytes(out)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """One value somewhere inside replaced by one of VALUES, or removed."""
    content = json.loads(data)
    at = content
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        if rng.random() < 0.1:
            del at[key]
        else:
            at[key] = rng.choice(VALUES)
        return json.dumps(content).encode()


def case(kind: str, seed: int, index: int) -> tuple[str, dict[str, bytes]]:
    """(what it was, files by name) of one mutated input."""
    rng = random.Random(f"{kind} {seed} {index}")
    if kind == "checkpoint":
        files = dict(checkpoint())
        name = rng.choice(sorted(files))
        if name == "model.json" and rng.random() < 0.7:
            files[name] = mutated_json(files[name], rng)
        else:
            files[name] = mutate(files[name], rng, [checkpoint()["model.json"], files[name]])
        return kind, files
    sound = pictures() if kind == "picture" else [f for f in archives() if f[0] == kind]
    what, data = rng.choice(sound)
    suffix = what if kind == "picture" else kind
    if kind == "picture" and rng.random() < CLAIMS:
        return what, {f"a.{suffix}": with_checksums(claim(data))}
    return what, {f"a.{suffix}": mutate(data, rng, [d for _, d in sound])}


def judge(kind: str, folder: Path) -> tuple[str, str]:
    """("read" or "refused", the sentence), or ("fault", what is wrong with it)."""
    file = next(folder.iterdir())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "picture":
                to_tensor(open_image(file))
            elif kind == "checkpoint":
                load_pretrained(folder, "cpu")
            else:
                load_images(file, size=16, progress=False)
    except ValueError as error:
        text = str(error)
        memory = "memory" in text.lower() or "alloc" in text.lower()
        kinds = {"several lines": "\n" in text, "memory": memory, "no name": str(folder) not in text}
        wrong = [name for name, found in kinds.items() if found]
        return ("fault", f"{wrong[0]}: {text}") if wrong else ("refused", text)
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"
    return "read", ""


def _listen(allowed: Path, said: list[str]) -> None:
    """Note whatever this process writes outside a folder, starts or connects to."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changing = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "socket.connect"):
            said.append(f"{event} {args[:2]}")
        elif event in changing or (event == "open" and isinstance(args[2], int) and args[2] & writing):
            path = args[0]
            if isinstance(path, str | os.PathLike):
                place = Path(os.path.abspath(os.fspath(path)))
                if allowed not in place.parents and not str(place).startswith("/dev/"):
                    said.append(f"{event} {place}")

    sys.addaudithook(hook)


def work(pipe: Any, folder: str, seed: int) -> None:
    """The worker: for each (kind, index), (verdict, text, what it was, seconds, peak megabytes)."""
    import resource

    here = Path(folder)
    os.environ["I2SB_CACHE"], sys.dont_write_bytecode = str(here / "cache"), True
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outside: list[str] = []
    pictures(), archives(), checkpoint()
    _listen(here, outside)
    while (job := pipe.recv()) is not None:
        kind, index = job
        what, files = case(kind, seed, index)
        place = here / kind
        place.mkdir(exist_ok=True)
        for old in place.iterdir():
            old.unlink()
        for name, data in files.items():
            (place / name).write_bytes(data)
        started = time.process_time()
        verdict, text = judge(kind, place)
        seconds = time.process_time() - started
        if outside:
            verdict, text = "fault", f"outside: {outside}"
            outside.clear()
        if seconds > LIMIT:
            verdict, text = "fault", f"slow: {seconds:.1f} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        pipe.send((verdict, text, what, seconds, peak))


class Worker:
    """A process that opens one file at a time, and a new one where that crashed or hangs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.process = folder, seed, None

    def __call__(self, kind: str, index: int) -> tuple[str, str, str, float, int]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, far = context.Pipe()
            self.process = context.Process(target=work, args=(far, str(self.folder), self.seed), daemon=True)
            self.process.start()
            far.close()
        self.pipe.send((kind, index))
        try:
            if self.pipe.poll(PATIENCE):
                return self.pipe.recv()
            text = f"no answer in {PATIENCE:.0f} s"
        except (EOFError, OSError):
            text = "crash"
        self.process.kill()
        code = self.stop()
        return "fault", f"{text} (exit code {code})", kind, PATIENCE, 0

    def stop(self) -> int | None:
        """End the process; its exit code."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a thirtieth of the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    counts = {"picture": 10_000, "zip": 700, "parquet": 600, "checkpoint": 700}
    table: dict[str, dict[str, Any]] = {}
    faults: list[dict[str, Any]] = []
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder), args.seed)
        for kind, count in counts.items():
            row = table[kind] = {"files": count // (30 if args.quick else 1)}
            row |= {"read": 0, "refused": 0, "fault": 0}
            slowest: tuple[float, int, str] = (0.0, 0, "")
            for index in range(row["files"]):
                verdict, text, what, seconds, peak = worker(kind, index)
                row[verdict] += 1
                row["peak_mb"] = max(row.get("peak_mb", 0), peak)
                slowest = max(slowest, (seconds, index, what))
                if verdict == "fault":
                    faults.append({"kind": kind, "what": what, "index": index, "text": text[:500]})
                    print(f"{kind} {index} ({what}): {text[:300]!r}", flush=True)
                    for name, data in case(kind, args.seed, index)[1].items():
                        (args.work / f"{kind}-{index}-{name}").write_bytes(data)
            row["slowest"] = {"seconds": round(slowest[0], 3), "index": slowest[1], "what": slowest[2]}
            print(f"{kind:>10}  {row}", flush=True)
        worker.stop()
    versions = {"torch": torch.__version__, "pillow": PIL.__version__, "pyarrow": pa.__version__}
    record = {"seed": args.seed, "git_commit": git_commit(), "versions": versions}
    record |= {"kinds": table, "faults": faults}
    if args.out:
        atomic_write(args.out, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
