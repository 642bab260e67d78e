"""Four tasks that are not a blur: a bridge for each, beside a regression and what needs no training.

For each task one network is trained twice, alike but for the process, and restores photographs that were
degraded in that task's way. Trainings that are there are taken up, and rows that are measured are skipped.

    python benchmarks/tasks.py --train PATH --data PATH [--out data/runs/tasks] [--work runs/tasks]
    python benchmarks/tasks.py --look --data PATH --tasks super-resolution inpainting colour

The second, with the bridges that the first has trained: a sheet of samples, and on the first photographs
what is won by imposing the pixels, or the luma, that x1 has whole, how far samples of a hole differ, and
how colourful the coloured ones are.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import TrainConfig, config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import LUMA, create_degradation
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import Metric, bootstrap, calibration, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, save_image, to_float
from i2sb_lib.samplers import generators, sample
from i2sb_lib.training import train

BASE: dict[str, Any] = {"network": "unet-small", "steps": 4400, "batch_size": 16, "lr": 8e-4, "warmup": 100}
EVERY: dict[str, Any] = {"save_every": 1100, "eval_every": 10**6, "progress": False}
TASKS: dict[str, dict[str, Any]] = {
    "super-resolution": {"degradation": "sr4x-bicubic"},
    "inpainting": {"degradation": "inpaint-freeform"},
    "JPEG": {"degradation": "jpeg", "degradation_options": {"quality": 10}},
    "colour": {"degradation": "grey"},
}
ROWS = [("regression", "sde", 1), ("bridge", "sde", 1), ("bridge", "ode", 10), ("bridge", "sde", 10)]
SAMPLES = 4
SHOWN, DRAWN, FIRST, SPREAD = [1, 9, 14, 27], 3, 200, 50  # faces and samples of the sheet; photographs
Impose = Callable[[Tensor], Tensor]


def learn(task: str, process: str, args: argparse.Namespace) -> Pretrained:
    """The trained model; a training that is there goes on."""
    out = args.work / f"{task}-{process}"
    place = {"data": str(args.train), "out": str(out), "compile": torch.cuda.is_available()}
    config = TrainConfig(**BASE | EVERY | TASKS[task] | place | {"process": process, "steps": args.steps})
    train(config, resume=(out / "state.pt").exists())
    return load_pretrained(out)


def degraded(task: str, x0: Tensor) -> Tensor:
    """x1 (B, 3, H, W) of the whole set, since what is random in it is drawn for all photographs at once."""
    options: dict[str, Any] = TASKS[task].get("degradation_options", {})
    degrade = create_degradation(TASKS[task]["degradation"], **options, quantise=True)
    return quantise(degrade(x0, torch.Generator().manual_seed(2**31)))


def hole(x1: Tensor) -> Tensor:
    """(B, 1, H, W), true where a pixel of x1 is the grey of the strokes: read off x1, as a user would."""
    return (x1 == quantise(torch.zeros(())).to(x1)).all(1, keepdim=True)


def known(task: str, x1: Tensor) -> Impose | None:
    """x0_hat -> the nearest image that has what x1 has whole: its pixels off the strokes, or its luma."""
    if task == "inpainting":
        gap = hole(x1)
        return lambda x: torch.where(gap, x, x1.to(x))
    if task == "colour":
        w = x1.new_tensor(LUMA)[:, None, None]
        return lambda x: x + w * (x1[:, :1] - (w * x).sum(1, keepdim=True)) / w.square().sum()
    return None


@torch.no_grad()
def walk(model: Pretrained, x1: Tensor, nfe: int, task: str | None = None, seed: int = 0) -> Tensor:
    """`model.restore(x1, nfe, seed=seed)`, each guess made to keep what x1 has whole in `task`, if given."""
    denoiser, drawn, out = model.denoiser, generators(seed, len(x1)), []
    for y, some in zip(x1.split(16), (drawn[i : i + 16] for i in range(0, len(x1), 16)), strict=True):
        y = y.to(model.device)
        impose = (task and known(task, y)) or (lambda x: x)

        def guess(xt: Tensor, t: Tensor, y: Tensor = y, impose: Impose = impose) -> Tensor:
            return impose(denoiser(xt, t, y))

        out.append(sample(guess, denoiser.bridge, y, nfe, generator=some).x.clamp(-1, 1).to(x1))
    return torch.cat(out)


def rms(x: Tensor, where: Tensor) -> float:
    """Root mean square over the pixels `where`, in grey levels."""
    return round(float(127.5 * x.double().square()[where.expand_as(x)].mean().sqrt()), 4)


def look(task: str, args: argparse.Namespace, x0: Tensor, note: Callable[..., Any]) -> dict[str, Any]:
    """The rows of `known`, and the task's line of the sheet with what else is measured on samples."""
    model, x1 = load_pretrained(args.work / f"{task}-bridge"), degraded(task, x0)
    few, some, found = slice(args.first), slice(args.spread), dict[str, Any]()
    faces = [i for i in args.shown if i < len(x0)]
    y = x1[faces]
    samples = [walk(model, y, 10, seed=s) for s in range(DRAWN)]
    columns = [y, classical(task, y)[1], walk(model, y, 1), *samples, x0[faces]]
    sheet = torch.cat([torch.cat(list(c), dim=-2) for c in columns], dim=-1)
    save_image(sheet, args.out / f"{task}.png")
    if known(task, x1) is None:
        return found
    made: dict[str, Tensor] = {}
    for nfe in (1, 10):
        free = walk(model, x1[few], nfe)
        kept = walk(model, x1[few], nfe, task)
        made[f"sde {nfe}"], made[f"sde {nfe}, known imposed"] = free, kept
        how: dict[str, Any] = {"task": task, "process": "bridge", "sampler": "sde", "nfe": nfe}
        how |= {"images": len(free), "device": device_name(model.device)}
        row = f"{task}: bridge, sde {nfe}, first {len(free)}"
        base = note(row, free, **how)
        note(f"{row}, known imposed", kept, against=base, **how, imposed=True)
        if nfe > 1:
            after = known(task, x1[few])
            assert after is not None
            note(f"{row}, known imposed at the end", after(free), against=base, **how, imposed=True)
    if task == "inpainting":
        gap, truth = hole(x1[some]), x0[some]
        drawn = [made["sde 10"][some], *(walk(model, x1[some], 10, seed=s) for s in range(1, SAMPLES))]
        spread, miss = torch.stack(drawn).std(0), torch.stack(drawn).mean(0) - truth
        found["hole"] = {
            "images": len(truth),
            "samples": SAMPLES,
            "share": round(float(gap.double().mean()), 4),
            "inside": {"spread": rms(spread, gap), "error": rms(miss, gap)},
            "outside": {"spread": rms(spread, ~gap), "error": rms(miss, ~gap)},
        }
    else:
        found["chroma"] = {"images": len(made["sde 10"])}  # largest less smallest of red, green and blue
        for name, x in {"truth": x0[few], **made}.items():
            each = 127.5 * (x.amax(1) - x.amin(1)).mean((1, 2))
            mean = bootstrap(each)
            luma = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True) - x1[few][:, :1]
            values = {"value": mean.value, "low": mean.low, "high": mean.high}
            found["chroma"][name] = {k: round(v, 4) for k, v in values.items()}
            found["chroma"][name]["luma off by"] = rms(luma, torch.ones_like(luma, dtype=torch.bool))
    return found


