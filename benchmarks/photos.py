"""A model for pictures whose damage is not known: its training, and what it does to each kind of picture.

    python benchmarks/photos.py train --faces PATH --scenes PATH [--out RUN]
    python benchmarks/photos.py train … --init RUN [--alone 0.5 --mild 0.5 --seed 1]
    python benchmarks/photos.py measure --sets faces=PATH scenes=PATH … [--checkpoint photos-robust]
    python benchmarks/photos.py threshold --faces PATH --scenes PATH [--checkpoint photos-robust]
    python benchmarks/photos.py whole --scenes PATH [--checkpoint photos-robust]

`train` is `photos_training`. `measure` degrades pictures in one known way at a time, cell by cell, and
compares what goes in with what comes out, which should not be worse. `threshold` says what it is worth, on
training pictures, to leave as it was what one call changes by less than so many grey levels: the record's
`least_change`. `whole` restores whole photographs of scenes,
blurred and noisy, beside methods that are told the blur. Cells that are measured are skipped.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from photos_training import learn
from torch import Tensor

from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import config_hash
from i2sb_lib.data import embedded_photographs, fingerprint, load_images
from i2sb_lib.degradations import Compose, Degradation, GaussianBlur, Quantise, create_degradation
from i2sb_lib.devices import device_name
from i2sb_lib.evaluation import bootstrap, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import psnr, quantise, to_float, to_tensor, to_uint8
from i2sb_lib.progress import progress
from i2sb_lib.sources import open_source


def cells() -> dict[str, Degradation]:
    """The kinds of damage: one known strength of one kind each, rounded; the task; and the mixture."""
    blur, q = "blur-gauss", {"quantise": True}
    sigmas = [0.25 * k for k in range(2, 13)]
    found: dict[str, Degradation] = {"clean": Quantise()}
    found |= {f"blur {s:g}": create_degradation(blur, kernel_size=17, sigma=s, **q) for s in sigmas}
    found |= {"task (blur 2, 7 taps)": create_degradation(blur, **q)}
    found |= {f"noise {s:g}": create_degradation("none", noise=s, **q) for s in (0.01, 0.02, 0.05, 0.1)}
    found |= {f"JPEG {n}": create_degradation("jpeg", quality=n) for n in (30, 50, 75, 90, 95)}
    both = create_degradation(blur, kernel_size=17, sigma=1.5, noise=0.02, **q)
    found |= {"blur 1.5, noise 0.02, JPEG 60": Compose((both, create_degradation("jpeg", quality=60)))}
    return found | {"mixture": create_degradation("mixture")}


def each(x: Tensor, x0: Tensor) -> dict[str, Tensor]:
    """PSNR, to 60 dB, since a clean picture's own is infinite, and LPIPS of each image."""
    found = {k: m.per_image for k, m in evaluate(x, x0, ["psnr", "lpips"]).items()}
    return {k: v.clamp(max=60) for k, v in found.items() if v is not None}


def change(x0: Tensor, x1: Tensor, x: Tensor, kept: Tensor) -> dict[str, Any]:
    """Before, after and the difference, in PSNR and LPIPS; how many pictures got worse in each.

    kept (B,): which pictures the model leaves as they are when they are whole; of these, the mean difference.
    """
    before, after = each(x1, x0), each(x, x0)
    found = {}
    for name, sign in (("psnr", 1), ("lpips", -1)):
        by = after[name] - before[name]
        found[name] = {
            "before": round(float(before[name].mean()), 6),
            "after": round(float(after[name].mean()), 6),
            "change": [round(v, 6) for v in bootstrap(by)[:3]],
            "worse": int((sign * by < 0).sum()),
            "kept": [round(v, 6) for v in bootstrap(by[kept])[:3]] if kept.any() else None,
        }
    return found


