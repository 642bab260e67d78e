"""Which sigma_1 for which damage? The rule of chapter 13, tried on tasks that it was not made on.

For each task a tiny bridge is trained at several sigma_1, alike but for that, on the same photographs from
the same seed, and restores training photographs that were set aside. What is done is skipped.

    python benchmarks/levels.py --train PATH [--out data/runs/levels] [--work runs/levels]
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import TrainConfig, config_hash, create_pair_maker
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import to_float
from i2sb_lib.training import train

BASE: dict[str, Any] = {"network": "unet-tiny", "steps": 600, "batch_size": 16, "lr": 2e-3, "warmup": 40}
EVERY: dict[str, Any] = {"holdout": 128, "save_every": 200, "eval_every": 10**6, "progress": False}
TASKS: dict[str, dict[str, Any]] = {
    "super-resolution": {"degradation": "sr4x-bicubic"},
    "JPEG": {"degradation": "jpeg", "degradation_options": {"quality": 10}},
    "inpainting": {"degradation": "inpaint-freeform"},
    "colour": {"degradation": "grey"},
}
SIGMAS = (0.376, 1.0, 2.6)  # the paper's, the rule's, and as far on the other side
SIGMA2 = 0.141069  # sigma_1^2 of the default schedule, beta_min 0.1 and beta_max 0.3
WALKS = {"sde 1": (1, "sde", 1.0), "sde 10": (10, "sde", 1.0), "dbim 5": (5, "dbim", 2.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="training photographs")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--sigmas", nargs="+", type=float, default=list(SIGMAS))
    parser.add_argument("--steps", type=int, default=BASE["steps"])
    parser.add_argument("--holdout", type=int, default=EVERY["holdout"])
    parser.add_argument("--metrics", nargs="+", default=["psnr", "lpips"])
    parser.add_argument("--out", type=Path, default=Path("data/runs/levels"))
    parser.add_argument("--work", type=Path, default=Path("runs/levels"), help="states and weights")
    args = parser.parse_args()

    clean = load_images(args.train, "train", 64)
    base = BASE | {"steps": args.steps, "train": Path(args.train).name, "holdout": args.holdout}
    record: dict[str, Any] = {
        "data": {"source": Path(args.train).name, "images": args.holdout, "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(auto_device()),
        "config": base,
        "config_hash": config_hash(base),
        "results": [],
    }
    file = args.out / "metrics.json"
    if file.exists():
        old = json.loads(file.read_text())
        if old["config_hash"] != record["config_hash"] or old["data"] != record["data"]:
            raise SystemExit(f"{file}: holds another training or other photographs")
        record = old
    done = {(r["task"], r["sigma"], r["walk"]) for r in record["results"]}
    for task in args.tasks:
        for sigma in args.sigmas:
            if all((task, sigma, walk) in done for walk in WALKS):
                continue
            scale = sigma**2 / SIGMA2
            fields = BASE | EVERY | TASKS[task] | {"beta_min": 0.1 * scale, "beta_max": 0.3 * scale}
            fields |= {"data": str(args.train), "out": str(args.work / f"{task}-{sigma}")}
            config = TrainConfig(**fields | {"steps": args.steps, "holdout": args.holdout})
            train(config, (Path(config.out) / "state.pt").exists())
            model = load_pretrained(config.out)
            order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(config.seed))
            x0 = to_float(clean[order[: args.holdout]])
            x1 = create_pair_maker(dataclasses.asdict(config))(x0, torch.Generator().manual_seed(2**31))
            for walk, (nfe, sampler, power) in WALKS.items():
                found = evaluate(model.restore(x1, nfe, sampler, power=power), x0, args.metrics)
                values = {
                    k: {n: round(getattr(m, n), 6) for n in ("value", "low", "high")}
                    for k, m in found.items()
                }
                record["results"].append({"task": task, "sigma": sigma, "walk": walk, **values})
                print(
                    f"{task:16s} {sigma:5} {walk:8s}", {k: v["value"] for k, v in values.items()}, flush=True
                )
            record["git_commit"] = git_commit()
            atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
