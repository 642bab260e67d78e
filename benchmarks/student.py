"""A student that says in one call what its teacher's walk says in several.

Under the sampler `dbim` a walk is a function of x1 and of one noise z. Its ends for the training photographs
are the student's targets and the same z its input, so it is an ordinary regression and no new theory: nothing
asks for sharpness or for spread, and a student that ignores z is the mean again. The student is the teacher's
network, begun from its weights and called once, at the first time s inside the walk, on
q_sample(s, g, x1, z): where the teacher would be, had its first answer been the guess g.

    python benchmarks/student.py --train PATH --data PATH [--teacher NAME] [--out data/runs/student]

WORK/weights is then a checkpoint whose record says where the call is made, for `restore`. Walks and the
training go on where they were stopped. The rows are of noises that no training saw.
"""

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.batches import Batches
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import TrainConfig, config_hash, create_pair_maker, stream
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import Degradation
from i2sb_lib.denoiser import Denoiser
from i2sb_lib.devices import auto_precision, device_name
from i2sb_lib.evaluation import calibration, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import to_float, to_uint8
from i2sb_lib.progress import progress
from i2sb_lib.samplers import generators, sample
from i2sb_lib.training import Trainer

PART, SAVE_EVERY = 64, 200  # images at a time, and steps
HIGH, OTHER = 2**30, 2**20  # where the rows' seeds begin, above those of the training, and their distance
DAMAGE = 2**40  # where the seeds of what is random in x1 begin


def noises(places: list[int], like: Tensor) -> Tensor:
    """z (N, C, H, W) of the images at these places, in whatever order and company."""
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators(places, len(places))])


def damaged(degrade: Degradation, clean: Tensor, places: list[int]) -> Tensor:
    """x1 of the images at these places: its noise is theirs, in the walk as in the training."""
    return degrade(to_float(clean), generators([DAMAGE + k for k in places], len(places)))


def begin(work: Path, how: dict[str, Any]) -> None:
    """Note what the walks in `work` are of; SystemExit where it holds others."""
    file = work / "walks.json"
    if file.exists() and (there := json.loads(file.read_text())) != how:
        raise SystemExit(f"{work}: expected walks of {how}, got those of {there}: give another --work")
    atomic_write(file, lambda p: p.write_text(json.dumps(how) + "\n"))


class Student(Denoiser):
    """The one call, and the regression on the ends of walks."""

    def answer(self, x1: Tensor, s: Tensor, z: Tensor, g: Tensor | None = None) -> Tensor:
        """The end of the walk from x1 with the noise z, as the student has it; s (B,), all equal."""
        g = self.guess(x1) if g is None else g
        return self(self.bridge.q_sample(s, g, x1, z), s, x1, g)

    def loss(
        self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor, floor: float = 0.0, g: Tensor | None = None
    ) -> Tensor:
        return (self.answer(x1, t, noise, g) - x0).square().flatten(1).mean(1)


class Walks(Batches):
    """The teacher's walks: its ends in the place of x0, its first time inside, and its noise."""

    ends: Tensor
    first: float

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(stream(self.config.seed, step))
        places = self.places[self.indices(step)]
        x1 = damaged(self.degrade, self.images[places], places.tolist())
        end, z = to_float(self.ends[places]), noises(places.tolist(), x1)
        flip = torch.rand(len(places), 1, 1, 1, generator=generator) < 0.5
        end, x1, z = (torch.where(flip, x.flip(-1), x).to(self.device) for x in (end, x1, z))
        return end, x1, torch.full((len(x1),), self.first, device=x1.device), z


class Lesson(Trainer):
    """A run of the library with a student for its model and walks for its batches."""

    def __init__(self, config: TrainConfig, teacher: Denoiser, ends: Tensor, first: float) -> None:
        self.teacher = teacher
        super().__init__(config, resume=(Path(config.out) / "state.pt").exists())
        b = self.batches
        self.batches = Walks(b.images, b.degrade, config, None, b.places, self.device)
        self.batches.ends, self.batches.first = ends, first

    def record(self) -> dict[str, Any]:
        """With where its one call is made, so that `restore` knows a student."""
        return super().record() | {"start": self.batches.first}

    def _build(self) -> Student:
        model = Student(self.teacher.config)
        model.load_state_dict(self.teacher.state_dict())
        return model


def fast(device: torch.device) -> torch.autocast:
    """The precision that `restore` takes by itself."""
    kind = auto_precision(device)
    return torch.autocast(
        device.type, torch.float16 if kind == "fp16" else torch.bfloat16, enabled=kind != "no"
    )


@torch.no_grad()
def walk(teacher: Denoiser, x1: Tensor, times: Tensor, seeds: list[int]) -> Tensor:
    """The walks' ends (N, C, H, W): a generator's first draw is the walk's one noise."""
    ends, place, done = [], next(teacher.parameters()).device, 0
    for y in x1.split(PART):
        y, drawn = y.to(place), generators(seeds[done : done + len(y)], len(y))
        with fast(place):
            denoise = partial(teacher, x1=y, g=teacher.guess(y))
            ends.append(sample(denoise, teacher.bridge, y, sampler="dbim", times=times, generator=drawn).x)
        done += len(y)
    return torch.cat(ends).clamp(-1, 1).cpu()


