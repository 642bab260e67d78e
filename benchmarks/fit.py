"""Does `fit` know which pictures cannot be of its model's kind? The share of photographs that it warns of.

The model is told a Gaussian blur of sigma 2 and 8 bits. Of its own kind no picture should be warned of; of
another blur, of a JPEG and of noise every one.

    python benchmarks/fit.py --data PATH [--out data/runs/fit]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import device_name
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="photographs")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("data/runs/fit"))
    args = parser.parse_args()
    clean = load_images(args.data, None, 64)[: args.limit]
    model, rows = load_pretrained(MODEL, "cpu"), list[dict[str, Any]]()
    for name, parts in CASES.items():
        x1 = to_float(clean)
        for damage, options in parts:
            made = create_degradation(damage, quantise=True, **options)
            x1 = made(x1, torch.Generator().manual_seed(0))
        found = model.fit(x1)
        low, middle, high = (round(float(v), 3) for v in found.quantile(found.new_tensor([0.01, 0.5, 0.99])))
        warned = round(float((found > POSSIBLE).double().mean()), 4)
        rows.append({"row": name, "warned": warned, "fit": {"1%": low, "median": middle, "99%": high}})
        print(f"{name:20s} warned of {warned:7.2%}   fit {low:9.3f} {middle:9.3f} {high:9.3f}", flush=True)
    record = {
        "data": {"source": Path(args.data).name, "images": len(clean), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(torch.device("cpu")),
        "git_commit": git_commit(),
        "checkpoint": model.record,
        "above": POSSIBLE,
        "results": rows,
    }
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
