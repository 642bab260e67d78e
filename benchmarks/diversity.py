"""What several restorations of one photograph say: how far they differ, and whether they should.

A row is MODEL:SAMPLER:NFE[:POWER], with the power of its time grid. Each degraded photograph, made as in
the model's own training, is restored `--samples` times, with one seed each; `evaluation.calibration`
compares the spread with the error. The first four photographs, as the first row of each model restores
them, are the picture: clean, degraded, four samples, mean, standard deviation. Rows that are in the
record already are skipped, so that it grows.

    python benchmarks/diversity.py --data PATH --rows celeba64-deblur:sde:10 celeba64-deblur-noisy:sde:10
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
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import calibration
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import open_image, save_image, to_float, to_tensor

SHOWN, DRAWN, WHITE = 4, 4, 32.0  # photographs and samples in the picture; grey levels of its white


def rms(x: Tensor, y: Tensor) -> float:
    """Root mean square of x - y over everything, in grey levels of 255."""
    return float(127.5 * (x - y).double().square().mean().sqrt())


def panel(x0: Tensor, x1: Tensor, samples: Tensor) -> Tensor:
    """One line a photograph: clean, degraded, samples, their mean and standard deviation."""
    std = samples.std(0).mean(1, keepdim=True).expand_as(x0) * 127.5 / WHITE * 2 - 1
    columns = [x0, x1, *samples[:DRAWN], samples.mean(0), std]
    return torch.cat([torch.cat(list(c[:SHOWN]), dim=-2) for c in columns], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="clean photographs")
    parser.add_argument("--split", default=None)
    parser.add_argument("--rows", nargs="+", required=True, help="MODEL:SAMPLER:NFE[:POWER]")
    parser.add_argument("--models", type=Path, default=Path("runs"), help="folder of unshipped runs")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data/runs/diversity"))
    args = parser.parse_args()

    clean = load_images(args.data, args.split, 64)[: args.limit]
    x0 = to_float(clean)
    config = {"samples": args.samples, "seed": args.seed, "size": 64, "white": WHITE}
    record: dict[str, Any] = {
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "seed": args.seed,
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "config": config,
        "config_hash": config_hash(config),
        "results": [],
    }
    file, picture = args.out / "metrics.json", args.out / "diversity.png"
    shown: list[Tensor] = []
    if file.exists():
        old = json.loads(file.read_text())
        if (old["data"], old["config_hash"]) != (record["data"], record["config_hash"]):
            raise SystemExit(f"{file}: holds results of other photographs or another configuration")
        lines = SHOWN * len({r["model"] for r in old["results"]})  # the picture may have more
        record, shown = old, [to_float(to_tensor(open_image(picture)))[:, : lines * x0.shape[-2]]]
    for row in args.rows:
        if row in {r["row"] for r in record["results"]}:
            continue
        name, sampler, nfe, power = [*row.split(":"), "1"][:4]
        model = load_pretrained(args.models / name if (args.models / name).exists() else name)
        x1 = create_pair_maker(model.record["training"])(x0, torch.Generator().manual_seed(args.seed))
        seeds = range(args.seed + 1, args.seed + 1 + args.samples)  # other noise than the degradation's
        how: dict[str, Any] = {"sampler": sampler, "nfe": int(nfe), "power": float(power)}
        samples = torch.stack([model.restore(x1, seed=seed, **how) for seed in seeds])
        one = model.restore(x1, nfe=1)
        found = calibration(samples, x0, lpips=True)
        result = {"row": row, "model": name, **how, **found._asdict()}
        result["ranks"] = [round(share, 5) for share in found.ranks.tolist()]
        # root mean squares in grey levels: error of a sample, of one network call, and between the two
        result["rms"] = {"sample": rms(samples, x0), "one_call": rms(one, x0), "moved": rms(samples, one)}
        if name not in {r["model"] for r in record["results"]}:
            shown.append(panel(x0, x1, samples))
        record["results"].append({**result, "git_commit": git_commit(), "checkpoint": model.record})
        record["git_commit"] = git_commit()
        save_image(torch.cat(shown, dim=-2), picture)
        atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))
        cells = [f"{k} {result[k]:.3f}" for k in ("spread", "error", "ratio", "diversity")]
        print(f"{row:32s} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
