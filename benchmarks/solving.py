"""How fast is the Schrödinger system on a plane grid, beside POT? Time and memory against size.

The task: three normals to two on [-3, 3]^2, in the book's schedule (sigma_1 = 0.376), to an L1 error of the
marginals of 1e-8. Each takes its turn in one process, one core, float64, and a ratio is a median of turns.

    ours    SchrodingerSystem with mixing: the heat kernel axis by axis, Anderson's mixture of MIXING iterates
    plain   the same without: Sinkhorn's own iteration
    dense   ot.sinkhorn, "sinkhorn_log", on torch tensors, which suit it better than numpy's here: a matrix
            of all pairs of nodes. The iteration is that of `plain`, and as many are made; the error is
            that of its plan. At 64^2 a solve takes a minute, and is timed once
    conv    ot.bregman.convolutional_barycenter2d of two images, POT's solver that needs no such matrix,
            without logarithms and with (conv_log): it solves another problem, so what is compared is the time
            of one application of the kernel to one field
    ott     OTT's Sinkhorn on its grid geometry, compiled beforehand, to the same error: in logarithms, and
            with the kernel itself (ott_kernel), where nothing may underflow. It is in no extra of this
            project (`pip install ott-jax`); without it these columns are empty

    python benchmarks/solving.py [--sizes 64 128 256 512] [--rounds 3] [--quick]
"""

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ot
import torch
from timing import median, options, peak_of, ratio, turns, write
from torch import Tensor

from i2sb_lib.data import fingerprint
from i2sb_lib.schedule import Schedule
from i2sb_lib.schrodinger import SchrodingerSystem, heat

SCHEDULE, EDGE, MIXING = Schedule.symmetric(), 3.0, 6
# the largest sides: of 4,096^2 pairs; of n^3 terms at a time, in POT's two iterations and in OTT's hundred
DENSE, LOGARITHMS, OTT = 64, 256, 128


OTT_THERE = importlib.util.find_spec("ott") is not None


