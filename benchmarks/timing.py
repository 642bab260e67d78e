"""What the scripts that compare speeds share: turns in one process, medians of pairs, memory, the record."""

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from i2sb_lib.config import config_hash
from i2sb_lib.devices import device_name
from i2sb_lib.files import atomic_write, git_commit

Seconds = dict[str, list[float]]


def options(doc: str | None, name: str) -> argparse.ArgumentParser:
    """--out and --quick; what is quick is written nowhere unless --out says so."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/runs/benchmarks") / name)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, and no record")
    return parser


def clock() -> float:
    """Seconds of processor time of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def turns(rounds: int, warm: bool = True, **calls: Callable[[], Any]) -> Seconds:
    """Seconds of each call in each round; one round takes all of them in turn. warm: one goes before.

    They are of a processor, not of the wall, so that other programs hardly matter: set one thread.
    """
    found: Seconds = {name: [] for name in calls}
    for n in range(-warm, rounds):
        gc.collect()
        for name, call in calls.items():
            start = clock()
            call()
            if n >= 0:
                found[name].append(clock() - start)
    return found


def ratio(found: Seconds, peer: str, ours: str) -> float:
    """Median over the rounds of how many times as long the peer took."""
    return statistics.median(p / o for p, o in zip(found[peer], found[ours], strict=True))


def median(values: list[float]) -> float:
    return statistics.median(values)


def resident(peak: bool = False) -> int:
    """Bytes that this process has in memory, or had at most; 0 where the system does not say (not Linux)."""
    status = Path("/proc/self/status")
    key = "VmHWM:" if peak else "VmRSS:"
    return int(status.read_text().split(key)[1].split()[0]) * 1024 if status.exists() else 0


def _grown(connection: Any, call: Callable[..., Any], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    before = resident(peak=True)
    call(*given)
    connection.send(resident(peak=True) - before)


def peak_of(call: Callable[..., Any], *given: Any) -> int:
    """Bytes by which the peak memory of a process of its own grows while it makes this call."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_grown, args=(theirs, call, given))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    finally:
        process.join()


def write(args: argparse.Namespace, config: dict[str, Any], data: dict[str, Any], **found: Any) -> None:
    """metrics.json, as every record of this repository has it; nothing where the run was quick."""
    default = Path("data/runs/benchmarks") in args.out.parents
    if args.quick and default:
        return
    content = {
        "config": config,
        "config_hash": config_hash(config),
        "data": data,
        "seed": 0,
        "git_commit": git_commit(),
        "device": device_name(torch.device("cpu")),
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        **found,
    }
    atomic_write(args.out / "metrics.json", lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))
