"""Error by time: where each training target fails, and what preconditioning repairs.

For rows of `search.py` that are trained, on its held-out photographs and at fixed times t: the error
of the denoiser D, and of the raw network F against the unit target F* = (x0 - base) / out that its
loss regresses, with that target's mean square and the cosine between the two. F = 0 is the untrained
network: its D is the base, whose error is out^2 times the mean square of F*.

Rows that are in the record already are kept.

    python benchmarks/per_t.py --data PATH [--work runs/search] [--out data/runs/per-t]
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from search import BASE, VARIANTS, Run
from torch import Tensor

from i2sb_lib.bridge import expand
from i2sb_lib.config import TrainConfig, config_hash
from i2sb_lib.data import fingerprint
from i2sb_lib.devices import device_name
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import to_float

NAMES = {
    **{"precond": "base", "eps": "eps", "x0": "x0", "precond, weight of eps": "weight of eps"},
    **{"precond, x1 not shown": "x1 not shown", "eps, x1 not shown": "x1 not shown, eps"},
}
TIMES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)


@torch.no_grad()
def at_time(run: Run, t: float, x0: Tensor, x1: Tensor, noise: Tensor) -> dict[str, float]:
    """Means over all pixels at one time: of |D - x0|^2, |F - F*|^2, F*^2, and the cosine of F and F*."""
    sums = torch.zeros(5, dtype=torch.float64)
    for clean, degraded, z in zip(x0.split(16), x1.split(16), noise.split(16), strict=True):
        times = torch.full((len(clean),), t, device=x0.device)
        xt = run.ema.bridge.q_sample(times, clean, degraded, z)
        s = run.ema.scalings(expand(times, xt))
        base = s.skip_t * xt + (s.skip_1 + s.skip_g) * degraded  # these rows are blind: g is x1
        with run.host.autocast():
            x0_hat = run.ema(xt, times, degraded)
        target, raw = (clean - base) / s.out, (x0_hat - base) / s.out
        terms = ((x0_hat - clean) ** 2, (raw - target) ** 2, target**2, raw * target, raw**2)
        sums += torch.stack([v.double().mean().cpu() for v in terms]) * len(clean) / len(x0)
    error, raw_error, target2, product, raw2 = sums.tolist()
    out2 = float(run.ema.scalings(torch.tensor([t])).out ** 2)
    values = {
        "error": error,
        "base_error": out2 * target2,
        "out2": out2,
        "raw_error": raw_error,
        "target": target2,
        "cosine": product / max((raw2 * target2) ** 0.5, 1e-12),
    }
    return {"t": t} | {name: float(f"{v:.5g}") for name, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded", help="training photographs, as for search.py")
    parser.add_argument("--out", type=Path, default=Path("data/runs/per-t"))
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="weights of the rows")
    args = parser.parse_args()
    path = args.out / "metrics.json"
    results: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    for name, row in NAMES.items():
        weights = args.work / f"{row}.pt"
        if not weights.exists():
            print(f"{name}: no weights at {weights}, train it with search.py first")
        if not weights.exists() or name in {result["name"] for result in results}:
            continue
        variant = next(v for v in VARIANTS if v.name == row)
        place = {"data": args.data, "out": str(args.work / row), "progress": False}
        run = Run(TrainConfig(**BASE | place | variant.changes), variant)
        run.ema.load_state_dict(torch.load(weights, map_location=run.device)["ema"])
        x0, x1 = run.pairs(to_float(run.held))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(x0.device)
        config = dataclasses.asdict(run.config) | {"data": Path(args.data).name, "out": row}
        values = [at_time(run, t, x0, x1, noise) for t in TIMES]
        print(f"{name:24s}" + " ".join(f"{v['error']:.5f}" for v in values), flush=True)
        results.append({"name": name, "config": config, "config_hash": config_hash(config), "values": values})
        images = {"images": len(x0), "fingerprint": fingerprint(run.held)}
        record = {
            "data": {"source": Path(args.data).name, **images},
            **{"seed": 0, "git_commit": git_commit(), "device": device_name(run.device)},
            "results": results,
        }
        atomic_write(path, lambda p, record=record: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
