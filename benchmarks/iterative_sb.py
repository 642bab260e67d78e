"""Cost of an iterative Schrödinger-bridge solver with learned drifts beside I2SB, on one 2-D task.

Task: carry p_B (a ring of eight normals, squeezed and blurred) to p_A (the ring) in 20 steps. Both
methods train the same perceptron with the same optimiser, batch and reference process; each stops
when the largest W_1 over 16 projections to p_A is at most `target`, twice in a row.

i2sb   Algorithm 1 on pairs: one network, no simulation
dsb    iterative proportional fitting [De Bortoli et al. 2021]: two networks, trained in turn on
       trajectories simulated with the other one; it needs no pairs

Time is CPU time of the training alone on one thread; memory is what training must hold (weights,
gradients, Adam's moments, cached trajectories), counted in bytes, with the process's peak beside it.

    python benchmarks/iterative_sb.py [--out data/runs/iterative-sb]
"""

import argparse
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2sb_lib.bridge import Bridge
from i2sb_lib.config import config_hash
from i2sb_lib.data import fingerprint
from i2sb_lib.files import git_commit
from i2sb_lib.gaussian_mixtures import MixturePair
from i2sb_lib.samplers import sample
from i2sb_lib.schedule import Schedule

BETA, STEPS, BATCH, WIDTH = 0.5, 20, 512, 128
CACHE, REFRESH, HALF = 2048, 200, 400  # dsb: trajectories held, steps between, steps a half-bridge


def task() -> MixturePair:
    """Ring of eight normals, its second coordinate squeezed to a fifth, with noise."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    covs = 0.04 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    return MixturePair.degraded(torch.ones(8) / 8, means, covs, torch.diag(torch.tensor([0.8, 0.2])), 0.25)


class Perceptron(nn.Module):
    """(x, t) -> R^2 with three hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [4, WIDTH, WIDTH, WIDTH]
        hidden = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x)[:, None]
        return self.layers(torch.cat([x, t, t.sqrt()], 1))


def trainer(net: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr=1e-3)


