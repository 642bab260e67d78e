"""A model for pictures whose damage is not known: its training, and what it does to each kind of picture.

    python benchmarks/photos.py train --faces PATH --scenes PATH [--out runs/photos-robust]
    python benchmarks/photos.py measure --checkpoint photos-robust --sets faces=PATH scenes=PATH …

`train` shows `Mixture` to a network on as many 64 x 64 crops of the scenes, `CROPS` of each, as they
give, and on the faces; it starts from the weights of the blind model of faces, and goes on from a state that
is there. `measure` degrades pictures in one known way at a time, cell by cell, and compares what goes in with
what comes out: nothing should come out worse than it went in. `whole` restores whole photographs beside
classical methods. Cells that are measured are skipped.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import TrainConfig
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import Compose, Degradation, Quantise, create_degradation
from i2sb_lib.evaluation import bootstrap, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float
from i2sb_lib.training import train

CROPS = 48
RECIPE: dict[str, Any] = {
    "network": "unet-small", "degradation": "mixture", "beta_min": 0.7089, "beta_max": 2.1266,
    "steps": 2800, "batch_size": 16, "lr": 1.2e-3, "warmup": 60, "init": "celeba64-deblur-blind",
    "save_every": 50, "eval_every": 10**6,
}  # fmt: skip


def cells() -> dict[str, Degradation]:
    """The kinds of damage: one known strength of one kind each, rounded; the task; and the mixture."""
    blur, q = "blur-gauss", {"quantise": True}
    sigmas = [0.25 * k for k in range(2, 13)]
    found: dict[str, Degradation] = {"clean": Quantise()}
    found |= {f"blur {s:g}": create_degradation(blur, kernel_size=17, sigma=s, **q) for s in sigmas}
    found |= {"task (blur 2, 7 taps)": create_degradation(blur, **q)}
    found |= {f"noise {s:g}": create_degradation("none", noise=s, **q) for s in (0.01, 0.02, 0.05, 0.1)}
    found |= {f"JPEG {n}": create_degradation("jpeg", quality=n) for n in (30, 50, 75, 90, 95)}
    both = create_degradation(blur, kernel_size=17, sigma=1.5, noise=0.02, **q)
    found |= {"blur 1.5, noise 0.02, JPEG 60": Compose((both, create_degradation("jpeg", quality=60)))}
    return found | {"mixture": create_degradation("mixture")}


def learn(args: argparse.Namespace) -> None:
    scenes = load_images(args.scenes, "train", 64, crops=CROPS)
    images = torch.cat([scenes, load_images(args.faces, "train", 64)])
    resume = (args.out / "state.pt").exists()
    print(train(TrainConfig(**RECIPE, out=str(args.out)), resume, images=images))


def change(model: Pretrained, x0: Tensor, x1: Tensor, nfe: int) -> dict[str, Any]:
    """Before, after and the difference, in PSNR and LPIPS; how many pictures got worse in each."""
    before, after = (evaluate(x, x0, ["psnr", "lpips"]) for x in (x1, model.restore(x1, nfe)))
    found: dict[str, Any] = {}
    for name, sign in (("psnr", 1), ("lpips", -1)):
        a, b = before[name].per_image, after[name].per_image
        assert a is not None
        assert b is not None
        gain = bootstrap(b.clamp(max=60) - a.clamp(max=60))  # a clean picture's own is infinite
        found[name] = {
            "before": round(float(a.clamp(max=60).mean()), 6),
            "after": round(float(b.clamp(max=60).mean()), 6),
            "change": [round(v, 6) for v in gain[:3]],
            "worse": int((sign * (b - a) < 0).sum()),
        }
    return found


def opened(file: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The record to go on with: the file's, where it is of the same model, or a new one."""
    if not file.exists():
        return head | {"results": []}
    record = json.loads(file.read_text())
    if {k: record[k] for k in head} != head:
        raise SystemExit(f"{file}: holds results of another model")
    return record


def measure(args: argparse.Namespace) -> None:
    model = load_pretrained(args.checkpoint, "cpu")
    file = args.record / "metrics.json"
    record = opened(file, {"checkpoint": model.record, "seed": 0})
    done = {(r["set"], r["cell"], r["nfe"]) for r in record["results"]}
    for given in args.sets:
        name, path = given.split("=")
        crops = {"crops": 1} if name == "scenes" else {}
        clean = load_images(path, args.split.get(name), 64, **crops)
        clean = clean[:: max(1, len(clean) // args.limit)][: args.limit]
        x0 = to_float(clean)
        for cell, degrade in cells().items():
            x1 = quantise(degrade(x0, torch.Generator().manual_seed(2**31)))
            for nfe in args.nfe:
                if (name, cell, nfe) in done:
                    continue
                began = time.time()
                found = change(model, x0, x1, nfe)
                row = {"set": name, "cell": cell, "nfe": nfe, "images": len(x0), **found}
                row |= {"fingerprint": fingerprint(clean), "seconds": round(time.time() - began, 1)}
                record["results"].append(row | {"git_commit": git_commit()})
                said = "  ".join(
                    f"{k} {v['before']:8.4f} -> {v['after']:8.4f} ({v['worse']:3d} worse)"
                    for k, v in found.items()
                )
                print(f"{name:9s} {cell:30s} {nfe:2d} calls  {said}", flush=True)
                record["git_commit"] = git_commit()
                text = json.dumps(record, indent=1) + "\n"
                atomic_write(file, lambda p, text=text: p.write_text(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("--faces", help="training faces")
    parser.add_argument("--scenes", help="training scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/photos-robust"))
    parser.add_argument("--checkpoint", default="photos-robust")
    parser.add_argument("--sets", nargs="+", default=["embedded=embedded"], help="NAME=PATH")
    parser.add_argument("--nfe", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--limit", type=int, default=64, help="pictures of each set")
    parser.add_argument("--record", type=Path, default=Path("data/runs/photos-robust-cells"))
    args = parser.parse_args()
    args.split = {"scenes": "test", "embedded": "test"}
    if args.what == "train":
        learn(args)
    else:
        measure(args)


if __name__ == "__main__":
    main()
