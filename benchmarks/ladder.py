"""Restorations side by side on the same photographs: classical ones, learned ones, every sampler.

A row is a restoration: `identity`, `inverse`, `tikhonov:LAM`, `wiener`, `richardson-lucy:ITERATIONS`,
or MODEL:SAMPLER:NFE[:POWER[:LAM]] with a shipped model or the folder of a run, the power of its time
grid and the weight of its data consistency. Each is measured against the clean
photographs with 95% intervals, and against the degraded ones (consistency, in grey levels). Rows that
are in the record already are skipped, so that a ladder grows; its first eight images are its picture.

    python benchmarks/ladder.py --data PATH --rows identity tikhonov:2e-4 celeba64-deblur:sde:10 \
        --metrics psnr ssim lpips fid kid --out data/runs/ladder
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.baselines import Wiener, richardson_lucy, tikhonov
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import Compose, Degradation, create_degradation
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import METRICS, consistency, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import open_image, save_image, to_float, to_tensor
from i2sb_lib.operators import Separable

SHOWN = 8


def task(args: argparse.Namespace) -> tuple[Degradation, Separable]:
    """What degrades the photographs, and the noiseless blur that the classical rows assume."""
    blur = create_degradation("blur-gauss", sigma=args.sigma)
    parts = [create_degradation("blur-gauss", sigma=args.sigma, noise=args.noise, quantise=not args.floats)]
    if args.jpeg:
        parts.append(create_degradation("jpeg", quality=args.jpeg))
    assert isinstance(blur, Separable)
    return Compose(tuple(parts)), blur if args.known else create_degradation("blur-gauss")  # type: ignore[return-value]


def restore(row: str, x1: Tensor, blur: Separable, args: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """The restoration that a row names, clipped, and what is to be said about how it was made."""
    name, *rest = row.split(":")
    if name == "identity":
        return x1, {}
    if name in ("inverse", "tikhonov"):
        lam = float(rest[0]) if rest else 0.0
        return tikhonov(x1, blur, lam).clamp(-1, 1), {"lam": lam}
    if name == "richardson-lucy":
        return richardson_lucy(x1, blur, int(rest[0])).clamp(-1, 1), {"iterations": int(rest[0])}
    if name == "wiener":
        photographs = load_images(args.train, "train", x1.shape[-1])
        noise = (2 / 255) ** 2 / 12 + (2 * args.noise) ** 2
        fitted = Wiener(blur, to_float(photographs), noise)
        return fitted(x1).clamp(-1, 1), {"photographs": len(photographs), "noise": noise}
    sampler, nfe, power, lam = (*rest, *["1", "0"][len(rest) - 2 :])
    model, start = load_pretrained(args.models / name if (args.models / name).exists() else name), time.time()
    how: dict[str, Any] = {"sampler": sampler, "nfe": int(nfe), "power": float(power)}
    x = model.restore(x1, seed=args.seed, consistency=float(lam), progress=True, **how)
    how |= {"lam": float(lam), "seconds": round(time.time() - start, 1)}
    return x, how | {"checkpoint": model.record}


def measure(
    x: Tensor, x0: Tensor, x1: Tensor, blur: Separable, metrics: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[float | None]]]:
    """{metric: {value, low, high}}, and the values of each image where it has its own.

    None stands for an infinite PSNR: every byte is right.
    """
    found = evaluate(x, x0, metrics) | {"consistency": consistency(x, x1, blur)}

    def plain(v: float, digits: int = 8) -> float | None:
        return round(v, digits) if math.isfinite(v) else None

    each = {k: m.per_image for k, m in found.items()}
    values = {
        k: {"value": plain(m.value), "low": plain(m.low), "high": plain(m.high)} for k, m in found.items()
    }
    return values, {k: [plain(v, 4) for v in e.tolist()] for k, e in each.items() if e is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="clean photographs")
    parser.add_argument("--split", default=None)
    parser.add_argument("--train", default="embedded", help="photographs that `wiener` is fitted to")
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--models", type=Path, default=Path("runs"), help="folder of unshipped runs")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim"], choices=METRICS)
    parser.add_argument("--sigma", type=float, default=2.0, help="of the blur")
    parser.add_argument("--known", action="store_true", help="the classical rows know --sigma, not only 2")
    parser.add_argument("--noise", type=float, default=0.0, help="after the blur, on [0, 1]")
    parser.add_argument("--jpeg", type=int, default=0, help="quality of a JPEG after the blur; 0: none")
    parser.add_argument("--floats", action="store_true", help="no rounding to 8 bits")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worst", default=None, metavar="ROW", help="keep this row's eight worst by LPIPS")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.worst and "lpips" not in args.metrics:
        parser.error("--worst needs lpips among --metrics")

    clean = load_images(args.data, args.split, 64)[: args.limit]
    degrade, blur = task(args)
    x0 = to_float(clean)
    x1 = degrade(x0.double() if args.floats else x0, torch.Generator().manual_seed(args.seed + 2**31))
    config = {"degradation": repr(degrade), "assumed": repr(blur), "seed": args.seed, "size": 64}
    file, every, picture = (args.out / n for n in ("metrics.json", "per_image.json", "restored.png"))
    record: dict[str, Any] = {
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "seed": args.seed,
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "config": config,
        "config_hash": config_hash(config),
        "results": [],
    }
    strip, each = torch.cat(list(x0[:SHOWN]), dim=-1), dict[str, Any]()
    if file.exists():
        old = json.loads(file.read_text())
        if (old["data"], old["config_hash"]) != (record["data"], record["config_hash"]):
            raise SystemExit(f"{file}: holds a ladder of other photographs or another degradation")
        record, each = old, json.loads(every.read_text())
        lines = 1 + len(record["results"])  # the picture is written first and may have one more
        strip = to_float(to_tensor(open_image(picture)))[:, : lines * x0.shape[-2]]
    done = {row["row"] for row in record["results"]}
    for row in args.rows:
        if row in done:
            continue
        x, how = restore(row, x1, blur, args)
        x = x.float()
        values, each[row] = measure(x, x0, x1.float(), blur, args.metrics)
        record["results"].append({"row": row, **how, "git_commit": git_commit(), **values})
        record["git_commit"] = git_commit()
        cells = [f"{k} {values[k]['value']}" for k in (*args.metrics, "consistency")]
        print(f"{row:32s} {'  '.join(cells)}", flush=True)
        strip = torch.cat([strip, torch.cat(list(x[:SHOWN]), dim=-1)], dim=-2)
        save_image(strip, picture)
        if row == args.worst:
            worst = torch.tensor(each[row]["lpips"]).argsort(descending=True)[:SHOWN]
            record["worst"] = {"row": row, "images": worst.tolist()}
            triples = [torch.cat(list(v[worst]), dim=-1) for v in (x0, x1.float(), x)]
            save_image(torch.cat(triples, dim=-2), args.out / "worst.png")
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in each.items())
        atomic_write(every, lambda p, lines=lines: p.write_text(f"{{\n{lines}\n}}\n"))
        atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