def descend(optimiser: torch.optim.Adam, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def pairs(pair: MixturePair, n: int, g: torch.Generator) -> list[Tensor]:
    return [v.float() for v in pair.sample(n, g)]


def sliced(u: Tensor, v: Tensor) -> float:
    """Largest W_1 over 16 projections."""
    angle = torch.arange(16) * math.pi / 16
    lines = torch.stack([angle.cos(), angle.sin()])
    gaps = (u @ lines).sort(0).values - (v @ lines).sort(0).values
    return float(gaps.abs().mean(0).max())


def learn_i2sb(pair: MixturePair, g: torch.Generator) -> Any:
    """Yields (restore, bytes held, network calls so far) now and then, for ever."""
    bridge, net = Bridge(Schedule.constant(BETA)), Perceptron()
    optimiser, held, calls = trainer(net), 16 * sum(p.numel() for p in net.parameters()), 0

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        return bridge.predict_x0(t, xt, net(xt, t))

    while True:
        for _ in range(REFRESH):
            x0, x1 = pairs(pair, BATCH, g)
            t = 1 - torch.rand(BATCH, generator=g)
            xt = bridge.q_sample(t, x0, x1, torch.randn(BATCH, 2, generator=g))
            descend(optimiser, (net(xt, t) - bridge.target(t, x0, xt)).square().mean())
            calls += BATCH
        yield lambda x1, g: sample(denoise, bridge, x1, STEPS, generator=g).x, held, calls


@torch.no_grad()
def simulate(drift: Callable, x: Tensor, forward: bool, g: torch.Generator) -> Tensor:
    """States (STEPS + 1, B, 2) in time's order, from t = 0 forwards or from t = 1 backwards."""
    states, h = [x], 1 / STEPS
    for n in range(STEPS):
        t = n * h if forward else 1 - n * h
        noise = (BETA * h) ** 0.5 * torch.randn(x.shape, generator=g)
        x = x + h * drift(x, torch.full((len(x),), t)) + noise
        states.append(x)
    return torch.stack(states if forward else states[::-1])


def learn_dsb(pair: MixturePair, g: torch.Generator) -> Any:
    """As `learn_i2sb`. Mean matching [De Bortoli et al. 2021, Prop. 3]: each drift regresses the
    step taken by the other one, backwards, with that one's change along the step taken out."""
    nets, h = {True: Perceptron(), False: Perceptron()}, 1 / STEPS  # forward, backward
    optimisers, calls, first = {k: trainer(v) for k, v in nets.items()}, 0, True
    weights = 16 * sum(p.numel() for net in nets.values() for p in net.parameters())
    while True:
        for learn_forward in (False, True):
            net = nets[learn_forward]
            for step in range(HALF):
                if step % REFRESH == 0:
                    source = pairs(pair, CACHE, g)[0 if not learn_forward else 1]
                    drift = (lambda x, t: 0 * x) if first else nets[not learn_forward]
                    path = simulate(drift, source, not learn_forward, g)
                    calls += 0 if first else CACHE * STEPS
                n = torch.randint(STEPS, (BATCH,), generator=g)
                row = torch.randint(CACHE, (BATCH,), generator=g)
                early, late = path[n, row], path[n + 1, row]
                # the state where `net` acts, the other end, and the time at which each drift is read
                x, y, t = (early, late, n * h) if learn_forward else (late, early, (n + 1) * h)
                s = (n + 1) * h if learn_forward else n * h  # where the simulating drift was read
                with torch.no_grad():
                    target = (y - x) / h + drift(y, s) - drift(x, s)
                descend(optimisers[learn_forward], (net(x, t) - target).square().mean())
                calls += BATCH * (1 if first else 3)
            first = False
            if not learn_forward:

                def restore(x1: Tensor, g: torch.Generator) -> Tensor:
                    return simulate(nets[False], x1, False, g)[0]

                yield restore, weights + path.nbytes, calls


METHODS = {"i2sb": learn_i2sb, "dsb": learn_dsb}


def measure(name: str, seed: int, target: float, limit: float) -> dict[str, Any]:
    """Train until the distance is at most `target` twice in a row, or for `limit` CPU seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    pair, g = task(), torch.Generator().manual_seed(seed)
    test = torch.Generator().manual_seed(100 + seed)
    clean, (_, start) = pairs(pair, 10_000, test)[0], pairs(pair, 10_000, test)
    seconds, good, history = 0.0, 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learning = METHODS[name](pair, g)
    while good < 2 and seconds < limit:
        clock = time.process_time()
        restore, held, calls = next(learning)
        seconds += time.process_time() - clock
        with torch.no_grad():
            x0 = restore(start, test)
        history.append(sliced(x0, clean))
        good = good + 1 if history[-1] <= target else 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "bytes_held": held,
        "peak_rss_bytes": 1024 * peak,
        "rss_growth_bytes": 1024 * (peak - before),
        "network_evaluations": calls,
        "distance": history[-1],
        "reached": good == 2,
        "transport_cost": float((x0 - start).square().sum(1).mean()),
        "history": history,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/runs/iterative-sb"))
    parser.add_argument("--target", type=float, default=0.12)
    parser.add_argument("--limit", type=float, default=90.0, help="CPU seconds a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    context = multiprocessing.get_context("spawn")  # a process a run: its peak memory is its own
    for seed in args.seeds:
        for name in METHODS:
            with context.Pool(1) as pool:
                runs[name].append(pool.apply(measure, (name, seed, args.target, args.limit)))
            r = runs[name][-1]
            print(
                f"{name:5s} seed {seed}: {r['seconds']:6.1f} s, {r['bytes_held'] / 2**20:5.2f} MiB held, "
                f"{r['peak_rss_bytes'] / 2**20:4.0f} MiB peak, {r['network_evaluations']:>9,d} network "
                f"evaluations, distance {r['distance']:.3f}, reached {r['reached']}"
            )
    ratios = {
        key: [d[key] / i[key] for d, i in zip(runs["dsb"], runs["i2sb"], strict=True)]
        for key in ("seconds", "network_evaluations", "bytes_held", "peak_rss_bytes")
    }
    for key, values in ratios.items():
        print(f"dsb / i2sb, {key}: " + ", ".join(f"{v:.2f}" for v in values))
    config = {
        **{"steps": STEPS, "batch": BATCH, "cache": CACHE, "half_bridge": HALF, "width": WIDTH, "beta": BETA},
        **{"target": args.target, "limit": args.limit},
    }
    points = pairs(task(), 1000, torch.Generator().manual_seed(0))
    record = {
        "data": {"source": "squeezed ring", "fingerprint": fingerprint(torch.stack(points))},
        "seed": args.seeds,
        "git_commit": git_commit(),
        "device": "cpu, 1 thread",
        "torch": torch.__version__,
        "config": config,
        "config_hash": config_hash(config),
        "results": runs,
        "ratios": ratios,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