def classical(task: str, x1: Tensor) -> tuple[str, Tensor]:
    """What needs no training: cubic interpolation, biharmonic filling of the grey strokes, or nothing."""
    if task == "super-resolution":
        small = F.interpolate(x1, scale_factor=1 / 4, mode="area")  # its pixels are repeated: nothing is lost
        return "bicubic", F.interpolate(small, size=x1.shape[-2:], mode="bicubic").clamp(-1, 1)
    if task == "inpainting":
        from skimage.restoration import inpaint_biharmonic

        holes = hole(x1)[:, 0].numpy()
        images = x1.permute(0, 2, 3, 1).double().numpy()
        filled = [inpaint_biharmonic(y, hole, channel_axis=-1) for y, hole in zip(images, holes, strict=True)]
        return "biharmonic", torch.stack([torch.from_numpy(y) for y in filled]).permute(0, 3, 1, 2).float()
    return "", x1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", help="training photographs; not for --look")
    parser.add_argument("--data", required=True, help="photographs to restore")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--steps", type=int, default=BASE["steps"])
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim", "lpips"])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("data/runs/tasks"))
    parser.add_argument("--work", type=Path, default=Path("runs/tasks"), help="states and weights")
    parser.add_argument("--look", action="store_true", help="sheets and samples of bridges that are there")
    parser.add_argument("--first", type=int, default=FIRST, help="photographs whose known part is imposed")
    parser.add_argument("--spread", type=int, default=SPREAD, help="photographs for samples of a hole")
    parser.add_argument("--shown", type=int, nargs="+", default=SHOWN, help="photographs on the sheets")
    args = parser.parse_args()
    if not (args.look or args.train):
        parser.error("expected --train or --look")

    clean = load_images(args.data, None, 64)[: args.limit]
    x0, file = to_float(clean), args.out / "metrics.json"
    data = {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)}
    config = BASE | {"steps": args.steps, "train": Path(args.train or "").name}
    record: dict[str, Any] = {"data": data, "seed": 0, "device": device_name(auto_device())}
    record |= {"config": config, "config_hash": config_hash(config), "results": []}
    if file.exists():
        old = json.loads(file.read_text())
        if old["data"] != data or not (args.look or old["config_hash"] == record["config_hash"]):
            raise SystemExit(f"{file}: holds tasks of other photographs or another training")
        record = old
    done = {r["row"] for r in record["results"]}

    def write() -> None:
        record["git_commit"] = git_commit()
        atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))

    def rounded(found: dict[str, Metric]) -> dict[str, dict[str, float]]:
        return {k: {n: round(getattr(m, n), 8) for n in ("value", "low", "high")} for k, m in found.items()}

    def note(row: str, x: Tensor, against: dict[str, Metric] | None = None, **how: Any) -> dict[str, Metric]:
        """A row, in place of one of its name; against: another's, which is subtracted by photograph."""
        found = evaluate(x, x0[: len(x)], args.metrics)
        values = rounded(found)
        if against is not None:
            how["change"] = rounded(
                {k: bootstrap(m.per_image - against[k].per_image) for k, m in found.items()}  # type: ignore[operator]
            )
        record["results"] = [r for r in record["results"] if r["row"] != row]
        record["results"].append({"row": row, **how, **values, "git_commit": git_commit()})
        print(f"{row:40s}", "  ".join(f"{k} {v['value']:.5g}" for k, v in values.items()), flush=True)
        write()
        return found

    if args.look:
        args.out.mkdir(parents=True, exist_ok=True)
        made = {"device": device_name(auto_device()), "shown": args.shown, "samples": DRAWN}
        record["look"] = record.get("look", {}) | made
        for task in args.tasks:
            record["look"] |= {task: found} if (found := look(task, args, x0, note)) else {}
            write()
        return
    for task in args.tasks:
        x1, models = degraded(task, x0), dict[str, Pretrained]()
        name, filled = classical(task, x1)
        for row, x in {f"{task}: identity": x1, f"{task}: {name}": filled}.items():
            if row not in done and not row.endswith(": "):
                note(row, x, task=task)
        for process, sampler, nfe in ROWS:
            row = f"{task}: {process}, {sampler} {nfe}"
            if row in done:
                continue
            if process not in models:
                models[process] = learn(task, process, args)
            model, began = models[process], time.time()
            x = model.restore(x1, nfe, sampler)
            how = {"task": task, "process": process, "sampler": sampler, "nfe": nfe}
            how |= {"seconds": round(time.time() - began, 1), "training_seconds": model.record["seconds"]}
            if sampler == "sde" and nfe > 1:
                some = slice(0, 100)  # how far apart samples of one x1 are says how many answers there are
                samples = torch.stack([model.restore(x1[some], nfe, seed=s) for s in range(SAMPLES)])
                how["calibration"] = {
                    k: round(v, 5)
                    for k, v in calibration(samples, x0[some], lpips="lpips" in args.metrics)
                    ._asdict()
                    .items()
                    if isinstance(v, float)
                }
            note(row, x, **how)


if __name__ == "__main__":
    main()