def problem(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """An axis of n nodes, and the densities (n, n) at both ends."""
    x = torch.linspace(-EDGE, EDGE, n, dtype=torch.float64)

    def normals(std: float, *means: tuple[float, float]) -> Tensor:
        sides = [[torch.exp(-((x - m) ** 2) / (2 * std**2)) for m in mean] for mean in means]
        return torch.stack([torch.outer(a, b) for a, b in sides]).sum(0)

    return x, normals(0.25, (-1.2, -0.8), (0.6, 1.1), (1.0, -1.0)), normals(0.3, (0.0, 0.2), (-1.0, 1.0))


def solve(n: int, tol: float, mixing: int) -> SchrodingerSystem:
    x, p, q = problem(n)
    return SchrodingerSystem(SCHEDULE, [x, x], p, q, tol, mixing)


def dense(n: int, iterations: int) -> float:
    """POT's solver on all pairs of nodes; returns the L1 error of its marginals."""
    x, p, q = problem(n)
    a, b = ((d / d.sum()).flatten() for d in (p, q))
    nodes = torch.cartesian_prod(x, x)
    cost = (nodes[:, None] - nodes).square().sum(-1)
    how = {"method": "sinkhorn_log", "numItermax": iterations, "stopThr": 0.0, "warn": False}
    plan = ot.sinkhorn(a, b, cost, 2 * SCHEDULE.total, **how)
    return float((plan.sum(0) - b).abs().sum() + (plan.sum(1) - a).abs().sum())


def convolutional(n: int, iterations: int, method: str) -> None:
    """Four applications of the kernel in an iteration: two for each of two images."""
    _, p, q = problem(n)
    images = torch.stack([p / p.sum(), q / q.sum()])
    reg = 2 * SCHEDULE.total / (2 * EDGE) ** 2  # its axes are [0, 1]
    how = {"numItermax": iterations, "stopThr": 0.0, "warn": False}
    ot.bregman.convolutional_barycenter2d(images, reg, method=method, **how)


def ott(n: int, tol: float, logarithms: bool) -> Callable[[], Any]:
    """A call of OTT's solver, which is compiled at the first; jax works with one thread and in float64."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    import jax
    from ott.geometry import grid
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    jax.config.update("jax_enable_x64", True)
    x, *ends = problem(n)
    axis, a, b = (jax.numpy.asarray(v.numpy()) for v in (x, *((d / d.sum()).flatten() for d in ends)))
    how = {"threshold": tol, "max_iterations": 10_000, "lse_mode": logarithms}
    solver = jax.jit(sinkhorn.Sinkhorn(**how))

    def run() -> Any:
        geometry = grid.Grid(x=[axis, axis], epsilon=2 * SCHEDULE.total)
        return jax.block_until_ready(solver(linear_problem.LinearProblem(geometry, a, b)))

    return run


def row(n: int, tol: float, rounds: int, memory: bool) -> dict[str, Any]:
    """Times, iterations and memory on n x n nodes."""
    solved = {name: solve(n, tol, m) for name, m in (("ours", MIXING), ("plain", 0))}
    count = {name: len(s.errors) for name, s in solved.items()}
    gap = (solved["ours"].density(0.5) - solved["plain"].density(0.5)).abs().sum()
    x, p, _ = problem(n)
    log_p, spacing = p.log(), [float(x[1] - x[0])] * 2
    calls: dict[str, Any] = {
        "ours": partial(solve, n, tol, MIXING),
        "plain": partial(solve, n, tol, 0),
        "heat": lambda: [heat(log_p, spacing, SCHEDULE.total) for _ in range(8)],
        "conv": partial(convolutional, n, 2, "sinkhorn"),
    }
    if n <= LOGARITHMS:
        calls["conv_log"] = partial(convolutional, n, 2, "sinkhorn_log")
    if OTT_THERE:
        calls["ott_kernel"] = ott(n, tol, logarithms=False)
        calls |= {"ott": ott(n, tol, logarithms=True)} if n <= OTT else {}
    seconds = turns(rounds, **calls)
    found: dict[str, Any] = {
        "nodes": n * n,
        "iterations": count,
        "seconds": {k: median(v) for k, v in seconds.items()},
        "l1_difference_of_the_densities_at_half_time": float(gap) * math.prod(spacing),
        "speedup_over_plain": ratio(seconds, "plain", "ours"),
        "speedup_over_conv_an_application": ratio(seconds, "conv", "heat"),
    }
    for name in {"ott", "ott_kernel"} & set(calls):
        found[f"speedup_over_{name}"] = ratio(seconds, name, "ours")
        solution = calls[name]()
        found["iterations"][name] = int(solution.n_iters)
        found[f"l1_error_of_{name}"] = float(solution.errors[solution.errors > 0][-1])
    if memory:
        found["bytes"] = peak_of(solve, n, tol, MIXING)
    if n <= LOGARITHMS:
        found["speedup_over_conv_log_an_application"] = ratio(seconds, "conv_log", "heat")
    if n <= DENSE:
        error: list[float] = []
        peer = {"dense": lambda: error.append(dense(n, count["plain"]))}
        pairs = turns(1 if n == DENSE else rounds, warm=False, **peer, ours=calls["ours"])
        found["seconds"]["dense"] = median(pairs["dense"])
        found["speedup_over_dense"] = ratio(pairs, "dense", "ours")
        found["l1_error_of_dense"] = error[0]
        if memory:
            found["bytes_of_dense"] = peak_of(dense, n, 1)
    return found


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """Slope of log cost against log nodes, by least squares."""
    cost = [r["bytes"] if key == "bytes" else r["seconds"][key] for r in rows]
    return float(np.polyfit(np.log([r["nodes"] for r in rows]), np.log(cost), 1)[0])


def main() -> None:
    parser = options(__doc__, "solving")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tol", type=float, default=1e-8)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = [16, 24], 1
    torch.set_num_threads(1)
    print(" nodes iterations plain |  seconds    plain    dense |", end=" ")
    print("times as fast as plain, dense, ott, ott_kernel; a kernel: conv, conv_log | MB, dense")
    rows = []
    for n in args.sizes:
        r = row(n, args.tol, args.rounds, not args.quick)
        seconds = " ".join(f"{r['seconds'].get(k, math.nan):8.3f}" for k in ("ours", "plain", "dense"))
        kinds = ("plain", "dense", "ott", "ott_kernel", "conv_an_application", "conv_log_an_application")
        fast = " ".join(f"{r.get(f'speedup_over_{k}', math.nan):7.2f}" for k in kinds)
        memory = " ".join(f"{r.get(k, math.nan) / 1e6:6.0f}" for k in ("bytes", "bytes_of_dense"))
        count = f"{r['iterations']['ours']:10} {r['iterations']['plain']:5}"
        print(f"{n:>4}^2 {count} | {seconds} | {fast} | {memory}")
        rows.append(r)
    large = [r for r in rows if r["nodes"] >= 128**2] or rows
    costs = ("ours", "plain", "heat", "conv") + (() if args.quick else ("bytes",))
    slopes = {k: exponent(large, k) for k in costs}
    print("cost ~ nodes^k from 128^2 on: " + ", ".join(f"{k} {v:.2f}" for k, v in slopes.items()))
    config = {"sizes": args.sizes, "rounds": args.rounds, "tol": args.tol, "mixing": MIXING, "edge": EDGE}
    _, p, q = problem(64)
    data = {"source": "normals on a grid", "fingerprint": fingerprint(torch.stack([p, q]))}
    packages = {p: importlib.metadata.version(p) for p in ("pot", "ott-jax") if p == "pot" or OTT_THERE}
    write(args, config, data, packages=packages, exponents=slopes, results=rows)


if __name__ == "__main__":
    main()
