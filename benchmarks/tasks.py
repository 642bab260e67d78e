"""Four tasks that are not a blur: a bridge for each, beside a regression and what needs no training.

For each task one network is trained twice, alike but for the process, and restores photographs that were
degraded in that task's way. Trainings that are there are taken up, and rows that are measured are skipped.

    python benchmarks/tasks.py --train PATH --data PATH [--out data/runs/tasks] [--work runs/tasks]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import TrainConfig, config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import calibration, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float
from i2sb_lib.training import train

BASE: dict[str, Any] = {"network": "unet-small", "steps": 4400, "batch_size": 16, "lr": 8e-4, "warmup": 100}
EVERY: dict[str, Any] = {"save_every": 1100, "eval_every": 10**6, "progress": False}
TASKS: dict[str, dict[str, Any]] = {
    "super-resolution": {"degradation": "sr4x-bicubic"},
    "inpainting": {"degradation": "inpaint-freeform"},
    "JPEG": {"degradation": "jpeg", "degradation_options": {"quality": 10}},
    "colour": {"degradation": "grey"},
}
ROWS = [("regression", "sde", 1), ("bridge", "sde", 1), ("bridge", "ode", 10), ("bridge", "sde", 10)]
SAMPLES = 4


def learn(task: str, process: str, args: argparse.Namespace) -> Pretrained:
    """The trained model; a training that is there goes on."""
    out = args.work / f"{task}-{process}"
    place = {"data": str(args.train), "out": str(out), "compile": torch.cuda.is_available()}
    config = TrainConfig(**BASE | EVERY | TASKS[task] | place | {"process": process, "steps": args.steps})
    train(config, resume=(out / "state.pt").exists())
    return load_pretrained(out)


def classical(task: str, x1: Tensor) -> tuple[str, Tensor]:
    """What needs no training: cubic interpolation, biharmonic filling of the grey strokes, or nothing."""
    if task == "super-resolution":
        small = F.interpolate(x1, scale_factor=1 / 4, mode="area")  # its pixels are repeated: nothing is lost
        return "bicubic", F.interpolate(small, size=x1.shape[-2:], mode="bicubic").clamp(-1, 1)
    if task == "inpainting":
        from skimage.restoration import inpaint_biharmonic

        holes = (x1 == quantise(torch.zeros(()))).all(1).numpy()
        images = x1.permute(0, 2, 3, 1).double().numpy()
        filled = [inpaint_biharmonic(y, hole, channel_axis=-1) for y, hole in zip(images, holes, strict=True)]
        return "biharmonic", torch.stack([torch.from_numpy(y) for y in filled]).permute(0, 3, 1, 2).float()
    return "", x1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="training photographs")
    parser.add_argument("--data", required=True, help="photographs to restore")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--steps", type=int, default=BASE["steps"])
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim", "lpips"])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("data/runs/tasks"))
    parser.add_argument("--work", type=Path, default=Path("runs/tasks"), help="states and weights")
    args = parser.parse_args()

    clean = load_images(args.data, None, 64)[: args.limit]
    x0, file = to_float(clean), args.out / "metrics.json"
    data = {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)}
    config = BASE | {"steps": args.steps, "train": Path(args.train).name}
    record: dict[str, Any] = {"data": data, "seed": 0, "device": device_name(auto_device())}
    record |= {"config": config, "config_hash": config_hash(config), "results": []}
    if file.exists():
        old = json.loads(file.read_text())
        if (old["data"], old["config_hash"]) != (data, record["config_hash"]):
            raise SystemExit(f"{file}: holds tasks of other photographs or another training")
        record = old
    done = {r["row"] for r in record["results"]}

    def note(row: str, x: Tensor, **how: Any) -> None:
        found = evaluate(x, x0, args.metrics)
        values = {k: {n: round(getattr(m, n), 8) for n in ("value", "low", "high")} for k, m in found.items()}
        record["results"].append({"row": row, **how, **values, "git_commit": git_commit()})
        record["git_commit"] = git_commit()
        print(f"{row:40s}", "  ".join(f"{k} {v['value']:.5g}" for k, v in values.items()), flush=True)
        atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))

    for task in args.tasks:
        options: dict[str, Any] = TASKS[task].get("degradation_options", {})
        degrade = create_degradation(TASKS[task]["degradation"], **options, quantise=True)
        x1 = quantise(degrade(x0, torch.Generator().manual_seed(2**31)))
        name, filled = classical(task, x1)
        for row, x in {f"{task}: identity": x1, f"{task}: {name}": filled}.items():
            if row not in done and not row.endswith(": "):
                note(row, x, task=task)
        for process, sampler, nfe in ROWS:
            row = f"{task}: {process}, {sampler} {nfe}"
            if row in done:
                continue
            model, began = learn(task, process, args), time.time()
            x = model.restore(x1, nfe, sampler)
            how = {"task": task, "process": process, "sampler": sampler, "nfe": nfe}
            how |= {"seconds": round(time.time() - began, 1), "training_seconds": model.record["seconds"]}
            if sampler == "sde" and nfe > 1:
                some = slice(0, 100)  # how far apart samples of one x1 are says how many answers there are
                samples = torch.stack([model.restore(x1[some], nfe, seed=s) for s in range(SAMPLES)])
                how["calibration"] = {
                    k: round(v, 5)
                    for k, v in calibration(samples, x0[some], lpips=True)._asdict().items()
                    if isinstance(v, float)
                }
            note(row, x, **how)


if __name__ == "__main__":
    main()
