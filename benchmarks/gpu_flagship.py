"""The flagship models on a GPU that is there for minutes at a time: train, go on, evaluate, pack.

One call does what its minutes allow: it takes up the first unfinished model where it stands (states are
in --work and resume exactly), trains until the budget of the model or of the call is used, evaluates a
model that is trained on --test, and packs what there is, finished or not, into parts of at most 15 MiB in
--out. A model takes --steps, or its length follows its speed, so that it takes --minutes-per-model, or ends
with the call; it stands in its state. LPIPS and FID need their weights in torch.hub's cache; a machine that
lacks them names psnr and ssim, and `ship.py` measures the rest where the parts arrive.

    python benchmarks/gpu_flagship.py --data PHOTOS --test TEST --work runs/gpu --out OUT --minutes 9
    python benchmarks/gpu_flagship.py --unpack OUT --work runs/gpu       # where the parts arrive

One model at a time: processes beside each other on one card take turns. A step is one CUDA graph
(`captured`), since a host can be slower at starting kernels than the card is at running them. --small tries
all of this on a CPU: the same presets with a tiny network and few steps.
"""

import argparse
import dataclasses
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from captured import Captured
from photos_training import RECIPE, create_run

from i2sb_lib.config import PRESETS, TrainConfig
from i2sb_lib.files import atomic_write
from i2sb_lib.progress import progress
from i2sb_lib.training import LOG_EVERY, Trainer

MODELS = ["celeba64-deblur", "celeba64-deblur-blind", "celeba64-deblur-noisy", "celeba64-deblur-cunet"]
ROBUST = "photos-robust"
PART = 15 * 2**20


def small(config: TrainConfig) -> TrainConfig:
    """The preset at a size that a CPU tries in seconds."""
    network = "unet-tiny" if config.network != "cunet" else "cunet"
    size = {"size": 32, "batch_size": 8, "holdout": 16}
    return dataclasses.replace(config, network=network, compile=False, warmup=5, precision="no", **size)


def create(args: argparse.Namespace, name: str) -> Trainer:
    """The run of a model, new or as it was left; its length is then the one that stands in its state."""
    folder = args.work / name
    config = dataclasses.replace(PRESETS[name], data=args.data, out=str(folder))
    if name == ROBUST:
        config = dataclasses.replace(config, **RECIPE)
    config = small(config) if args.small else config
    changes = {"steps": args.steps} if args.steps else {}
    config = dataclasses.replace(config, **changes | json.loads(args.options))
    if resume := (folder / "state.pt").exists():
        steps = torch.load(folder / "state.pt", weights_only=True, mmap=True)["config"]["steps"]
        config = dataclasses.replace(config, steps=steps)
    return create_run(config, resume, args.data, args.scenes) if name == ROBUST else Trainer(config, resume)


def learn(run: Trainer, minutes: float | None, end: float, every: int) -> bool:
    """Train until the model is done or `end` has come, and save; whether it is done.

    minutes: what the training is to take in all, for which its length follows its speed, `every` so many
    steps anew; None for the steps that the run has.
    """
    if run.step == run.config.steps:
        return True
    lane = Captured(run)
    began, before, since = time.monotonic(), run.seconds, run.step
    mark = began
    bar = progress(desc=run.out.name, unit="steps", show=True, total=run.config.steps, initial=run.step)
    sheets = 1 + 5 * run.step // run.config.steps
    while run.step < run.config.steps and time.monotonic() < end:
        lane.step()
        run.seconds = before + time.monotonic() - began
        if run.step % every == 0:
            with lane.still():
                run.log()
            now = time.monotonic()
            if minutes is not None:
                each = (now - mark) / (run.step - since)
                left = min(60 * minutes - run.seconds, end - now)
                run.config = dataclasses.replace(run.config, steps=run.step + max(0, round(left / each)))
                bar.total = run.config.steps
            mark, since = now, run.step
        bar.update(run.step - bar.n)
        if 5 * run.step >= sheets * run.config.steps:
            sheets += 1
            with lane.still():
                run.save()
                print(run.monitor(), file=sys.stderr, flush=True)
            mark, since = time.monotonic(), run.step
    bar.close()
    with lane.still():
        if run.pending:
            run.log()
        run.save()
    return run.step == run.config.steps


def pack(folder: Path, out: Path) -> None:
    """The weights, record, history and contact sheet of a run as NAME.tar.00, .01 and so on."""
    with tempfile.NamedTemporaryFile() as file:
        with tarfile.open(file.name, "w") as tar:
            for path in sorted(folder.iterdir()):
                if path.name != "state.pt" and path.is_file():
                    tar.add(path, f"{folder.name}/{path.name}")
        data = Path(file.name).read_bytes()
    for k in range(0, len(data), PART):
        part, target = data[k : k + PART], out / f"{folder.name}.tar.{k // PART:02}"
        atomic_write(target, lambda p, part=part: p.write_bytes(part))


def unpack(source: Path, work: Path) -> None:
    for first in sorted(source.glob("*.tar.00")):
        parts = sorted(source.glob(f"{first.stem}.[0-9][0-9]"))
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(b"".join(p.read_bytes() for p in parts))
            with tarfile.open(file.name) as tar:
                tar.extractall(work, filter="data")
        print(work / first.name.removesuffix(".tar.00"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--test", help="clean photographs to evaluate on")
    parser.add_argument("--nfe", nargs="+", default=["1", "2", "5", "10", "100"])
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim"])
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-out"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, in all")
    parser.add_argument("--minutes-per-model", type=float, default=6.0)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=PRESETS)
    parser.add_argument("--scenes", default="embedded", help="what photos-robust sees beside --data")
    parser.add_argument("--steps", type=int, default=None, help="of a model, instead of its minutes")
    parser.add_argument("--options", default="{}", help="what else differs from the preset, as JSON")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--unpack", type=Path, default=None)
    args = parser.parse_args()
    if args.unpack:
        return unpack(args.unpack, args.work)
    torch.backends.cudnn.benchmark = True
    end = time.monotonic() + 60 * args.minutes
    for name in args.models:
        folder = args.work / name
        if (folder / "metrics.json").exists() or time.monotonic() > end:
            continue
        minutes = None if args.steps else args.minutes_per_model
        finished = learn(create(args, name), minutes, end, 2 if args.small else LOG_EVERY)
        print(json.dumps({"model": name, "finished": finished}), flush=True)
        if finished and args.test:
            command = ["evaluate", "--checkpoint", str(folder), "--data", args.test, "--out", str(folder)]
            from i2sb_lib.cli import main as i2sb  # which a machine that only trains need not have

            i2sb([*command, "--nfe", *args.nfe, "--metrics", *args.metrics])
        pack(folder, args.out)


if __name__ == "__main__":
    main()