def opened(file: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The record to go on with: the file's, where it is of the same model, or a new one."""
    if not file.exists():
        return head | {"results": []}
    record = json.loads(file.read_text())
    if {k: record[k] for k in head} != head:
        raise SystemExit(f"{file}: holds results of another model")
    return record


def save(file: Path, record: dict[str, Any]) -> None:
    atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


def measure(args: argparse.Namespace) -> None:
    model = load_pretrained(args.checkpoint, "cpu")
    file = args.record / "metrics.json"
    record = opened(file, {"checkpoint": model.record, "seed": 0})
    done = {(r["set"], r["cell"], r["nfe"], r["sampler"]) for r in record["results"]}
    for given in args.sets:
        name, path = given.split("=")
        clean = pictures(name, path, args.limit)
        x0 = to_float(clean)
        kept = (to_uint8(model.restore(x0)) == clean).flatten(1).all(1)
        about = {"source": Path(path).name, "images": len(x0), "fingerprint": fingerprint(clean)}
        about |= {"kept": int(kept.sum())}
        sets = record.get("data", {}).get("sets", {}) | {name: about}
        record["data"] = {"sets": sets, "fingerprint": config_hash(sets)}
        record["device"] = device_name(model.device)
        for cell, degrade in ((k, d) for k, d in cells().items() if not args.cells or k in args.cells):
            x1 = quantise(degrade(x0, torch.Generator().manual_seed(2**31)))
            for calls in args.nfe or [None]:
                walk = {k: v for k, v in model.walk(calls).items() if k in ("nfe", "sampler")}
                if (name, cell, *walk.values()) in done:
                    continue
                began = time.time()
                found = change(x0, x1, model.restore(x1, calls), kept)
                row = {"set": name, "cell": cell, **walk, "images": len(x0), **found}
                row |= {"seconds": round(time.time() - began, 1), "git_commit": git_commit()}
                record["results"].append(row)
                said = "  ".join(
                    f"{k} {v['before']:8.4f} -> {v['after']:8.4f} ({v['worse']:3d} worse)"
                    for k, v in found.items()
                )
                print(f"{name:9s} {cell:30s} {walk['nfe']:2d} calls  {said}", flush=True)
                record["git_commit"] = git_commit()
                save(file, record)


def threshold(args: argparse.Namespace) -> None:
    """On training pictures, what each walk wins, with what it would change little left alone."""
    model, kinds = load_pretrained(args.checkpoint, "cpu"), cells()
    chosen = {"least_change", "sampler", "nfe", "power"}
    plain = {k: v for k, v in model.record.items() if k not in chosen}
    some = {"faces": load_images(args.faces, "train", 64)}
    some |= {"scenes": load_images(args.scenes, "train", 64, crops=1)}
    some = {k: v[:: len(v) // args.limit][: args.limit] for k, v in some.items()}
    rows = []
    for given in args.walks:
        sampler, nfe, power = given.split(":")
        model.record = plain | {"sampler": sampler, "nfe": int(nfe), "power": float(power)}
        found = {}
        for (name, images), (cell, degrade) in itertools.product(some.items(), kinds.items()):
            x0 = to_float(images)
            x1 = quantise(degrade(x0, torch.Generator().manual_seed(1)))
            x = quantise(model.restore(x1))
            changed = 127.5 * (x - x1).square().flatten(1).mean(1).sqrt()
            before, after = each(x1, x0), each(x, x0)
            found[f"{name}, {cell}"] = {k: after[k] - before[k] for k in before} | {"by": changed}
        for least in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5):
            won, lpips = (
                {k: round(float(torch.where(v["by"] < least, 0, v[m]).mean()), 5) for k, v in found.items()}
                for m in ("psnr", "lpips")
            )
            rows.append({"walk": given, "least_change": least, "psnr": won, "lpips": lpips})
            mean, worse = sum(won.values()) / len(won), sum(v < 0 for v in won.values())
            rough = sum(v > 0 for v in lpips.values())
            print(
                f"{given}, {least:.1f} grey levels: mean gain {mean:.3f} dB, worse in {worse} cells, "
                f"least {min(won.values()):.2f} ({min(won, key=won.__getitem__)}); LPIPS worse in {rough}",
                flush=True,
            )
    about = {k: {"images": len(v), "fingerprint": fingerprint(v)} for k, v in some.items()}
    record = {"data": {"sets": about, "fingerprint": config_hash(about)}, "seed": 1, "results": rows}
    record |= {"checkpoint": plain, "device": device_name(model.device), "git_commit": git_commit()}
    save(args.record.with_name("photos-robust-threshold") / "metrics.json", record)


def pictures(name: str, path: str, limit: int) -> Tensor:
    """Some of a set: of pieces of scenes and of the embedded pictures the test split."""
    split = "test" if name in ("scenes", "embedded") else None
    clean = load_images(path, split, 64, crops=int(name == "scenes"))
    return clean[:: max(1, len(clean) // limit)][:limit]


def scenes(path: str, split: str) -> list[Tensor]:
    """Whole photographs, (3, H, W) in [-1, 1]."""
    return [to_float(to_tensor(open_it())) for _, open_it in open_source(path, split)[1]]


def by_planes(method: Callable[..., Any], x1: Tensor, *args: Any, **options: Any) -> Tensor:
    """A method of scikit-image for planes in [0, 1] on an image (1, 3, H, W) in [-1, 1]."""
    planes = ((x1[0] + 1) / 2).double().numpy()
    return 2 * torch.stack([torch.from_numpy(method(y, *args, **options)) for y in planes])[None].float() - 1


def whole(args: argparse.Namespace) -> None:
    """Scenes with a Gaussian blur of 1.6 pixels and noise of 2 / 255, as photographs of 8 bits."""
    from skimage.restoration import richardson_lucy, wiener

    model, sigma, noise = load_pretrained(args.checkpoint, "cpu"), 1.6, 2 / 255
    blur = GaussianBlur(kernel_size=13, sigma=sigma)
    spoil = create_degradation("blur-gauss", kernel_size=13, sigma=sigma, noise=noise, quantise=True)
    point = torch.zeros(1, 1, 27, 27, dtype=torch.float64)
    point[..., 13, 13] = 1
    psf = blur.apply(point)[0, 0, 7:-7, 7:-7].numpy()
    told: dict[str, tuple[Any, list[float]]] = {
        "Tikhonov": (lambda y, v: blur.inverse(y, v).float(), [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
        "Wiener": (lambda y, v: by_planes(wiener, y, psf, v), [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3]),
        "Richardson-Lucy": (lambda y, v: by_planes(richardson_lucy, y, psf, num_iter=v), [3, 5, 10, 20, 40]),
    }
    chosen = {}  # each with the weight, or iterations, that does best on five training scenes
    for name, (method, weights) in told.items():
        total = dict.fromkeys(weights, 0.0)
        for i, x0 in enumerate(scenes(args.scenes, "train")[:5]):
            x1 = quantise(spoil(x0[None], torch.Generator().manual_seed(1000 + i)))
            for w in weights:
                total[w] += float(psnr(method(x1, w).clamp(-1, 1), x0[None]))
        chosen[name] = max(weights, key=lambda w: total[w])
    values: dict[str, dict[str, list[float]]] = {}
    photographs = scenes(args.scenes, "test")[: args.limit]
    for i, x0 in enumerate(progress(photographs, desc="scenes", unit="photographs", show=True)):
        x1 = quantise(spoil(x0[None], torch.Generator().manual_seed(i)))
        found = {"blurred": x1}
        for name, (method, _) in told.items():
            found[f"{name}, told the blur"] = method(x1, chosen[name]).clamp(-1, 1)
        found |= {
            f"photos-robust, calls: {model.walk(n)['nfe']}": model.restore(x1, n) for n in args.nfe or [None]
        }
        for name, x in found.items():
            for metric, value in evaluate(x, x0[None], ["psnr", "lpips"]).items():
                values.setdefault(name, {}).setdefault(metric, []).append(value.value)
    results = []
    for name, of in values.items():
        found_ = {k: bootstrap(torch.tensor(v))[:3] for k, v in of.items()}
        results.append({"row": name} | {k: [round(v, 6) for v in m] for k, m in found_.items()})
        print(f"{name:40s}", "  ".join(f"{k} {m[0]:.4f}" for k, m in found_.items()), flush=True)
    record: dict[str, Any] = {
        "checkpoint": model.record,
        "scenes": len(photographs),
        "sigma": sigma,
        "noise": noise,
    }
    record |= {"chosen on training scenes": chosen}
    record |= {"seed": 0, "device": device_name(model.device), "data": {"source": Path(args.scenes).name}}
    record["data"]["fingerprint"] = config_hash({"scenes": [fingerprint(to_uint8(x)) for x in photographs]})
    record |= {"results": results, "git_commit": git_commit()}
    file = args.record.with_name(args.record.name.replace("cells", "scenes")) / "metrics.json"
    save(file, record)


def figure(args: argparse.Namespace) -> None:
    """Held-out photographs, each with another damage: before, restored as the model recommends, clean."""
    import matplotlib.pyplot as plt

    from i2sb_lib.plotting import image_grid, use_style

    model, kinds = load_pretrained(args.checkpoint, "cpu"), cells()
    photographs = embedded_photographs("test")
    shown = {
        "blur 2": ("astronaut.png", 0.5, (20, 62)),
        "blur 1.25": ("flower.jpg", 0.5, (70, 110)),
        "noise 0.05": ("astronaut.png", 0.5, (20, 62)),
        "JPEG 30": ("flower.jpg", 0.5, (70, 110)),
        "blur 1.5, noise 0.02, JPEG 60": ("astronaut.png", 0.35, (6, 30)),
        "clean": ("flower.jpg", 0.5, (40, 60)),
    }
    clean, before = [], []
    for i, (cell, (name, scale, (top, left))) in enumerate(shown.items()):
        photo = photographs[name]
        small = photo.resize((round(photo.width * scale), round(photo.height * scale)), 1)  # Lanczos
        x0 = to_float(to_tensor(small))[None, :, top : top + 96, left : left + 96]
        clean.append(x0)
        before.append(quantise(kinds[cell](x0, torch.Generator().manual_seed(i))))
    x0, x1 = torch.cat(clean), torch.cat(before)
    rows = {"degraded": x1, "restored": model.restore(x1)}
    use_style()
    titles = [c.replace(", ", ",\n") for c in shown]
    image_grid([*rows.values(), x0], [*rows, "clean"], scale=1.3, titles=titles)
    target = args.record.with_name("photos-robust") / "figure.png"
    atomic_write(target, lambda p: plt.savefig(p, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "measure", "threshold", "whole", "figure"])
    parser.add_argument("--faces", help="training faces")
    parser.add_argument("--scenes", help="training scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/photos-robust"))
    parser.add_argument("--init", help="folder of a training, to train on from its weights")
    parser.add_argument("--alone", type=float, default=0, help="share of pictures with one kind of damage")
    parser.add_argument("--mild", type=float, default=1, help="below 1: of these, JPEG is weak more often")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6300)
    parser.add_argument("--checkpoint", default="photos-robust")
    parser.add_argument("--sets", nargs="+", default=["embedded=embedded"], help="NAME=PATH")
    parser.add_argument("--cells", nargs="+", help="these kinds of damage; all unless given")
    parser.add_argument("--nfe", nargs="+", type=int, help="as the model recommends, unless given")
    walks = ["sde:1:1", "ode:2:1", "dbim:2:1", "dbim:2:2", "dbim:3:2"]
    parser.add_argument("--walks", nargs="+", default=walks, help="SAMPLER:CALLS:POWER to choose from")
    parser.add_argument("--limit", type=int, default=64, help="pictures of each set, or scenes")
    parser.add_argument("--record", type=Path, default=Path("data/runs/photos-robust-cells"))
    args = parser.parse_args()
    what = {"train": learn, "measure": measure, "threshold": threshold, "whole": whole, "figure": figure}
    what[args.what](args)


if __name__ == "__main__":
    main()
