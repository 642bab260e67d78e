"""The report's Table 1 by its own protocol, one artefact at a time, and the same task measured properly.

protocol  of blurred photographs as the report makes them (64 x 64 by an antialiased bilinear filter,
          in [0, 1], blurred as floats): squared error, and LPIPS fed in [0, 1], as there, and in [-1, 1]
proper    in [-1, 1]: blurred 8-bit files, their Tikhonov inverse, the exact inverse of blurred floats
fid       against the 256 x 256 originals, as there, and against clean 64 x 64 images: the blurred images
          cast to bytes without a factor, as there, the same rounded, and clean ones, which are perfect

With --model the table's other column: faces restored by a bridge in ten calls, measured both ways.

    python benchmarks/report_table1.py FACES [--model RUN] [--out data/runs/report-table1] [--no-fid]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import lpips
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torch_fidelity import calculate_metrics
from torchvision.transforms.functional import gaussian_blur

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import config_hash
from i2sb_lib.data import cache_dir, fingerprint, load_images
from i2sb_lib.degradations import GaussianBlur
from i2sb_lib.evaluation import Metric, bootstrap, evaluate
from i2sb_lib.files import git_commit
from i2sb_lib.images import psnr, quantise, to_float, to_tensor, to_uint8

# Table 1 of the report, and the mean squared errors that its notebook prints
PUBLISHED = {
    "lpips": {"blurred": 0.299, "restored": 0.049},
    "fid": {"blurred": 571.90, "restored": 157.29},
    "mse": {"blurred": 0.00428, "restored": 0.00463},
}
SIZE, TIKHONOV = 64, 2e-4


class Images(TensorDataset):
    """uint8 images one by one, as torch-fidelity wants them."""

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.tensors[0][index]


def fid(x: Tensor, y: Tensor) -> float:
    """FID of two uint8 sets of any two sizes: no guard, on purpose."""
    result = calculate_metrics(
        **{"input1": Images(x), "input1_cache_name": fingerprint(x), "fid": True, "verbose": False},
        **{"input2": Images(y), "input2_cache_name": fingerprint(y), "cuda": torch.cuda.is_available()},
        cache_root=str(cache_dir() / "features"),
    )
    return float(result["frechet_inception_distance"])


def bilinear(images: Tensor, size: int) -> Tensor:
    """uint8 images resized by Pillow's bilinear filter, as torchvision's Resize does with pictures."""
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
    return torch.stack([to_tensor(p.resize((size, size), Image.Resampling.BILINEAR)) for p in pictures])


def plain(metric: Metric) -> dict[str, float]:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


@torch.no_grad()
def perceptual(x: Tensor, y: Tensor) -> dict[str, float]:
    """LPIPS of two batches on whatever scale they come."""
    net = lpips.LPIPS(net="alex", verbose=False).eval()
    pairs = zip(x.split(128), y.split(128), strict=True)
    return plain(bootstrap(torch.cat([net(a, b).flatten() for a, b in pairs])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", help="clean photographs at 256 x 256: parquet or a folder")
    parser.add_argument("--out", type=Path, default=Path("data/runs/report-table1"))
    parser.add_argument("--model", help="a shipped model or the folder of a run")
    parser.add_argument("--no-fid", action="store_true", help="leave out FID, the slow part")
    args = parser.parse_args()
    originals, clean = (load_images(args.faces, size=n, progress=False) for n in (256, SIZE))
    blur = GaussianBlur(kernel_size=7, sigma=2.0)
    u0 = bilinear(originals, SIZE).float() / 255
    cast = (u1 := gaussian_blur(u0, 7, 2.0)).to(torch.uint8)
    protocol = {
        "squared error": plain(bootstrap((u0 - u1).square().flatten(1).mean(1))),
        "lpips in [0, 1]": perceptual(u0, u1),
        "lpips in [-1, 1]": perceptual(2 * u0 - 1, 2 * u1 - 1),
        "largest byte after the cast": int(cast.max()),
    }
    x0 = to_float(clean)
    x1 = quantise(blur(x0))
    proper: dict[str, Any] = {}
    for name, x in (("identity", x1), ("tikhonov", blur.inverse(x1, TIKHONOV).clamp(-1, 1))):
        metrics = evaluate(x, x0, ["psnr", "ssim", "lpips"]).items()
        proper[name] = {k: plain(m) for k, m in metrics}
    for dtype in (torch.float64, torch.float32):
        x = blur.inverse(blur(x0.to(dtype)).double())
        proper[f"exact inverse, {dtype}".replace("torch.", "")] = {
            "worst psnr": float(psnr(x, x0.double()).min()),
            "lpips": perceptual(x.float().clamp(-1, 1), x0),
            "bytes wrong": int((to_uint8(x) != clean).sum()),
        }
    results: dict[str, Any] = {"protocol": protocol, "proper": proper}
    if args.model:
        model = load_pretrained(args.model)
        restored = quantise(model.restore(x1, nfe=10, progress=True))
        halved = [(v + 1) / 2 for v in (restored, x0)]
        results["restored"] = {
            "squared error": plain(bootstrap((halved[0] - halved[1]).square().flatten(1).mean(1))),
            "lpips in [0, 1]": perceptual(*halved),
            "lpips in [-1, 1]": perceptual(restored, x0),
            "checkpoint": model.record,
        }
    if not args.no_fid:
        # if all are black, a few have the mean and the covariance of all
        sets = {"black": cast if cast.any() else cast[:16], "blurred": to_uint8(x1), "clean": clean}
        sets |= {"restored": to_uint8(restored)} if args.model else {}
        against = {"originals": originals, "clean": clean}
        results["fid"] = {k: {name: fid(x, y) for name, x in sets.items()} for k, y in against.items()}
    data = {"source": Path(args.faces).name, "images": len(clean), "fingerprint": fingerprint(clean)}
    config = {"size": SIZE, "kernel_size": 7, "sigma": 2.0, "tikhonov": TIKHONOV, "lpips": "alex"}
    record = {"data": data, "seed": 0, "git_commit": git_commit(), "device": "cpu", "config": config}
    record |= {"config_hash": config_hash(config), "published": PUBLISHED}
    print(json.dumps(results, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "metrics.json").write_text(json.dumps(record | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
