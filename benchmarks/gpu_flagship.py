"""The flagship models on a GPU that is there for minutes at a time: train, go on, evaluate, pack.

One call does what its minutes allow: it takes up the first unfinished model where it stands (states are
in --work and resume exactly), trains until the budget of the model or of the call is used, evaluates a
model that is trained on --test, and packs what there is, finished or not, into parts of at most 15 MiB in
--out. A model's length is set once, from its own measured speed, so that it takes --minutes-per-model,
and stands in the run's record. LPIPS and FID need their weights in torch.hub's cache; a machine that
lacks them names psnr and ssim, and `ship.py` measures the rest where the parts arrive.

    python benchmarks/gpu_flagship.py --data PHOTOS --test TEST --work runs/gpu --out OUT --minutes 9
    python benchmarks/gpu_flagship.py --unpack OUT --work runs/gpu       # where the parts arrive

--small tries all of this on a CPU: the same presets with a tiny network and few steps.
"""

import argparse
import dataclasses
import json
import tarfile
import tempfile
import time
from pathlib import Path

import torch

from i2sb_lib.cli import main as i2sb
from i2sb_lib.config import PRESETS, TrainConfig
from i2sb_lib.files import atomic_write
from i2sb_lib.training import Trainer, train

MODELS = ["celeba64-deblur", "celeba64-deblur-blind", "celeba64-deblur-noisy", "celeba64-deblur-cunet"]
PART = 15 * 2**20
TRIAL = 100  # steps that measure the speed, after as many that warm up


def small(config: TrainConfig) -> TrainConfig:
    """The preset at a size that a CPU tries in seconds."""
    network = "unet-tiny" if config.network != "cunet" else "cunet"
    size = {"size": 32, "batch_size": 8, "holdout": 16}
    return dataclasses.replace(config, network=network, compile=False, warmup=5, precision="no", **size)


def length(config: TrainConfig, minutes: float, trial: int) -> int:
    """Steps that this machine takes in so many minutes, from `trial` steps after as many others."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(dataclasses.replace(config, out=scratch))
        for k in range(2 * trial):
            if k == trial:
                wait()
                start = time.perf_counter()
            run.optimise()
        wait()
        seconds = (time.perf_counter() - start) / trial
    return max(10, round(60 * minutes / seconds))


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--unpack", type=Path, default=None)
    args = parser.parse_args()
    if args.unpack:
        return unpack(args.unpack, args.work)
    end = time.monotonic() + 60 * args.minutes
    for name in args.models:
        folder = args.work / name
        preset = small(PRESETS[name]) if args.small else PRESETS[name]
        config = dataclasses.replace(preset, data=args.data, out=str(folder), save_every=10**9)
        steps = args.work / f"{name}.steps.json"
        if not steps.exists():
            count = length(config, args.minutes_per_model, 5 if args.small else TRIAL)
            atomic_write(steps, lambda p, count=count: p.write_text(json.dumps(count)))
        left = (end - time.monotonic()) / 60
        if left <= 0:
            break
        config = dataclasses.replace(config, steps=json.loads(steps.read_text()), minutes=left)
        config = dataclasses.replace(config, eval_every=max(1, config.steps // 5))
        resume = (folder / "state.pt").exists()
        trained = resume and torch.load(folder / "state.pt", weights_only=True)["step"] >= config.steps
        evaluated = (folder / "metrics.json").exists() or not args.test
        if trained and evaluated:
            continue
        if not trained:
            result = train(config, resume)
            print(json.dumps({k: v for k, v in result.items() if k != "training"}), flush=True)
            trained = result["finished"]
        if trained and not evaluated:
            command = ["evaluate", "--checkpoint", str(folder), "--data", args.test, "--out", str(folder)]
            i2sb([*command, "--nfe", *args.nfe, "--metrics", *args.metrics])
        pack(folder, args.out)


if __name__ == "__main__":
    main()
