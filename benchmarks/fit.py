"""Does `fit` know which pictures cannot be of its model's kind? The share of photographs that it warns of.

The model is told a Gaussian blur of sigma 2 and 8 bits. Of its own kind no picture should be warned of; of
another blur, of a JPEG and of noise every one. Then, for blurs of many sigmas, what `estimate_sigma` says.

    python benchmarks/fit.py --data PATH [--out data/runs/fit]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import device_name
from i2sb_lib.estimation import estimate_sigma
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import to_float
from i2sb_lib.restoration import POSSIBLE

MODEL = "celeba64-deblur"
OWN: tuple[str, dict[str, float]] = ("blur-gauss", {})
CASES: dict[str, list[tuple[str, dict[str, float]]]] = {
    "its own": [OWN],
    **{f"sigma {s}": [("blur-gauss", {"sigma": s})] for s in (1.5, 1.75, 1.9, 2.1, 2.25, 2.5)},
    "uniform blur": [("blur-uniform", {})],
    **{f"its own, JPEG {q}": [OWN, ("jpeg", {"quality": q})] for q in (90, 95, 98)},
    **{f"its own, noise {s}": [OWN, ("noise", {"std": s})] for s in (0.002, 0.005, 0.01)},
    "no damage": [("none", {})],
}


AFTER: dict[str, list[tuple[str, dict[str, float]]]] = {
    "8 bits": [],
    "JPEG 90": [("jpeg", {"quality": 90})],
    "noise 0.01": [("noise", {"std": 0.01})],
}
TOLD = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0)


def degraded(clean: Tensor, parts: list[tuple[str, dict[str, float]]]) -> Tensor:
    """One damage after the other, each rounded."""
    x = to_float(clean)
    for damage, options in parts:
        x = create_degradation(damage, quantise=True, **options)(x, torch.Generator().manual_seed(0))
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="photographs")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--estimates", type=int, default=100, help="of so many photographs the sigma is told")
    parser.add_argument("--out", type=Path, default=Path("data/runs/fit"))
    args = parser.parse_args()
    clean = load_images(args.data, None, 64)[: args.limit]
    model, rows = load_pretrained(MODEL, "cpu"), list[dict[str, Any]]()
    for name, parts in CASES.items():
        found = model.fit(degraded(clean, parts))
        low, middle, high = (round(float(v), 3) for v in found.quantile(found.new_tensor([0.01, 0.5, 0.99])))
        warned = round(float((found > POSSIBLE).double().mean()), 4)
        rows.append({"row": name, "warned": warned, "fit": {"1%": low, "median": middle, "99%": high}})
        print(f"{name:20s} warned of {warned:7.2%}   fit {low:9.3f} {middle:9.3f} {high:9.3f}", flush=True)
    estimates = list[dict[str, Any]]()
    for after, parts in AFTER.items():
        for sigma in TOLD:
            x1 = degraded(clean[: args.estimates], [("blur-gauss", {"sigma": sigma}), *parts])
            found = estimate_sigma(x1)
            low, middle, high = (
                round(float(v), 3) for v in found.quantile(found.new_tensor([0.05, 0.5, 0.95]))
            )
            estimates.append(
                {"after": after, "sigma": sigma, "images": len(x1), "5%": low, "median": middle, "95%": high}
            )
            print(f"{after:12s} sigma {sigma:4.2f}   told {low:6.3f} {middle:6.3f} {high:6.3f}", flush=True)
    record = {
        "data": {"source": Path(args.data).name, "images": len(clean), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(torch.device("cpu")),
        "git_commit": git_commit(),
        "checkpoint": model.record,
        "above": POSSIBLE,
        "results": rows,
        "estimates": estimates,
    }
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
