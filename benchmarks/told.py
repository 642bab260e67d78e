"""May a model that was trained for one blur be told another, with the sigma that a picture seems to have?

The operator-aware model sees x1 and a Tikhonov inverse. Its network was trained on sigma 2; the inverse can
be that of any Gaussian blur. Over blurs of many sigmas, one call of the model as it is, told the sigma that
`estimate_sigma` reads off each picture, told the true one; and the default model, as it does unless told.

    python benchmarks/told.py --data PATH [--out data/runs/told]
"""

import argparse
import warnings
from pathlib import Path

import torch
from records import head, numbers, save
from torch import Tensor

from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.data import load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.estimation import estimate_sigma
from i2sb_lib.faults import Notice
from i2sb_lib.images import quantise, to_float

MODEL, SIGMAS = "celeba64-deblur", [0.5 + 0.25 * k for k in range(11)]
NOISES = {"8 bits": 0.0, "noise 0.01": 0.01}


def told(model: Pretrained, x1: Tensor, sigmas: Tensor) -> Tensor:
    """One call for each picture, with the inverse of its own sigma."""
    was, out = model.denoiser.operator, []
    for x, sigma in zip(x1.split(1), sigmas.tolist(), strict=True):
        model.denoiser.operator = create_degradation("blur-gauss", sigma=sigma)
        out.append(model.restore(x, 1))
    model.denoiser.operator = was
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="photographs")
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--sigmas", nargs="+", type=float, default=SIGMAS)
    parser.add_argument("--metrics", nargs="+", default=["psnr", "lpips"])
    parser.add_argument("--out", type=Path, default=Path("data/runs/told"))
    args = parser.parse_args()

    aware, blind = load_pretrained(MODEL), load_pretrained()
    clean = load_images(args.data, None, 64)[: args.limit]
    x0, config = to_float(clean), {"model": MODEL, "sigmas": args.sigmas, "noises": NOISES, "nfe": 1}
    record = head(args.data, clean, config, aware.device)
    warnings.simplefilter("ignore", Notice)  # that the pictures cannot have been blurred so
    for after, noise in NOISES.items():
        for sigma in args.sigmas:
            degrade = create_degradation("blur-gauss", sigma=sigma, noise=noise)
            x1 = quantise(degrade(x0, torch.Generator().manual_seed(0)))
            found = estimate_sigma(x1)
            ways = {
                "degraded": x1,
                "default": blind.restore(x1),
                "told 2": aware.restore(x1, 1),
                "told the estimate": told(aware, x1, found),
                "told the truth": told(aware, x1, torch.full_like(found, sigma)),
            }
            for way, x in ways.items():
                values = numbers(x, x0, args.metrics)
                record["results"].append({"after": after, "sigma": sigma, "way": way, **values})
                print(
                    f"{after:12s} {sigma:5} {way:18s}", {k: v["value"] for k, v in values.items()}, flush=True
                )
    save(args.out, record)


if __name__ == "__main__":
    main()
