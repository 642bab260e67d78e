"""Kill `i2sb train` at random moments, while it saves too, go on, and compare with an unbroken run.

Every run is a fork of this process. First SIGKILL, --kills times, at any moment of the run or, every second
time, while a file is half written; then two processes with batches in two parts, one of which gets SIGTERM:
both save and stop; two that torchrun starts go on for a step, and one with batches in four parts ends it.
Prints a table, and writes it as JSON to --out. Needs a system that forks.

    python benchmarks/kill.py --kills 20
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # else every fork imports it anew, which takes seconds
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from i2sb_lib import training
from i2sb_lib.cli import main as i2sb

TINY = ["--size=16", "--network=unet-tiny", "--batch-size=4", "--holdout=4", "--warmup=2", "--lr=1e-3"]
TINY += ["--precision=no", "--save-every=1", "--no-progress"]
ALONE = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Runs:
    """Trainings of `steps` steps in forks, each in a folder of its own below `work`."""

    def __init__(self, work: Path, steps: int, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.flags = ["train", "--data", str(work / "photos"), "--steps", str(steps), *TINY]
        (work / "photos").mkdir()
        noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
        for i, pixels in enumerate(noise):
            Image.fromarray(pixels).save(work / "photos" / f"{i:02}.png")

    def start(self, name: str, *flags: str, run: Callable[[list[str]], Any] = i2sb, **environ: str) -> int:
        """The process id of a fork that starts a run, or goes on with it, by `run` of its arguments."""
        out = self.work / name
        flags += ("--resume",) * (out / "state.pt").exists()
        if pid := os.fork():
            return pid
        code = 1
        try:
            sys.stdout = sys.stderr = open(self.work / "log.txt", "a", 1)  # noqa: SIM115
            os.environ |= {"I2SB_CACHE": str(self.work / "cache"), **ALONE, **environ}
            torch.set_num_threads(1)
            run([*self.flags, "--out", str(out), *flags])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            print(stop.code)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def finish(self, *pids: int) -> list[int]:
        """Exit codes, or minus the signals that ended them."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    def pair(self, name: str, *flags: str) -> list[int]:
        """The process ids of two forks that train together."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [self.start(name, *flags, **both, RANK=rank, LOCAL_RANK=rank) for rank in "01"]

    def state(self, name: str) -> dict:
        return torch.load(self.work / name / "state.pt", weights_only=True)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Every number that a run ends with, by name: weights, averages, moments, losses."""
        state = self.state(name)
        parts = {"model": state["model"], "ema": state["ema"], **state["optimizer"]["state"]}
        all_of_them = {f"{p}.{k}": v for p, values in parts.items() for k, v in values.items()}
        return all_of_them | {"loss": torch.tensor([h["loss"] for h in state["history"] if "loss" in h])}

    def same(self, one: str, other: str) -> bool:
        """Whether two runs ended with the same bits, in the state and in the exported weights."""
        a, b = self.tensors(one), self.tensors(other)
        weights = [(self.work / n / "model-1-of-1.safetensors").read_bytes() for n in (one, other)]
        steps = [
            json.loads((self.work / n / "model.json").read_text())["record"]["step"] for n in (one, other)
        ]
        equal = all(torch.equal(v, b[k]) for k, v in a.items())
        return equal and a.keys() == b.keys() and weights[0] == weights[1] and steps[0] == steps[1]


def killed(runs: Runs, kills: int, span: float) -> dict:
    """SIGKILL at random moments of a run that takes `span` seconds, and of what is left of it."""

    def writing(name: str) -> bool:
        return any((runs.work / name).glob(".*.tmp*"))

    met, saving, finished, same = 0, 0, 0, True
    while met < kills:
        name, code = f"broken-{finished}", None
        while code != 0:
            pid = runs.start(name)
            if met < kills:
                time.sleep(runs.random.uniform(0, span))
                while met % 2 and not os.waitid(os.P_PID, pid, ENDED):
                    if writing(name):  # every second one while a file is half written: halted, and looked at
                        os.kill(pid, signal.SIGSTOP)
                        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                        if writing(name):
                            break
                        os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            (code,) = runs.finish(pid)
            if code not in (0, -signal.SIGKILL):
                raise SystemExit((runs.work / "log.txt").read_text())
            met += code != 0
            saving += code != 0 and writing(name)
        finished += 1
        same = same and runs.same("unbroken", name)
    return {"kills": met, "while_saving": saving, "runs": finished, "identical": same}


def torchrun(args: list[str]) -> None:
    """What `torchrun --standalone --nproc-per-node 2 -m i2sb_lib` does, with forks for its processes."""
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "kill"}
    elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", **place), i2sb)(args)


def stopped(runs: Runs) -> dict:
    """Two processes, of which the second alone gets SIGTERM; two go on, then one, and end as one does."""
    pids = runs.pair("two", "--accumulate=2")
    while not (runs.work / "two" / "state.pt").exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    codes, step = runs.finish(*pids), runs.state("two")["step"]
    rest = runs.finish(runs.start("two", "--accumulate=2", "--minutes=0", run=torchrun))
    more = runs.state("two")["step"]
    rest += runs.finish(runs.start("two", "--accumulate=4", "--minutes=None"))
    one, two = runs.tensors("unbroken"), runs.tensors("two")
    return {
        "codes": codes,
        "steps": [step, more],
        "codes_after": rest,
        "losses": [one["loss"].tolist(), two["loss"].tolist()],
        "apart": max(float((v - two[k]).abs().max()) for k, v in one.items() if k.startswith("ema.")),
    }


def measure(work: Path, kills: int, steps: int, seed: int) -> dict:
    """What came of the kills and of two processes; SystemExit with what was said where a run failed."""
    training.LOG_EVERY = 1  # a loss for every step
    runs, start = Runs(work, steps, seed), time.monotonic()
    if runs.finish(runs.start("unbroken")) != [0]:
        raise SystemExit((work / "log.txt").read_text())
    return {"seed": seed, **killed(runs, kills, time.monotonic() - start), "two_processes": stopped(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, default=Path("runs/kill.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = measure(Path(work), args.kills, args.steps, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for key, value in (result | result.pop("two_processes")).items():
        print(f"{key:20}{value}")


if __name__ == "__main__":
    main()
