"""Which walk should a model recommend? Few calls, on the training photographs that were set aside from it.

Each walk free and corrected towards the input with several weights; the model's record then has the weight
of the best PSNR (`i2sb_lib.restoration.Restorer.recommended`). FID needs more photographs: the
ladder has it for two weights.

    python benchmarks/advised.py --data PATH [--model NAME] [--out data/runs/advised]
"""

import argparse
from pathlib import Path

import torch
from records import head, numbers, save

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import create_pair_maker
from i2sb_lib.data import load_images
from i2sb_lib.images import quantise, to_float

WALKS = [("sde", 1, 1.0), ("sde", 10, 1.0), ("dbim", 5, 2.0), ("dbim", 3, 2.0)]
WEIGHTS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the training photographs of the model")
    parser.add_argument("--model", default="celeba64-deblur")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim", "lpips"])
    parser.add_argument("--limit", type=int, default=None, help="of those set aside")
    parser.add_argument("--out", type=Path, default=Path("data/runs/advised"))
    args = parser.parse_args()

    model = load_pretrained(args.model)
    how = model.record["training"]
    images = load_images(args.data, "train", how["size"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(how["seed"]))  # as Trainer
    held = images[order[: how["holdout"]]][: args.limit]
    x0 = to_float(held)
    x1 = quantise(create_pair_maker(how)(x0, torch.Generator().manual_seed(2**31))).float()
    walks = WALKS[:1] if model.alone else WALKS
    config = {"model": args.model, "walks": walks, "weights": WEIGHTS}
    record = head(args.data, held, config, model.device)
    for sampler, nfe, power in walks:
        for lam in WEIGHTS:
            x = model.restore(x1, nfe, sampler, power=power, consistency=lam)  # type: ignore[arg-type]
            values = numbers(x, x0, args.metrics)
            record["results"].append({"sampler": sampler, "nfe": nfe, "power": power, "lam": lam, **values})
            said = {k: v["value"] for k, v in values.items()}
            print(f"{sampler:5s} {nfe:3d} calls, power {power:g}, weight {lam:g}", said, flush=True)
    save(args.out, record)


if __name__ == "__main__":
    main()
