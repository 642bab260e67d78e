"""What the bridge adds: its neighbours trained alike, one thing changed in each, from two seeds.

Every arm is one small network, trained for the same steps on the same photographs; the first seed's and
the second's differ in everything random. A row is an arm walked by a sampler on a grid of levels: its
own, or, where x1 is shown, the other process's, on which both are the same diffusion. Differences are
between means over the same photographs and are to be set against the spread of two trainings. Arms that
are trained and rows that are measured already are skipped.

    python benchmarks/controls.py --train PATH --data PATH [--out data/runs/controls] [--work runs/controls]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from captured import side_by_side
from torch import Tensor

from i2sb_lib.bridge import Bridge
from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import TrainConfig, config_hash, create_pair_maker
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import Compose, Degradation
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.evaluation import consistency, evaluate
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import quantise, to_float
from i2sb_lib.samplers import generators, sample
from i2sb_lib.schedule import Schedule
from i2sb_lib.training import Trainer

BASES: dict[str, dict[str, Any]] = {  # the larger is the recipe of the models of the ladder
    "unet-tiny": {"network": "unet-tiny", "steps": 600, "batch_size": 16, "lr": 3e-3, "warmup": 40},
    "unet-small": {"network": "unet-small", "steps": 4400, "batch_size": 16, "lr": 8e-4, "warmup": 100},
}
EVERY: dict[str, Any] = {"save_every": 100, "eval_every": 10**6, "progress": False}
PLAIN: dict[str, Any] = {"cond_x1": False}
ARMS: dict[str, dict[str, Any]] = {
    "regression": {"process": "regression"},
    "bridge": {},
    "diffusion": {"process": "diffusion"},
    "plain bridge": PLAIN,
    "plain bridge, eps": PLAIN | {"prediction": "eps"},
    "bridge from regression": PLAIN | {"prediction": "precond"},  # its x1 is the regression's output
    "noisy regression": {"process": "regression", "noise": 0.05},
    "noisy bridge": {"noise": 0.05},
    "noisy diffusion": {"process": "diffusion", "noise": 0.05},
    "noisy plain bridge": PLAIN | {"noise": 0.05},
    "bridge, no noise": {"ot_ode": True},
}
SEEDS = (0, 1)


class Estimate(Degradation):
    """E[x0 | x1] as a frozen regression has it: the degradation that a bridge from there undoes."""

    def __init__(self, model: Pretrained) -> None:
        self.model = model

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.model.restore(x, 1)


class Run(Trainer):
    """Training of one arm; `before`, a frozen regression, moves the bridge's start to its output."""

    def __init__(self, config: TrainConfig, before: Pretrained | None, resume: bool) -> None:
        self.before = before
        super().__init__(config, resume)

    def _build(self) -> Any:
        if self.before:
            self.degrade = self.batches.degrade = Compose((self.degrade, Estimate(self.before)))
        return super()._build()


def place(arm: str, seed: int, args: argparse.Namespace) -> Path:
    return args.work / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def learn(jobs: list[tuple[str, int]], args: argparse.Namespace) -> None:
    """Train these arms side by side; what is begun is taken up, and what is done is left."""
    runs: list[Trainer] = []
    for arm, seed in jobs:
        out, before = place(arm, seed, args), None
        if (out / "model.json").exists() and load_pretrained(out, "cpu").record["step"] == args.steps:
            continue
        if arm == "bridge from regression":
            learn([("regression", seed)], args)
            before = load_pretrained(place("regression", seed, args))
        where = {"data": str(args.train), "out": str(out), "seed": seed, "steps": args.steps}
        config = TrainConfig(**BASES[args.network] | EVERY | ARMS[arm] | where)
        runs.append(Run(config, before, resume=(out / "state.pt").exists()))

    def say(run: Trainer, line: dict[str, float]) -> None:
        print(f"{run.out.name}: step {run.step}, loss {line['loss']:.4f}", flush=True)

    side_by_side(runs, EVERY["save_every"], say)


def times_of(bridge: Bridge, levels: Tensor) -> Tensor:
    """The times, from 1 down to 0, at which the bridge has these noise levels, from infinity down to 0."""
    low, high = torch.zeros_like(levels), torch.ones_like(levels)
    for _ in range(60):
        middle = (low + high) / 2
        above = bridge.noise_level(middle) > levels
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    times = (low + high) / 2
    times[0], times[-1] = 1.0, 0.0
    return times


def walk(model: Pretrained, x1: Tensor, nfe: int, sampler: Any, on: Bridge | None, seed: int) -> Tensor:
    """Restorations in [-1, 1]; `on`: the bridge whose uniform grid of levels is walked, if not its own."""
    denoiser, out = model.denoiser, []
    size = 16 if model.device.type == "cpu" else 128
    grid = (on or denoiser.bridge).schedule.grid(nfe)
    times = times_of(denoiser.bridge, on.noise_level(grid)) if on else grid
    drawn = generators(seed, len(x1))
    for i in range(0, len(x1), size):
        y, g = x1[i : i + size].to(model.device), drawn[i : i + size]
        walked = sample(
            lambda xt, t, y=y: denoiser(xt, t, y), denoiser.bridge, y, nfe, sampler, times=times, generator=g
        )
        out.append(walked.x.clamp(-1, 1).cpu())
    return torch.cat(out)


