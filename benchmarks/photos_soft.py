"""Which whole pictures does the default model change? Mostly soft ones, by a measure that no model enters.

    python benchmarks/photos_soft.py --sets faces=PATH scenes=PATH ood64=PATH embedded=embedded

Beside the whole pictures that the model changes, and those that it leaves as they are, stand the latter with
a blur of half and of three quarters of a pixel, which it is to take out.
"""

import argparse
from pathlib import Path

import torch
from photos import cells, pictures, save
from torch import Tensor

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import config_hash
from i2sb_lib.data import fingerprint
from i2sb_lib.devices import device_name
from i2sb_lib.files import git_commit
from i2sb_lib.images import quantise, save_image, to_float, to_uint8

SHOWN = 8  # of the changed, on the sheet


def sharpness(x: Tensor) -> Tensor:
    """<|x_{i+1} - x_i|^2> / <|x_{i+2} - x_i|^2>, means along both axes: (B,) of images (B, C, H, W).

    1/4 in a ramp, 1 in white noise; blur lowers it.
    """

    def apart(k: int) -> Tensor:
        down, right = x[..., k:, :] - x[..., :-k, :], x[..., k:] - x[..., :-k]
        return down.square().mean((1, 2, 3)) + right.square().mean((1, 2, 3))

    return apart(1) / apart(2)


def measure(args: argparse.Namespace) -> None:
    model, kinds = load_pretrained(args.checkpoint, "cpu"), cells()
    rows, sets = [], {}
    for name, path in (given.split("=") for given in args.sets):
        clean = pictures(name, path, args.limit)
        x0 = to_float(clean)
        x = model.restore(x0)
        changed = (to_uint8(x) != clean).flatten(1).any(1)
        by = 127.5 * (x - x0).square().flatten(1).mean(1).sqrt()
        row = {"set": name, "images": len(x0), "changed by": listed(by[changed])}
        row |= {"changed": listed(sharpness(x0[changed])), "kept": listed(sharpness(x0[~changed]))}
        for cell in ("blur 0.5", "blur 0.75"):
            x1 = quantise(kinds[cell](x0[~changed], torch.Generator().manual_seed(2**31)))
            row[f"kept, {cell}"] = listed(sharpness(x1))
            same = (to_uint8(model.restore(x1)) == to_uint8(x1)).flatten(1).all(1)
            row[f"left alone, {cell}"] = int(same.sum())
        rows.append(row)
        sets[name] = {"source": Path(path).name, "images": len(x0), "fingerprint": fingerprint(clean)}
        medians = {k: float(torch.tensor(v).median()) for k, v in row.items() if isinstance(v, list) and v}
        print(f"{name:9s} {int(changed.sum())} of {len(x0)} changed; medians {medians}", flush=True)
        if name == args.sheet:
            parts = (torch.cat(list(v[changed][:SHOWN]), dim=-1) for v in (x0, x))
            save_image(torch.cat(list(parts), dim=-2), args.record / "sheet.png")
    record = {"checkpoint": model.record, "seed": 0, "device": device_name(model.device), "results": rows}
    record |= {"data": {"sets": sets, "fingerprint": config_hash(sets)}, "git_commit": git_commit()}
    save(args.record / "metrics.json", record)


def listed(values: Tensor) -> list[float]:
    return [round(v, 4) for v in sorted(values.tolist())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["embedded=embedded"], help="NAME=PATH")
    parser.add_argument("--sheet", default="ood64", help="the set whose changed pictures are shown")
    parser.add_argument("--checkpoint", default="photos-robust")
    parser.add_argument("--limit", type=int, default=256, help="pictures of each set")
    parser.add_argument("--record", type=Path, default=Path("data/runs/photos-robust-soft"))
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
