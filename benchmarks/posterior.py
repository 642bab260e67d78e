"""A sampler of the posterior that was never shown a pair: what knowing the operator alone is worth.

A diffusion of clean photographs is trained with a network, a budget and a recipe of the ladder's, on nothing
but the photographs: its input x1 is zero everywhere. To restore, each of its guesses is moved towards what
was seen, x0_hat + K (y - H x0_hat) with K = H^T (H H^T + lam_t)^-1 and lam_t = zeta s^2 / r_t^2. That is the
update of [Zhu et al. 2023, DiffPIR] and [Wang et al. 2023, DDNM+]: s^2 is the variance of rounding to 8 bits,
and r_t^2 that of the guess's error, measured on training photographs that were set aside. zeta and the noise
eta of the steps are chosen on those too, by LPIPS, for each number of calls.

    python benchmarks/posterior.py --train PATH --data PATH [--out data/runs/posterior] [--work PLACE]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib import train
from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import TrainConfig, config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import auto_precision, device_name
from i2sb_lib.evaluation import evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float
from i2sb_lib.operators import Separable
from i2sb_lib.samplers import generators, sample

BASE: dict[str, Any] = {"network": "unet-small", "batch_size": 16, "lr": 8e-4, "warmup": 100}
EVERY: dict[str, Any] = {"save_every": 200, "eval_every": 10**6, "process": "diffusion", "quantise": False}
ROUNDING = (2 / 255) ** 2 / 12  # variance of 8 bits' rounding, for pictures in [-1, 1]
ZETAS, ETAS, PART = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0.0, 1.0), 32


def blank(x0: Tensor) -> Tensor:
    """Nothing is seen: the network learns photographs alone."""
    return torch.zeros_like(x0)


class Sampler:
    """p(x0 | y) by a prior and an operator. errors: r_t^2 at the times of its walks."""

    def __init__(self, prior: Pretrained, blur: Separable) -> None:
        self.prior, self.blur, self.errors = prior, blur, dict[float, float]()
        kind = auto_precision(prior.device)
        how = {"dtype": torch.float16 if kind == "fp16" else torch.bfloat16, "enabled": kind != "no"}
        self.fast = torch.autocast(prior.device.type, **how)  # type: ignore[arg-type]

    def guess(self, xt: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t], without y."""
        with self.fast:
            return self.prior.denoiser(xt, t, torch.zeros_like(xt))

    @torch.no_grad()
    def measure(self, x0: Tensor, times: Tensor) -> None:
        """r_t^2 = mean |E[x0 | x_t] - x0|^2 of these photographs at all times but the last."""
        bridge, noise = self.prior.denoiser.bridge, torch.randn(x0.shape, generator=generators(0, 1)[0])
        for t in times[:-1]:
            at = torch.full((len(x0),), float(t))
            found = self.guess(bridge.q_sample(at, x0, blank(x0), noise), at)
            self.errors[round(float(t), 6)] = float((found - x0).square().mean())

    @torch.no_grad()
    def __call__(self, y: Tensor, nfe: int, zeta: float, eta: float, seed: int = 0) -> Tensor:
        """Restorations of y (N, 3, H, W), in [-1, 1]."""
        out, drawn, denoiser = [], generators(seed, len(y)), self.prior.denoiser

        def guess(xt: Tensor, t: Tensor) -> Tensor:
            x = self.guess(xt, t)
            lam = zeta * ROUNDING / self.errors[round(float(t[0]), 6)]
            return x + self.blur.inverse(seen - self.blur.apply(x, None), lam)

        for i in range(0, len(y), PART):
            seen = y[i : i + PART]
            walk = sample(guess, denoiser.bridge, blank(seen), nfe, eta=eta, generator=drawn[i : i + PART])
            out.append(walk.x.clamp(-1, 1))
        return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="training photographs")
    parser.add_argument("--data", required=True, help="photographs to restore")
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--nfe", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--first", type=int, default=200, help="photographs of walks of over 50 calls")
    parser.add_argument("--tuned", type=int, default=32, help="photographs set aside, for zeta and eta")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim", "lpips", "fid", "kid"])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("data/runs/posterior"))
    parser.add_argument("--work", type=Path, default=Path("runs/posterior"), help="state and weights")
    args = parser.parse_args()

    config = TrainConfig(data=args.train, out=str(args.work), steps=args.steps, **BASE, **EVERY)
    done = train(config, (args.work / "state.pt").exists(), degrade=blank)
    blur = create_degradation("blur-gauss")
    assert isinstance(blur, Separable)
    restore = Sampler(load_pretrained(args.work), blur)

    photographs = load_images(args.train, "train", 64)
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(config.seed))
    aside = to_float(photographs[order[: config.holdout]])[: args.tuned]
    clean = load_images(args.data, None, 64)[: args.limit]
    x0 = to_float(clean)
    seen, y = (quantise(blur(x)) for x in (aside, x0))
    record: dict[str, Any] = {
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(restore.prior.device),
        "git_commit": git_commit(),
        "config": BASE | {"steps": args.steps, "train": Path(args.train).name, "tuned": len(aside)},
        "training_seconds": round(done["seconds"], 1),
        "chosen": {},
        "results": [],
    }
    record["config_hash"] = config_hash(record["config"])
    for nfe in args.nfe:
        times = restore.prior.denoiser.bridge.schedule.grid(nfe)
        restore.measure(aside, times)
        tried = {}
        for eta in ETAS:
            for zeta in ZETAS:
                found = evaluate(restore(seen, nfe, zeta, eta), aside, ["psnr", "lpips"])
                tried[zeta, eta] = {k: round(m.value, 6) for k, m in found.items()}
                print(nfe, zeta, eta, tried[zeta, eta], flush=True)
        zeta, eta = min(tried, key=lambda k: tried[k]["lpips"])
        record["chosen"][str(nfe)] = [
            {"zeta": z, "eta": e} | v | {"chosen": (z, e) == (zeta, eta)} for (z, e), v in tried.items()
        ]
        part = slice(args.first if nfe > 50 else None)
        began = time.time()
        x = restore(y[part], nfe, zeta, eta)
        metrics = [m for m in args.metrics if m not in ("fid", "kid") or len(x) == len(x0)]
        values = {
            k: {n: round(getattr(m, n), 8) for n in ("value", "low", "high")}
            for k, m in evaluate(x, x0[part], metrics).items()
        }
        line = {"row": f"posterior sampler, {nfe} calls", "nfe": nfe, "zeta": zeta, "eta": eta}
        record["results"].append(line | {"images": len(x), "seconds": round(time.time() - began, 1)} | values)
        print(line["row"], {k: round(v["value"], 4) for k, v in values.items()}, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
