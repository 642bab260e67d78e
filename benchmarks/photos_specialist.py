"""The default model beside one that was trained on from it for one kind of damage: the price of not knowing.

    python benchmarks/photos_specialist.py --cell "JPEG 75" --faces PATH --scenes PATH \\
        --sets faces=PATH scenes=PATH … --out RUN

Pieces of scenes, as they are and shrunk, and faces are damaged in this one way (a cell of `photos.py`) for
--steps steps; then both models restore what neither has seen, in each of --walks, the default without its
least change. A kind that is in the record is replaced, the others stay. An interrupted training goes on.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from photos import cells, change, opened, pictures, save
from photos_training import RECIPE, SECOND

from i2sb_lib import train
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import TrainConfig, config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.devices import device_name
from i2sb_lib.files import git_commit
from i2sb_lib.images import quantise, to_float, to_uint8

METRICS = ("psnr", "lpips")


def measure(args: argparse.Namespace) -> None:
    """A model of one kind of damage, from the weights of the one of all, beside it in several walks."""
    kind, degrade = args.cell, cells()[args.cell]
    wide = to_float(load_images(args.scenes, "train", 112, crops=10))
    shrunk = to_uint8(F.interpolate(wide, size=(64, 64), mode="bicubic", antialias=True).clamp(-1, 1))
    some = [load_images(args.scenes, "train", 64, crops=10), shrunk]
    some += [load_images(args.faces, "train", 64)[:3000]]
    recipe = {k: RECIPE[k] for k in ("network", "wiener", "beta_min", "beta_max", "eval_every")} | SECOND
    config = TrainConfig(
        **recipe | {"init": args.checkpoint, "warmup": 50, "ema": 0.998},
        steps=args.steps, seed=args.seed, out=str(args.out), save_every=100,
    )  # fmt: skip
    train(config, (args.out / "state.pt").exists(), images=torch.cat(some), degrade=degrade)
    models = {"one kind": load_pretrained(args.out, "cpu"), "all": load_pretrained(args.checkpoint, "cpu")}
    file = args.record / "metrics.json"
    models["all"].record.pop("least_change", None)
    record = opened(file, {"checkpoint": models["all"].record, "seed": args.seed})
    record.setdefault("specialists", {})[kind] = models["one kind"].record
    rows = [row for row in record["results"] if row["cell"] != kind]
    sets = record.get("data", {}).get("sets", {})
    for name, path in (given.split("=") for given in args.sets):
        clean = pictures(name, path, args.limit)
        sets[name] = {"source": Path(path).name, "images": len(clean), "fingerprint": fingerprint(clean)}
        x0 = to_float(clean)
        x1 = quantise(degrade(x0, torch.Generator().manual_seed(2**31)))
        for of, model in models.items():
            for walk in args.walks:
                sampler, nfe, power = walk.split(":")
                x = model.restore(x1, int(nfe), sampler=sampler, power=float(power))
                row = {"set": name, "cell": kind, "trained on": of, "walk": walk}
                rows.append(row | change(x0, x1, x, torch.ones(len(x0), dtype=torch.bool)))
                said = {k: f"{rows[-1][k]['before']:.4f} {rows[-1][k]['change'][0]:+.4f}" for k in METRICS}
                print(f"{name:9s} {of:9s} {walk:9s} {said}", flush=True)
    record |= {"data": {"sets": sets, "fingerprint": config_hash(sets)}, "results": rows}
    record |= {"device": device_name(models["all"].device), "git_commit": git_commit()}
    save(file, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", required=True, choices=cells(), help="the kind of damage")
    parser.add_argument("--faces", required=True, help="training faces")
    parser.add_argument("--scenes", required=True, help="training scenes")
    parser.add_argument("--sets", nargs="+", default=["embedded=embedded"], help="NAME=PATH")
    parser.add_argument("--checkpoint", default="photos-robust")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    walks = ["sde:1:1", "dbim:2:1", "dbim:5:1", "sde:10:1"]
    parser.add_argument("--walks", nargs="+", default=walks, help="SAMPLER:CALLS:POWER")
    parser.add_argument("--limit", type=int, default=64, help="pictures of each set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--record", type=Path, default=Path("data/runs/photos-robust-specialist"))
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
