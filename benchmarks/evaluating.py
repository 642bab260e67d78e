"""How fast are all metrics of a restored set, beside the packages called image by image?

    ours   `evaluate`, of a restored set that it has not seen, with the clean set's features in the cache
    first  the same where the clean set is new as well
    naive  torchmetrics for PSNR and SSIM, lpips, and torch-fidelity with a batch of one and no cache

They take turns on the same images, blurred photographs with new noise in each round, and their values are
compared. The distance between two sets' statistics, which every FID computes, costs the same for any number
of images: it is timed (`frechet`), and from it and from --limit images the ratio for 977 is computed.

    python benchmarks/evaluating.py [--data PATH] [--limit 96] [--rounds 5] [--quick]
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from timing import median, options, ratio, turns, write
from torch import Tensor
from torch.utils.data import Dataset

from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.evaluation import _alex, evaluate
from i2sb_lib.images import quantise, to_float, to_uint8

ALL = 977  # photographs of the book's test set
EACH, SETS = ["psnr", "ssim", "lpips"], ["fid"]


class Images(Dataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = to_uint8(x)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> Tensor:
        return self.x[k]


def naive_each(x: Tensor, y: Tensor) -> dict[str, float]:
    """Means over images of what the packages say of each."""
    import torchmetrics.functional.image as tm

    lpips, found = _alex(x.device), {"psnr": 0.0, "ssim": 0.0, "lpips": 0.0}
    with torch.no_grad():
        for a, b in zip(x.split(1), y.split(1), strict=True):
            found["psnr"] += float(tm.peak_signal_noise_ratio(a + 1, b + 1, data_range=2.0)) / len(x)
            found["ssim"] += float(
                tm.structural_similarity_index_measure(a + 1, b + 1, data_range=2.0)
            ) / len(x)
            found["lpips"] += float(lpips(a, b)) / len(x)
    return found


def naive_sets(x: Tensor, y: Tensor) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how: dict[str, Any] = {"batch_size": 1, "cache": False, "cuda": False, "save_cpu_ram": True}
        found = calculate_metrics(input1=Images(x), input2=Images(y), fid=True, verbose=False, **how)
    return {"fid": found["frechet_inception_distance"]}


def ours(x: Tensor, y: Tensor, metrics: list[str]) -> dict[str, float]:
    return {name: m.value for name, m in evaluate(x, y, metrics).items()}


class Rounds:
    """The calls to time, on images that `turn` makes anew."""

    def __init__(self, x0: Tensor, metrics: list[str]) -> None:
        self.clean, self.metrics, self.count = x0, metrics, 0
        self.values: dict[str, dict[str, float]] = {}
        self.turn()

    def turn(self) -> None:
        noise = torch.randn(self.clean.shape, generator=torch.Generator().manual_seed(self.count))
        x1 = create_degradation("blur-gauss")(self.clean) + 0.02 * noise
        self.x, self.count = quantise(x1.clamp(-1, 1)), self.count + 1

    def calls(self) -> dict[str, Any]:
        def first() -> None:  # the clean set moved by a column or more: of the same cost, and new
            evaluate(self.x.roll(self.count, -1), self.clean.roll(self.count, -1), self.metrics)

        def known() -> None:
            self.values["ours"] = ours(self.x, self.clean, self.metrics)

        def again() -> None:  # both sets are known
            evaluate(self.x, self.clean, SETS)

        def naive() -> None:
            each = naive_each(self.x, self.clean) if set(EACH) & set(self.metrics) else {}
            self.values["naive"] = each | (naive_sets(self.x, self.clean) if "fid" in self.metrics else {})

        sets = {"frechet": again} if self.metrics == SETS else {}
        return {"naive": naive, "first": first, "ours": known} | sets


def measure(x0: Tensor, metrics: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of every way in each round, and the largest relative difference between their values."""
    run = Rounds(x0, metrics)
    evaluate(x0[:4].flip(-2), x0[:4], metrics)  # what is loaded once
    evaluate(x0.flip(-2), x0, metrics if metrics == SETS else ["psnr"])  # and the clean set's features
    found: dict[str, list[float]] = {}
    gaps = []
    for _ in range(rounds):
        for name, seconds in turns(1, warm=False, **run.calls()).items():
            found.setdefault(name, []).extend(seconds)
        gaps += [abs(run.values["naive"][k] / v - 1) for k, v in run.values["ours"].items()]
        run.turn()
    return {
        "metrics": metrics,
        "seconds": {k: median(v) for k, v in found.items()},
        "naive_over_ours": ratio(found, "naive", "ours"),
        "naive_over_first": ratio(found, "naive", "first"),
        "largest_relative_difference": max(gaps),
    }


def main() -> None:
    parser = options(__doc__, "evaluating")
    parser.add_argument("--data", default="embedded", help="photographs: what load_images takes")
    parser.add_argument("--limit", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5, help="of the metrics of each image")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.limit, args.rounds = 8, 1
    x0 = to_float(load_images(args.data, None, 64, progress=False)[: args.limit])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["I2SB_CACHE"] = cache
        rows = [measure(x0, EACH, args.rounds)]
        rows += [] if args.quick else [measure(x0, SETS, 1)]
    for r in rows:
        said = ", ".join(f"{k} {v:.2f} s" for k, v in r["seconds"].items())
        print(
            f"{' '.join(r['metrics']):16} of {len(x0)}: {said}; naive / ours {r['naive_over_ours']:.2f}, ",
            end="",
        )
        print(f"/ first {r['naive_over_first']:.2f}; values differ by {r['largest_relative_difference']:.1e}")
    totals: dict[str, Any] = {}
    fixed = rows[-1]["seconds"].get("frechet", 0.0)
    for n in {len(x0), ALL}:
        cost = {
            k: fixed + n / len(x0) * (sum(r["seconds"][k] for r in rows) - fixed)
            for k in ("naive", "first", "ours")
        }
        totals[str(n)] = {"seconds": cost, "measured": n == len(x0)}
        totals[str(n)] |= {f"naive_over_{k}": cost["naive"] / cost[k] for k in ("ours", "first")}
        how = "measured" if n == len(x0) else "computed"
        print(f"all of {n}, {how}: naive / ours {totals[str(n)]['naive_over_ours']:.2f}")
    config = {"data": Path(args.data).name, "limit": len(x0), "rounds": args.rounds}
    data = {"source": config["data"], "images": len(x0), "fingerprint": fingerprint(x0)}
    write(args, config, data, results={"parts": rows, "all": totals})


if __name__ == "__main__":
    main()
