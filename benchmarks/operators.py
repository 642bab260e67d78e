"""How fast are the blur, its adjoint and its inverse, beside deepinv's? The same kernel and border, by size.

    ours     `GaussianBlur`: each axis times a matrix or, where that is large, the parts that are not zero;
             the inverse by its singular vectors, which are there after the first call
    deepinv  `Blur` with the same 7 x 7 kernel and reflection: one convolution of the plane, its transpose,
             and, for the inverse, conjugate gradients (`A_dagger`) to the accuracy that it has by default

They take turns, on one core, in float32, and what they give is compared. A batch has about the same number of
pixels at each size, one image at least. deepinv is in no extra of this project: `pip install deepinv`.

    python benchmarks/operators.py [--sizes 64 256 1024] [--rounds 5] [--quick]
"""

import importlib.metadata
import importlib.util
from functools import partial
from typing import Any

import torch
from timing import median, options, ratio, turns, write
from torch import Tensor

from i2sb_lib.data import fingerprint
from i2sb_lib.degradations import create_degradation
from i2sb_lib.images import psnr
from i2sb_lib.operators import Separable

LAM = 2e-4


def scene(side: int, count: int) -> Tensor:
    """Smooth pictures (count, 3, side, side) in [-1, 1]: sums of waves, rounded to 8 bits."""
    draw, at = torch.Generator().manual_seed(0), torch.arange(side) / 64
    x = torch.zeros(count, 3, side, side)
    for _ in range(12):
        a, b, phase = 20 * torch.rand(3, count, 3, 1, 1, generator=draw)
        x += (a * at[:, None] + b * at + phase).sin() / 12**0.5
    return (127.5 * x.clamp(-1, 1)).round() / 127.5


def row(side: int, rounds: int, pixels: int) -> dict[str, Any]:
    """Seconds of both for each operation, and how far apart the results are."""
    count = max(1, pixels // side**2)
    x = scene(side, count)
    import deepinv

    own = create_degradation("blur-gauss")
    assert isinstance(own, Separable)
    line = torch.exp(-(torch.arange(-3.0, 4) ** 2) / 8)
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2
    peer = deepinv.physics.Blur(filter=kernel, padding="reflect")
    y = own(x)
    calls: dict[str, Any] = {
        "blur": (partial(own.apply, x), partial(peer.A, x)),
        "adjoint": (partial(own.adjoint, y), partial(peer.A_adjoint, y)),
        "inverse": (partial(own.inverse, y, LAM), partial(peer.A_dagger, y)),
    }
    found: dict[str, Any] = {"side": side, "images": count}
    for name, (ours, theirs) in calls.items():
        seconds = turns(rounds if name != "inverse" else 1, ours=ours, deepinv=theirs)
        a, b = ours(), theirs()
        found[name] = {
            "seconds": {k: median(v) for k, v in seconds.items()},
            "times_as_fast": ratio(seconds, "deepinv", "ours"),
            "largest_difference": float((a - b).abs().max()),
        }
        if name == "inverse":
            for key, z in (("ours", a), ("deepinv", b)):
                found[name][f"psnr_{key}"] = float(psnr(z.clamp(-1, 1), x).mean())
    return found


def main() -> None:
    parser = options(__doc__, "operators")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--pixels", type=int, default=16 * 64**2, help="of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if importlib.util.find_spec("deepinv") is None:
        print("nothing to compare with: pip install deepinv")
        return
    if args.quick:
        args.sizes, args.rounds = [64], 1
    torch.set_num_threads(1)
    rows = []
    for side in args.sizes:
        rows.append(row(side, args.rounds, args.pixels))
        for name in ("blur", "adjoint", "inverse"):
            r = rows[-1][name]
            said = ", ".join(f"{k} {1000 * v:.2f} ms" for k, v in r["seconds"].items())
            print(f"{side:5}^2 {name:8} {said}: {r['times_as_fast']:.2f} times as fast, ", end="")
            print(f"differ by {r['largest_difference']:.1e}")
    config = {"sizes": args.sizes, "rounds": args.rounds, "pixels": args.pixels, "lam": LAM}
    data = {"source": "waves", "fingerprint": fingerprint(scene(64, 16))}
    packages = {"deepinv": importlib.metadata.version("deepinv")}
    write(args, config, data, packages=packages, results=rows)


if __name__ == "__main__":
    main()
