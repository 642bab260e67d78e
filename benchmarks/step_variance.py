"""Does it pay, on faces, to put back the variance that a step forgets?   [Bao et al. 2022]

A step of the walk forgets k0^2 Cov(X_0 | X_t, X_1). Its mean over pixels, V_t, is measured on training
photographs at each time of the grid, and k0^2 V_t is added to the variance of each step but the last, which
has none. The same network, noise and photographs without and with it.

    python benchmarks/step_variance.py --train PATH --data PATH [--out data/runs/step-variance]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import create_pair_maker
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import bootstrap, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float
from i2sb_lib.progress import progress
from i2sb_lib.samplers import generators


def left_open(model: Pretrained, x0: Tensor, x1: Tensor, t: float) -> float:
    """V_t: mean square of x0_hat - x0 over pixels, of states drawn at t."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    at, total = torch.full((len(x0),), t), 0.0
    xt = model.denoiser.bridge.q_sample(at, x0, x1, noise)
    for some in torch.arange(len(x0)).split(16):
        found = model.denoiser(xt[some], at[some], x1[some])
        total += float((found - x0[some]).square().sum())
    return total / x0.numel()


def walk(model: Pretrained, x1: Tensor, times: Tensor, extra: list[float], seed: int) -> Tensor:
    """`sample` with the variance k0^2 extra[n] more in step n."""
    step, out = model.denoiser.bridge.step(times[1:], times[:-1]), []
    drawn = generators(seed, len(x1))
    parts = list(torch.arange(len(x1)).split(16))
    for some in progress(parts, desc=f"{len(times) - 1} calls", unit="batches"):
        y = xt = x1[some]
        for n, t in enumerate(times[:-1].tolist()):
            x0_hat = model.denoiser(xt, torch.full((len(y),), t), y)
            xt = step.k0[n].float() * x0_hat + step.kt[n].float() * xt
            if n < len(times) - 2:
                std = float(step.std[n] ** 2 + step.k0[n] ** 2 * extra[n]) ** 0.5
                noise = [torch.randn(y.shape[1:], generator=drawn[i]) for i in some.tolist()]
                xt = xt + std * torch.stack(noise)
        out.append(xt.clamp(-1, 1))
    return torch.cat(out)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="training photographs")
    parser.add_argument("--data", required=True, help="photographs to restore")
    parser.add_argument("--checkpoint", default="celeba64-deblur-blind")
    parser.add_argument("--nfe", nargs="+", type=int, default=[3, 5, 10])
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("data/runs/step-variance"))
    args = parser.parse_args()

    model = load_pretrained(args.checkpoint, "cpu")
    degrade = create_pair_maker(model.record["training"])
    clean = load_images(args.data, None, 64)[: args.limit]
    x0, known = to_float(clean), to_float(load_images(args.train, "train", 64)[: args.limit])
    x1, seen = (quantise(degrade(x, torch.Generator().manual_seed(2**31))) for x in (x0, known))
    rows: list[dict[str, Any]] = []
    for nfe in args.nfe:
        times = model.denoiser.bridge.schedule.grid(nfe)
        v = [left_open(model, known, seen, t) for t in times[:-1].tolist()]
        found = {}
        for name, extra in (("plain", [0.0] * nfe), ("put back", v)):
            x = walk(model, x1, times, extra, seed=0)
            found[name] = evaluate(x, x0, ["psnr", "lpips"])
            values = {k: [round(w, 6) for w in m[:3]] for k, m in found[name].items()}
            rows.append({"nfe": nfe, "variance": name, **values})
            print(rows[-1], flush=True)
        change = {
            k: bootstrap(found["put back"][k].per_image - found["plain"][k].per_image)  # type: ignore[operator]
            for k in ("psnr", "lpips")
        }
        values = {k: [round(w, 6) for w in m[:3]] for k, m in change.items()}
        rows.append({"nfe": nfe, "variance": "put back minus plain", **values, "left open": v})
        print(rows[-1], flush=True)
    record = {
        "checkpoint": model.record,
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(model.device),
        "git_commit": git_commit(),
        "results": rows,
    }
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