def rows(arm: str, seed: int) -> list[tuple[str, int, str]]:
    """(sampler, calls, grid) of an arm's rows: the spread of trainings needs the ends alone."""
    if "regression" in arm and "bridge" not in arm:
        return [("sde", 1, "own")]
    if seed or "noisy" in arm:
        return [("sde", 1, "own"), ("sde", 10, "own")]
    other = {"bridge": "diffusion", "diffusion": "bridge"}.get(arm)
    return [("sde", n, "own") for n in (1, 5, 10)] + ([("sde", 10, other)] if other else [])


def measure(x: Tensor, x0: Tensor, x1: Tensor, blur: Degradation, metrics: list[str]) -> tuple[dict, dict]:
    found = evaluate(x, x0, metrics) | {"consistency": consistency(x, x1, blur)}
    values = {k: {n: round(getattr(m, n), 8) for n in ("value", "low", "high")} for k, m in found.items()}
    each = {
        k: [round(v, 5) for v in m.per_image.tolist()]
        for k, m in found.items()
        if m.per_image is not None and k != "consistency"
    }
    return values, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="training photographs")
    parser.add_argument("--data", required=True, help="photographs to restore")
    parser.add_argument("--split", default=None)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--network", default="unet-tiny", choices=BASES)
    parser.add_argument("--steps", type=int, default=None, help="of every training, if not the network's own")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "lpips"])
    parser.add_argument("--fid", action="store_true", help="also of the rows with most calls, seed 0")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("data/runs/controls"))
    parser.add_argument("--work", type=Path, default=Path("runs/controls"), help="states and weights")
    args = parser.parse_args()
    args.steps = args.steps or BASES[args.network]["steps"]

    clean = load_images(args.data, args.split, 64)[: args.limit]
    x0 = to_float(clean)
    file, every = args.out / "metrics.json", args.out / "per_image.json"
    device = device_name(auto_device())
    data = {"source": Path(args.data).name, "images": len(x0), "fingerprint": fingerprint(clean)}
    record: dict[str, Any] = {"data": data, "seed": args.seeds[0], "device": device}
    config = BASES[args.network] | {"steps": args.steps, "train": Path(args.train).name}
    record |= {"config": config, "config_hash": config_hash(config), "results": []}
    each: dict[str, Any] = {}
    if file.exists():
        old = json.loads(file.read_text())
        if (old["data"], old["config_hash"]) != (data, record["config_hash"]):
            raise SystemExit(f"{file}: holds controls of other photographs or another training")
        record, each = old, json.loads(every.read_text())
    done = {r["row"] for r in record["results"]}
    levels = {"bridge": Bridge(Schedule.symmetric(beta_max=0.3)), "diffusion": Bridge.diffusion()}
    wanted = {}
    for seed in args.seeds:
        for arm in args.arms:
            named = {f"{arm}, seed {seed}: {s} {n}, {g} grid": (s, n, g) for s, n, g in rows(arm, seed)}
            if named.keys() - done:
                wanted[arm, seed] = named
    if torch.cuda.is_available():  # a small network with few images leaves most of a card idle
        learn(list(wanted), args)
    for (arm, seed), named in wanted.items():
        learn([(arm, seed)], args)
        model = load_pretrained(place(arm, seed, args))
        degrade = create_pair_maker(model.record["training"])
        start = quantise(degrade(x0, torch.Generator().manual_seed(2**31)))
        plain = arm == "bridge from regression"
        before = load_pretrained(place("regression", seed, args)) if plain else None
        x1 = before.restore(start, 1) if before else start
        blur = create_pair_maker(model.record["training"] | {"noise": 0.0, "quantise": False})
        for name, (sampler, nfe, grid) in named.items():
            if name in done:
                continue
            began = time.time()
            x = walk(model, x1, nfe, sampler, levels.get(grid), seed=0)
            seconds = round(time.time() - began, 1)
            fid = ["fid"] if args.fid and seed == args.seeds[0] and nfe in (1, 10) else []
            values, each[name] = measure(x, x0, start, blur, args.metrics + fid)
            how = {"arm": arm, "changes": ARMS[arm], "training_seed": seed}
            how |= {"sampler": sampler, "nfe": nfe, "grid": grid}
            run = {k: model.record[k] for k in ("step", "seconds", "precision")}
            row = {"row": name, **how, **values, "seconds": seconds, "run": run}
            record["results"].append(row | {"git_commit": git_commit(), "device": device})
            record["git_commit"] = git_commit()
            cells = "  ".join(f"{k} {v['value']:.5g}" for k, v in values.items())
            print(f"{name:48s} {cells}", flush=True)
            lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in each.items())
            atomic_write(every, lambda p, lines=lines: p.write_text(f"{{\n{lines}\n}}\n"))
            atomic_write(file, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
