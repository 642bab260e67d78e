"""Does a restoration explain its input? Two models trained alike, shown x1 at every call or not.

Each restores the same degraded photographs; blurred again, a restoration should be x1 up to its rounding.
Writes that distance for each model and number of calls, and a sheet of the last number: clean, degraded, and
of each model the restoration x and H x - x1 about middle grey, where black and white are WHITE grey levels.
The models are those of `controls.py --network unet-small`.

    python benchmarks/reblurred.py --data PATH --shown runs/controls/bridge-0 \\
        --hidden runs/controls/plain-bridge-0
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import config_hash, create_pair_maker
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import consistency
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, save_image, to_float

FACES, WHITE = [4, 7, 27], 16.0  # photographs on the sheet; grey levels of its white


def residual(x: Tensor, x1: Tensor, blur: Any) -> Tensor:
    """H x - x1 as a picture in [-1, 1]: 0 where there is none, 1 at WHITE grey levels."""
    return ((blur(x) - x1) * 127.5 / WHITE).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="clean photographs")
    parser.add_argument("--shown", required=True, help="a model that sees x1 at every call")
    parser.add_argument("--hidden", required=True, help="a model that sees x1 only where it starts")
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--faces", type=int, nargs="+", default=FACES, help="photographs on the sheet")
    parser.add_argument("--out", type=Path, default=Path("data/runs/reblurred"))
    args = parser.parse_args()

    models = {"x1 shown": load_pretrained(args.shown), "x1 hidden": load_pretrained(args.hidden)}
    made = [model.record["training"] for model in models.values()]
    if (seen := [how["cond_x1"] for how in made]) != [True, False]:
        raise SystemExit(f"expected a model with cond_x1 and one without it, got {seen}")
    clean = load_images(args.data, None, 64)[: args.limit]
    x0, blur = to_float(clean), create_pair_maker(made[0] | {"noise": 0.0, "quantise": False})
    x1 = quantise(blur(x0))
    config = {"nfe": args.nfe, "faces": args.faces, "white": WHITE}
    record: dict[str, Any] = {
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(auto_device()),
        "git_commit": git_commit(),
        "config": config,
        "config_hash": config_hash(config),
        "results": [],
    }

    def note(row: str, x: Tensor, **how: Any) -> None:
        far = consistency(x, x1, blur)
        values = {k: round(getattr(far, k), 6) for k in ("value", "low", "high")}
        record["results"].append({"row": row, **how, "consistency": values})
        print(f"{row:16s} {far.value:6.3f} grey levels", flush=True)

    note("original", x0)
    columns = [x0, x1]
    for name, model in models.items():
        for nfe in args.nfe:
            x = quantise(model.restore(x1, nfe, seed=0))
            note(f"{name}, {nfe}", x, nfe=nfe, sampler="sde", checkpoint=model.record)
        columns += [x, residual(x, x1, blur)]
    sheet = torch.cat([torch.cat(list(c[args.faces]), dim=-2) for c in columns], dim=-1)
    save_image(sheet, args.out / "reblurred.png")
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
