"""Does a longer training gain on photographs that it saw, or on others, too?

Two models of one task restore three sets: photographs that both were trained on, those that both trainings
set aside, where there are such, and test photographs. One call, an estimate of the mean, whose PSNR is what
training asks for; and each model's own walk. Stated is the gain of the second model over the first, picture
by picture, with a 95% interval.

    python benchmarks/overfitting.py --data celeba64 --test PATH [--pairs FIRST=SECOND ...] [--limit 256]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import bootstrap, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float

PAIRS = [
    "celeba64-deblur=celeba64-deblur-long",
    "celeba64-deblur-blind=celeba64-deblur-blind-long",
]
FIRST_SEED = 0  # of all first trainings; a second one that starts from their weights may have another
METRICS = ["psnr", "lpips"]


def seen(models: list[Pretrained], count: int) -> tuple[Tensor, Tensor]:
    """Positions among the `count` training photographs that all trainings used, and that none did."""
    asides = []
    for training in [{"seed": FIRST_SEED, "holdout": 64}, *(m.record["training"] for m in models)]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(training["seed"]))
        asides.append(torch.zeros(count).bool().index_fill_(0, order[: training["holdout"]], True))
    some, every = torch.stack(asides).any(0), torch.stack(asides).all(0)
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    return mixed[~some[mixed]], mixed[every[mixed]]


def each(model: Pretrained, x0: Tensor, **how: Any) -> dict[str, Tensor]:
    """PSNR and LPIPS of each photograph after the model's blur, 8 bits, and restoration."""
    x1 = quantise(create_degradation("blur-gauss", quantise=True)(x0)).float()
    found = evaluate(model.restore(x1, seed=0, **how), x0, METRICS)
    return {k: found[k].per_image for k in METRICS}  # type: ignore[misc]


def gains(first: Pretrained, second: Pretrained, x0: Tensor) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, how in (("one call", {"nfe": 1}), ("own walk", {})):
        a, b = each(first, x0, **how), each(second, x0, **how)
        for k in METRICS:
            mean, low, high = (round(float(v), 6) for v in bootstrap(b[k] - a[k])[:3])
            both = {"first": round(float(a[k].mean()), 6), "second": round(float(b[k].mean()), 6)}
            out.setdefault(name, {})[k] = both | {"gain": mean, "low": low, "high": high}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded", help="the training photographs of all models")
    parser.add_argument("--test", default="embedded", help="photographs that none has seen")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="FIRST=SECOND, models or their folders")
    parser.add_argument("--limit", type=int, default=256, help="photographs of a set")
    parser.add_argument("--out", type=Path, default=Path("data/runs/overfitting"))
    args = parser.parse_args()
    photographs, test = load_images(args.data, "train", 64), load_images(args.test, None, 64)[: args.limit]
    config = {"pairs": args.pairs, "limit": args.limit, "size": 64, "metrics": METRICS}
    record: dict[str, Any] = {
        "data": {
            "source": Path(args.data).name,
            "fingerprint": fingerprint(photographs),
            "test": {"source": Path(args.test).name, "fingerprint": fingerprint(test)},
        },
        "config": config,
        "config_hash": config_hash(config),
        **{"seed": 0, "device": device_name(auto_device()), "git_commit": git_commit(), "results": []},
    }
    for pair in args.pairs:
        names = pair.split("=")
        first, second = (load_pretrained(name) for name in names)
        trained, aside = seen([first, second], len(photographs))
        sets = {"trained": photographs[trained[: args.limit]], "set aside": photographs[aside], "test": test}
        for name, images in sets.items():
            if len(images) < 2:
                continue
            row = dict(zip(("first", "second"), names, strict=True)) | {"set": name, "images": len(images)}
            record["results"].append(row | gains(first, second, to_float(images)))
            one = record["results"][-1]["one call"]["psnr"]
            print(f"{names[1]:28s} {name:10s} {one['gain']:+.3f} dB [{one['low']:+.3f}, {one['high']:+.3f}]")
            text = json.dumps(record, indent=1) + "\n"
            atomic_write(args.out / "metrics.json", lambda p, text=text: p.write_text(text))


if __name__ == "__main__":
    main()
