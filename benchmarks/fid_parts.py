"""What does a restoration's FID consist of?

FID compares two sets: the squared distance of the means of their features, and a distance of their
covariances. Both are stated for the restorations of a walk, and for images between them and the originals x0:

    half           x0 + (x0_hat - x0) / 2
    low, high      x0 with the error of its low spatial frequencies alone, or of its high ones: of the
                   cosine transform's components those with k^2 + l^2 at most --cut^2, or the others
    JPEG q         x0, saved at quality q: how far a loss that nobody sees is, on this scale; the training
                   photographs were saved at 95
    other people   the first half of the originals against the second: what so few images cost by themselves

With the energy of error and restoration over that of x0, by eighths of the spatial frequencies.
Rows that are in the record are skipped.

    python benchmarks/fid_parts.py --data PATH [--walks celeba64-deblur:sde:1 celeba64-deblur:dbim:5:2]
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import config_hash
from i2sb_lib.data import cache_dir, fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float, to_uint8

WALKS = ["celeba64-deblur:sde:1", "celeba64-deblur:dbim:5:2", "celeba64-deblur-long:dbim:5:2:1e-2"]
BANDS = 8


def cosine(n: int) -> Tensor:
    """The orthonormal cosine transform (n, n) of n samples."""
    k = torch.arange(n, dtype=torch.float64)
    c = torch.cos(math.pi * (k + 0.5) * k[:, None] / n) * (2 / n) ** 0.5
    c[0] /= 2**0.5
    return c


def radius(n: int) -> Tensor:
    """(n, n): the spatial frequency (k^2 + l^2)^(1/2) of each component of `cosine`."""
    k = torch.arange(n, dtype=torch.float64)
    return (k[:, None] ** 2 + k**2).sqrt()


def within(x: Tensor, keep: Tensor) -> Tensor:
    """x (..., n, n) with those components of its cosine transform that `keep` (n, n) names."""
    c = cosine(x.shape[-1])
    return (c.T @ ((c @ x.double() @ c.T) * keep) @ c).to(x)


def spectrum(x: Tensor) -> Tensor:
    """Mean energy of the cosine components of x (..., n, n) in BANDS rings of one width, without corners."""
    n, c = x.shape[-1], cosine(x.shape[-1])
    energy = (c @ x.double() @ c.T).square().flatten(0, -3).mean(0)
    ring = (radius(n) / n * BANDS).long()
    return torch.stack([energy[ring == k].mean() for k in range(BANDS)])


def frechet(x: Tensor, y: Tensor) -> dict[str, float]:
    """FID of two sets, and its parts: of the means and of the covariances of the features."""
    fid = evaluate(x, y, ["fid"])["fid"].value
    means = []
    for z in (x, y):
        (file,) = (cache_dir() / "features").glob(f"{fingerprint(to_uint8(z))}-*-stat-fid-*.pt")
        means.append(torch.as_tensor(torch.load(file, weights_only=False)["mu"]).double())
    apart = float((means[0] - means[1]).square().sum())
    return {"fid": round(fid, 4), "means": round(apart, 4), "covariances": round(fid - apart, 4)}


def walk(row: str, x1: Tensor) -> Tensor:
    """x0_hat of MODEL:SAMPLER:NFE[:POWER[:CONSISTENCY]], as the ladder makes it."""
    name, sampler, nfe, *more = row.split(":")
    how = {"power": 1.0, "consistency": 0.0} | dict(zip(("power", "consistency"), map(float, more)))  # noqa: B905
    return load_pretrained(name).restore(x1, int(nfe), sampler, progress=True, **how)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="clean photographs")
    parser.add_argument("--walks", nargs="+", default=WALKS)
    parser.add_argument("--qualities", type=int, nargs="*", default=[95, 75])
    parser.add_argument("--cut", type=float, default=16.0, help="the highest of the low frequencies")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("data/runs/fid-parts"))
    args = parser.parse_args()
    clean = load_images(args.data)[: args.limit]
    x0 = to_float(clean)
    x1 = create_degradation("blur-gauss", quantise=True)(x0)
    file = args.out / "metrics.json"
    config = {"cut": args.cut, "bands": BANDS}
    content: dict[str, Any] = {
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "config": config,
        "config_hash": config_hash(config),
        "seed": 0,
        "device": device_name(auto_device()),
        "results": [],
    }
    if file.exists():
        content["results"] = json.loads(file.read_text())["results"]
    there = {r["row"] for r in content["results"]}

    def note(row: str, made: Callable[[], tuple[Tensor, Tensor]], **more: Any) -> None:
        if row in there:
            return
        start = time.monotonic()
        found = {"row": row, **frechet(*made()), **more, "git_commit": git_commit()}
        content["results"].append(found)
        content["git_commit"] = git_commit()
        atomic_write(file, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))
        said = "  ".join(f"{k} {found[k]:8.3f}" for k in ("fid", "means", "covariances"))
        print(f"{row:44} {said}  {time.monotonic() - start:.0f} s", flush=True)

    half = len(x0) // 2
    note("other people", lambda: (x0[:half], x0[half : 2 * half]), images=half)
    for q in args.qualities:
        note(f"JPEG {q}", lambda q=q: (create_degradation("jpeg", quality=q)(x0), x0))  # type: ignore[misc]
    low = radius(x0.shape[-1]) <= args.cut
    for row in args.walks:
        names = [row, *(f"{row}, {part}" for part in ("half", "low", "high"))]
        if there.issuperset(names):
            continue
        x = quantise(walk(row, x1))
        error = x - x0
        bands = {k: [round(float(v), 5) for v in spectrum(z) / spectrum(x0)] for k, z in
                 (("error", error), ("restored", x))}  # fmt: skip
        note(row, lambda x=x: (x, x0), spectrum=bands)  # type: ignore[misc]
        for name, part in zip(names[1:], (error / 2, within(error, low), within(error, ~low)), strict=True):
            note(name, lambda part=part: ((x0 + part).clamp(-1, 1), x0))  # type: ignore[misc]


if __name__ == "__main__":
    main()