@torch.no_grad()
def answers(student: Student, x1: Tensor, first: float, seeds: list[int]) -> Tensor:
    """What the student says in the place of `walk`."""
    out, place, done = [], next(student.parameters()).device, 0
    for y in x1.split(PART):
        z, s = noises(seeds[done : done + len(y)], y), torch.full((len(y),), first, device=place)
        with fast(place):
            out.append(student.answer(y.to(place), s, z.to(place)))
        done += len(y)
    return torch.cat(out).clamp(-1, 1).cpu()


def targets(teacher: Denoiser, clean: Tensor, degrade: Degradation, times: Tensor, file: Path) -> Tensor:
    """The ends of all training walks as uint8, in `file`, a part at a time."""
    parts = torch.load(file, weights_only=True) if file.exists() else []
    todo = range(len(parts), -(-len(clean) // PART))
    for k in progress(todo, desc="walks", unit="parts", show=True):
        places = list(range(len(clean)))[k * PART : (k + 1) * PART]
        x1 = damaged(degrade, clean[places], places)
        parts.append(to_uint8(walk(teacher, x1, times, places)))
        if k % 20 == 0 or k == todo[-1]:
            atomic_write(file, lambda p: torch.save(parts, p))
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="training photographs")
    parser.add_argument("--data", required=True, help="photographs to restore")
    parser.add_argument("--teacher", default="celeba64-deblur")
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--power", type=float, default=2.0, help="of the walk's time grid")
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim", "lpips", "fid", "kid"])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--spread", type=int, default=64, help="photographs for the calibration")
    parser.add_argument("--samples", type=int, default=8, help="restorations of each")
    parser.add_argument("--out", type=Path, default=Path("data/runs/student"))
    parser.add_argument("--work", type=Path, default=Path("runs/student"), help="walks, state and weights")
    args = parser.parse_args()

    model = load_pretrained(args.teacher)
    how, teacher = model.record["training"], model.denoiser
    times = teacher.bridge.schedule.grid(args.nfe, args.power)
    first = float(times[1])
    degrade = create_pair_maker(how)
    args.work.mkdir(parents=True, exist_ok=True)
    images = load_images(args.train, "train", how["size"])
    said = {k: getattr(args, k) for k in ("teacher", "nfe", "power")}
    begin(args.work, said | {"fingerprint": fingerprint(images)})
    ends = targets(teacher, images, degrade, times, args.work / "ends.pt")

    own = {"data": args.train, "out": str(args.work / "weights"), "steps": args.steps, "lr": args.lr}
    own |= {"batch_size": 16, "compile": False}  # whatever its teacher's were
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{k: v for k, v in how.items() if k in fields} | own | {"progress": True})
    run, began = Lesson(config, teacher, ends, first), time.monotonic()
    before = run.seconds
    for _ in progress(range(run.step, config.steps), desc="training", unit="steps", show=True):
        run.optimise()
        run.seconds = before + time.monotonic() - began
        if run.step % SAVE_EVERY == 0 or run.step == config.steps:
            run.log()
            run.save()
    student = run.ema

    clean = load_images(args.data, None, how["size"])[: args.limit]
    x0 = to_float(clean)
    seeds = [HIGH + i for i in range(len(x0))]
    x1 = damaged(degrade, clean, seeds)
    record: dict[str, Any] = {
        "data": {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)},
        "seed": 0,
        "device": device_name(run.device),
        "git_commit": git_commit(),
        "config": {k: getattr(args, k) for k in ("teacher", "nfe", "power", "steps", "lr")}
        | {"batch_size": config.batch_size, "train": Path(args.train).name},
        "training_seconds": round(run.seconds, 1),
        "results": [],
    }
    record["config_hash"] = config_hash(record["config"])
    ways: dict[str, Any] = {
        "teacher, 1 call": lambda y, seeds: model.restore(y, 1),
        f"teacher, {args.nfe} calls": lambda y, seeds: walk(teacher, y, times, seeds),
        "student": lambda y, seeds: answers(student, y, first, seeds),
    }
    few = slice(args.spread)
    aim = walk(teacher, x1[few], times, seeds[few])
    for row, restore in ways.items():
        x = restore(x1, seeds)
        found = evaluate(x, x0, args.metrics)
        values = {k: {n: round(getattr(m, n), 8) for n in ("value", "low", "high")} for k, m in found.items()}
        off = float(127.5 * (x[few] - aim).double().square().mean().sqrt())
        line: dict[str, Any] = {"row": row, **values, "from_walk": round(off, 4)}
        if row != "teacher, 1 call":
            drawn = [[k + OTHER * (1 + j) for k in seeds[few]] for j in range(args.samples)]
            many = torch.stack([restore(x1[few], some) for some in drawn])
            c = calibration(many, x0[few], lpips="lpips" in args.metrics)
            line["calibration"] = {k: round(getattr(c, k), 4) for k in ("spread", "error", "ratio")}
            if c.diversity is not None:
                line["calibration"]["diversity"] = round(c.diversity, 6)
        record["results"].append(line)
        print(
            f"{row:20s}",
            "  ".join(f"{k} {v['value']:.5g}" for k, v in values.items()),
            line.get("calibration", ""),
            flush=True,
        )
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
