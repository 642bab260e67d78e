"""How fast is a training step against its peers? All take turns in one process; a row is a median of turns.

    ours       `Trainer.optimise`, and its log line every 50 steps: images in memory, precision auto, averaged
               weights, clipped gradients. Not in it: saving, and the metrics along the way
    captured   the same steps, each one CUDA graph (`captured.py`)
    compiled   the same with `compile`: on a GPU the first network, all of them with --compile-all
    both       compiled and captured, for the networks that are compiled
    bare       forward, backward and optimiser of that network on one batch that stays; what ours takes over
               this is the loop's overhead
    report     the loop of [Zaytsev 2024, sec. 4]: float32, a DataLoader that decodes and resizes files, blur
               by batch, one t for the whole batch, Adam, the loss read (`.item()`) at each step
    published  the habits of the code of [Liu 2023]: float32, a DataLoader as above, one t for each image,
               weights averaged in a Python loop over the parameters, AdamW, the loss read at each step

The peers are written here, for this. They have the same network and batch as ours, the layout and the TF32
that PyTorch gives by default, DataLoader workers (four, no more than cores: always on a GPU, on a CPU where
a trial says that they help), and batches without end, so that no epoch starts a worker. Workers run in the
turns of their own loop alone, and as many steps as workers are taken before a turn is timed.

    python benchmarks/training.py [--networks cunet --batches 32] [--sweep 16 64 512] [--profile] [--quick]

--sweep and --sweep-compiled: ours alone, the first network at these batch sizes; each is compiled by itself.
The record is written anew after every round, so that a run which is ended loses none. Compiling comes last.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captured import Captured
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from i2sb_lib.batches import Batches
from i2sb_lib.bridge import Bridge
from i2sb_lib.config import PRESETS, TrainConfig, config_hash
from i2sb_lib.data import fingerprint, fit, load_images, sides
from i2sb_lib.devices import auto_device, device_name
from i2sb_lib.faults import TrainingError, first_line
from i2sb_lib.files import atomic_write, git_commit
from i2sb_lib.images import to_image
from i2sb_lib.networks import create_network
from i2sb_lib.schedule import Schedule
from i2sb_lib.training import LOG_EVERY, Trainer

DEVICE = auto_device()
CUDA = DEVICE.type == "cuda"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PEAK = {"H100": 989e12, "H200": 989e12}  # dense bfloat16, as the maker states it
SIDE, FILES, IMAGES = 256, 512, 2048  # of the peers' files, and how many images ours draws from
STEPS = 1000  # of the peers' tables of the bridge
PEERS = ("ours", "captured", "bare", "report", "published", "compiled", "both")
COMPILED = ("compiled", "both")


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


# --- what is trained on --------------------------------------------------------------------------------


def smooth(count: int) -> Tensor:
    """Noise at three scales, uint8 (N, 3, SIDE, SIDE), where no photograph is; decoded about as fast."""
    draw, sum_ = torch.Generator().manual_seed(0), torch.zeros(count, 3, SIDE, SIDE)
    for n in (4, 16, 32):
        noise = torch.randn(count, 3, n, n, generator=draw)
        sum_ += F.interpolate(noise, size=(SIDE, SIDE), mode="bicubic") / n**0.5
    return (128 + 64 * sum_).clamp(0, 255).to(torch.uint8)


def pictures(source: str | None) -> tuple[str, Tensor]:
    """(name, uint8 (N, 3, SIDE, SIDE)) of a source of the library; the embedded photographs where None."""
    try:
        found = load_images(source or "embedded", "train", SIDE, progress=False)
        return Path(source or "embedded").name, found[torch.randperm(len(found))[:FILES]]
    except (ImportError, ValueError):  # without scikit-image
        if source:
            raise
        return "smooth noise", smooth(64)


def write(images: Tensor, folder: Path) -> list[Path]:
    """The pictures as JPEG files, quality 95."""
    files = [folder / f"{k:05}.jpg" for k in range(len(images))]
    for file, x in zip(files, images, strict=True):
        to_image(x.float() / 127.5 - 1).save(file, quality=95)
    return files


class Files(Dataset[Tensor]):
    """Decoded and resized on each call: float32 (3, size, size) in [-1, 1]."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> Tensor:
        with Image.open(self.files[k]) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def blur(x: Tensor, taps: int = 7, sigma: float = 2.0) -> Tensor:
    """Gaussian blur of a batch, reflecting, as one depthwise convolution."""
    line = torch.arange(taps, device=x.device, dtype=x.dtype) - taps // 2
    kernel = torch.exp(-(line**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    weight = (kernel[:, None] * kernel).expand(x.shape[1], 1, taps, taps)
    return F.conv2d(F.pad(x, [taps // 2] * 4, mode="reflect"), weight, groups=x.shape[1])


# --- the loops -----------------------------------------------------------------------------------------


def planes(config: TrainConfig) -> int:
    """Of what the network sees: x_t, and x1 where it is shown."""
    return 6 if config.cond_x1 else 3


class Loop:
    """A way to train: `start`, any number of calls of `step`, `stop`; and again."""

    name, precision, workers = "", "no", 0

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def step(self) -> None:
        raise NotImplementedError


class Ours(Loop):
    def __init__(self, config: TrainConfig, images: Tensor, name: str = "ours") -> None:
        scratch = tempfile.mkdtemp(dir=config.out)
        self.run, self.name = Trainer(dataclasses.replace(config, out=scratch), images=images), name
        self.precision = self.run.host.precision

    def step(self) -> None:
        self.run.optimise()
        if self.run.step % LOG_EVERY == 0:
            self.run.log()


class Replayed(Ours):
    def __init__(self, config: TrainConfig, images: Tensor, name: str) -> None:
        super().__init__(config, images, name)
        self.lane = Captured(self.run)

    def step(self) -> None:
        self.lane.step()
        if self.run.step % LOG_EVERY == 0:
            with self.lane.still():
                self.run.log()


class Bare(Loop):
    name = "bare"

    def __init__(self, config: TrainConfig, images: Tensor) -> None:
        run = Ours(config, images).run
        self.host, self.net, self.precision = run.host, run.model.net, run.host.precision
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.lr)
        x0, x1, self.t, _ = run.batches(0)
        seen = torch.cat([x0, x1], 1) if config.cond_x1 else x0
        self.seen, self.target = seen.contiguous(memory_format=torch.channels_last), x0

    def step(self) -> None:
        with self.host.autocast():
            loss = F.mse_loss(self.net(self.seen, self.t).float(), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class FromFiles(Loop):
    """What both peers share: the DataLoader, the tables of the bridge, the step on (x_t - x0) / sigma_t."""

    optimizer: torch.optim.Optimizer
    pin = False

    def __init__(self, config: TrainConfig, files: list[Path], workers: int) -> None:
        self.config, self.workers = config, workers
        data = Files(files, sides(config.size)[0])
        fork = workers and "fork" in multiprocessing.get_all_start_methods()
        self.loader: DataLoader[Tensor] = DataLoader(
            data,
            config.batch_size,
            sampler=RandomSampler(data, replacement=True, num_samples=10**9),
            num_workers=workers,
            pin_memory=self.pin and CUDA,
            multiprocessing_context="fork" if fork else None,
        )
        self.batches: Iterator[Tensor] | None = None
        self.net = create_network(config.network, planes(config)).to(DEVICE)
        schedule = Schedule.symmetric(beta_max=config.beta_max, beta_min=config.beta_min)
        t = torch.arange(1, STEPS + 1) / STEPS
        tables = (*Bridge(schedule).coefficients(t), schedule.var_fwd(t).sqrt(), t)
        self.tables = [v.to(DEVICE, torch.float32) for v in tables]

    def start(self) -> None:
        self.batches = iter(self.loader)

    def stop(self) -> None:
        self.batches = None  # which ends the workers

    def descend(self, k: Tensor, x0: Tensor) -> float:
        """One step at places k of the tables, one for all images or one for each; its loss."""
        x1 = blur(x0)
        a, b, c, sigma, t = (v[k].reshape(-1, 1, 1, 1) for v in self.tables)
        xt = a * x0 + b * x1 + c * torch.randn_like(x0)
        seen = torch.cat([xt, x1], 1) if self.config.cond_x1 else xt
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.net(seen, t.flatten().expand(len(x0))), (xt - x0) / sigma)
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Report(FromFiles):
    name = "report"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=3e-4)

    def step(self) -> None:
        assert self.batches
        self.descend(torch.randint(STEPS, (1,), device=DEVICE), next(self.batches).to(DEVICE))


class Published(FromFiles):
    name, pin = "published", True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=5e-5, weight_decay=0.0)
        self.average = [p.detach().clone() for p in self.net.parameters()]

    def step(self) -> None:
        assert self.batches
        x0 = next(self.batches).to(DEVICE)
        self.descend(torch.randint(STEPS, (len(x0),), device=DEVICE), x0)
        with torch.no_grad():
            for slow, fast in zip(self.average, self.net.parameters(), strict=True):
                slow.sub_((1 - 0.99) * (slow - fast))


# --- measuring -----------------------------------------------------------------------------------------


def timed(loop: Loop, steps: int) -> float:
    """Seconds a step, of so many."""
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        loop.step()
    wait()
    return (time.perf_counter() - start) / steps


@contextlib.contextmanager
def turn(loop: Loop) -> Iterator[None]:
    loop.start()
    try:
        for _ in range(loop.workers):  # the first batches, which come at once
            loop.step()
        yield
    finally:
        loop.stop()


def warmed(build: Callable[[], Loop]) -> tuple[Loop, dict[str, Any], float]:
    """A loop, what its first steps say of it, and about how long one takes."""
    gc.collect()
    wait()
    before = torch.cuda.memory_allocated() if CUDA else 0
    began = time.perf_counter()
    loop = build()
    built = time.perf_counter() - began
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    with turn(loop):
        first = 3 * timed(loop, 3)
        each = timed(loop, 1)
        each = timed(loop, max(1, min(10, int(0.2 / each)))) if each < 0.2 else each
    about: dict[str, Any] = {"precision": loop.precision, "workers": loop.workers}
    if loop.name in COMPILED:
        built = built if loop.name == "both" else 0.0  # what is captured has run
        about["compile_seconds"] = round(built + first - 3 * each, 1)
    if CUDA:
        about["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return loop, about, each


@functools.cache
def operations(network: str, planes: int, size: int) -> int:
    """Floating-point operations of a step, by image: three times those that its forward pass counts."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        create_network(network, planes)(torch.empty(1, planes, size, size), torch.empty(1))
    return 3 * counter.get_total_flops()


def row(config: TrainConfig, about: dict[str, Any], times: list[float], own: list[float]) -> dict[str, Any]:
    """A loop's line of the record, from its seconds a step in each round, and from ours'."""
    seconds = statistics.median(times)
    speed = operations(config.network, planes(config), sides(config.size)[0]) * config.batch_size / seconds
    peak = next((v for k, v in PEAK.items() if CUDA and k in torch.cuda.get_device_name()), None)
    out = {
        "network": config.network,
        "batch_size": config.batch_size,
        **about,
        "seconds_a_step": seconds,
        "fastest": min(times),
        "slowest": max(times),
        "rounds": len(times),
        "images_per_second": config.batch_size / seconds,
        "flops_per_second": speed,
    }
    if own:
        out["times_ours"] = statistics.median(a / b for a, b in zip(times, own, strict=True))
    if peak and about["precision"] == "bf16":
        out["mfu"] = speed / peak
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in out.items()}


LABELS = {  # of an operation, or of what called it; the first that fits
    "batch making": ("batch making",),
    "optimiser": ("Optimizer.step",),
    "casts": ("aten::_to_copy", "ToCopyBackward"),
    "convolution, backward": ("aten::convolution_backward", "ConvolutionBackward"),
    "convolution, forward": ("aten::conv2d", "aten::convolution"),
    "normalisation, backward": ("aten::native_group_norm_backward", "GroupNormBackward", "BatchNormBackward"),
    "normalisation, forward": ("aten::group_norm", "aten::instance_norm", "aten::native_group_norm"),
    "SiLU and ReLU": ("aten::silu", "SiluBackward", "aten::relu", "ReluBackward", "aten::threshold_backward"),
    "attention and linear": ("aten::scaled_dot", "ScaledDot", "aten::linear", "AddmmBackward"),
    "weight average": ("aten::_foreach_lerp_",),
    "clipping": ("aten::_foreach_norm", "aten::_foreach_mul_", "aten::linalg_vector_norm"),
}


class Labelled(Batches):
    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.profiler.record_function("batch making"):
            return super().__call__(step)


def label(event: Any) -> str:
    """The part of a step that an event belongs to."""
    chain = []
    while event is not None:
        chain.append(event.name)
        event = event.cpu_parent
    fits = (part for part, names in LABELS.items() if any(n in name for n in names for name in chain))
    return next(fits, "other")


def profiled(ours: Ours, steps: int) -> dict[str, Any]:
    """Shares of the time of a step: the GPU's where there is one, else the CPU's."""
    run, activity = ours.run, torch.profiler.ProfilerActivity
    run.batches.__class__ = Labelled
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * CUDA]) as profile:
        seconds = timed(ours, steps)
    run.batches.__class__ = Batches
    shares: Counter[str] = Counter()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CPU:
            shares[label(event)] += event.self_device_time_total if CUDA else event.self_cpu_time_total
    total = sum(shares.values()) or 1
    out = {"network": run.config.network, "batch_size": run.config.batch_size, "steps": steps}
    out["shares"] = {k: round(v / total, 4) for k, v in shares.most_common()}
    if CUDA:  # under the profiler, which slows the CPU's side
        out["busy"] = round(total / 1e6 / (seconds * steps), 3)
    return out


# --- the comparison ------------------------------------------------------------------------------------


class Bench:
    """Groups of loops that take turns, and the record that grows with every round."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.begun = args, time.monotonic()
        name, large = pictures(args.data)
        self.files = write(large, scratch)
        small = torch.stack([fit(Image.open(f), args.size) for f in self.files])
        self.images = small.repeat(-(-IMAGES // len(small)), 1, 1, 1)[:IMAGES]
        self.scratch = scratch
        config = {k: v for k, v in vars(args).items() if k not in ("out", "data")}
        self.content: dict[str, Any] = {
            "config": config,
            "config_hash": config_hash(config),
            "data": {"source": name, "images": len(small), "side": SIDE, "fingerprint": fingerprint(small)},
            "seed": 0,
            "git_commit": git_commit(),
            "device": device_name(DEVICE),
            "torch": torch.__version__,
            "machine": {
                "cores": CORES,
                "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if CUDA else None,
                "cuda": torch.version.cuda if CUDA else None,
                "python": platform.python_version(),
                "tf32": {
                    "cudnn": torch.backends.cudnn.allow_tf32,
                    "matmul": torch.backends.cuda.matmul.allow_tf32,
                },
            },
            "worker_trials": {},
            "skipped": [],
            "results": [],
        }

    def save(self) -> None:
        self.content["overhead"] = self.overheads()
        self.content["seconds"] = round(time.monotonic() - self.begun, 1)
        text = json.dumps(self.content, indent=1) + "\n"
        atomic_write(self.args.out / "metrics.json", lambda p: p.write_text(text))

    def late(self, what: str) -> bool:
        if late := bool(self.args.limit) and time.monotonic() - self.begun > self.args.limit:
            self.skip(what, f"{self.args.limit:g} s had passed")
        return late

    def skip(self, what: str, why: str) -> None:
        self.content["skipped"].append({"what": what, "why": why})
        self.save()
        print(f"skipped: {what}: {why}", flush=True)

    def config(self, network: str, batch: int) -> TrainConfig:
        own = PRESETS["celeba64-deblur-cunet"] if network == "cunet" else TrainConfig()
        how: dict[str, Any] = {"batch_size": batch, "size": self.args.size, "steps": 10**6, "holdout": 1}
        return dataclasses.replace(own, network=network, out=str(self.scratch), compile=False, **how)

    def build(self, peer: str, config: TrainConfig, workers: int = 0) -> Loop:
        if peer in COMPILED:
            dynamo: Any = torch._dynamo.config
            dynamo.cache_size_limit = 64  # one for each network and batch size
            dynamo.fail_on_recompile_limit_hit = True  # rather than go on without the compiler
            config = dataclasses.replace(config, compile=True)
            return Replayed(config, self.images, peer) if peer == "both" else Ours(config, self.images, peer)
        if peer == "captured":
            return Replayed(config, self.images, peer)
        if peer in ("ours", "bare"):
            return {"ours": Ours, "bare": Bare}[peer](config, self.images)
        return {"report": Report, "published": Published}[peer](config, self.files, workers)

    def workers(self, config: TrainConfig) -> int:
        """For the peers' DataLoaders: on a GPU the most; on a CPU what a trial of the report's loop says."""
        most = min(4, CORES)
        if CUDA or self.args.quick:
            return most if CUDA else 0
        found = {n: warmed(functools.partial(self.build, "report", config, n))[2] for n in {0, most}}
        self.content["worker_trials"][f"{config.network}, {config.batch_size}"] = found
        return min(found, key=lambda n: found[n])

    def compare(self, network: str, batch: int, peers: list[str], seconds: float, kind: str) -> None:
        """Rows of these peers, which take turns; a peer that cannot be had is skipped and named."""
        config = self.config(network, batch)
        workers = self.workers(config) if {"report", "published"} & set(peers) else 0
        loops: dict[str, tuple[Loop, dict[str, Any], int]] = {}
        for peer in peers:
            if self.late(f"{kind}: {network}, batch {batch}, {peer}"):
                continue
            try:
                loop, about, each = warmed(functools.partial(self.build, peer, config, workers))
            except (RuntimeError, TrainingError) as error:  # no memory, no compiler
                self.skip(f"{kind}: {network}, batch {batch}, {peer}", first_line(error))
                continue
            steps = max(1, round(seconds / self.args.rounds / each))
            loops[peer] = loop, {"kind": kind, "peer": peer, **about, "steps_a_round": steps}, steps
        times: dict[str, list[float]] = {peer: [] for peer in loops}
        before = list(self.content["results"])
        for k in range(self.args.rounds):
            for peer in list(loops)[:: -1 if k % 2 else 1]:
                loop, _, steps = loops[peer]
                with turn(loop):
                    times[peer].append(timed(loop, steps))
            rows = [row(config, loops[p][1], times[p], times.get("ours", [])) for p in loops]
            self.content["results"] = before + rows
            self.save()
        for found in self.content["results"][len(before) :]:
            print(line(found), flush=True)
        first = network == self.args.networks[0] and batch == self.args.batches[0]
        if self.args.profile and first and kind == "peers" and "ours" in loops:
            ours = loops["ours"][0]
            assert isinstance(ours, Ours)
            self.content["profile"] = profiled(ours, 10 if CUDA else 2)
            self.save()

    def overheads(self) -> dict[str, float]:
        """What ours takes over bare, by network and batch, as a share."""
        rows = {(r["network"], r["batch_size"]): r for r in self.content["results"] if r["peer"] == "bare"}
        return {
            f"{n}, {b}": round(1 / r["times_ours"] - 1, 4) for (n, b), r in rows.items() if "times_ours" in r
        }


def line(r: dict[str, Any]) -> str:
    """A row of the table."""
    text = f"{r['network']:10} {r['batch_size']:5} {r['peer']:9} {r['precision']:5} {r['workers']:3}"
    text += f" {1e3 * r['seconds_a_step']:9.2f} {r['images_per_second']:9.1f} {r.get('times_ours', 1):7.3f}"
    text += f" {r['flops_per_second'] / 1e9:9.0f} {r.get('mfu', float('nan')):6.1%}"
    text += f" {r.get('peak_bytes', float('nan')) / 1e9:7.2f} {r.get('compile_seconds', float('nan')):8}"
    return text.replace("nan%", "").replace("nan", "")


HEAD = f"{'network':10} {'batch':>5} {'peer':9} {'prec.':5} {'wrk':>3} {'ms/step':>9} {'images/s':>9}"
HEAD += f" {'x ours':>7} {'GFLOP/s':>9} {'MFU':>6} {'peak GB':>7} {'compiled':>8}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/runs/benchmarks/training"))
    add("--data", help="images, as the library takes them; the embedded photographs, or noise without them")
    add("--networks", nargs="+", default=["unet-small", "unet-full", "cunet"])
    add("--batches", nargs="+", type=int, help="64 on a GPU, else 16")
    graphs = () if CUDA else ("captured", "both")  # which a CPU has not
    add("--peers", nargs="+", default=[p for p in PEERS if p not in graphs], choices=PEERS)
    add("--sweep", nargs="*", type=int, help="batch sizes of ours alone, first network; on a GPU 16 to 512")
    add("--sweep-compiled", nargs="*", type=int, help="the same, compiled; on a GPU 512 and 16")
    add("--size", type=int, default=64)
    add("--seconds", type=float, default=1.5, help="timed, of each row; of the sweep's a third")
    add("--rounds", type=int, help="turns of each loop: 3 on a GPU, else 5")
    add("--limit", type=float, default=0.0, help="seconds after which no loop is begun; 0: none")
    add("--compile-all", action="store_true", help="compile every network, not the first alone")
    add("--profile", action="store_true", help="shares of a step of ours, first network and batch")
    add("--quick", action="store_true", help="a smoke test: a tiny network on tiny pictures")
    args = parser.parse_args()
    if args.quick:
        args.networks, args.size, args.seconds = ["unet-tiny"], 32, min(args.seconds, 0.1)
        args.batches, args.sweep = args.batches or [4], args.sweep or []
    args.batches = args.batches or [64 if CUDA else 16]
    args.rounds = args.rounds or (3 if CUDA else 5)
    if args.sweep is None:
        args.sweep = [16, 32, 64, 128, 256, 512] if CUDA else []
    if args.sweep_compiled is None:
        args.sweep_compiled = [512, 16] if CUDA and not args.quick else []
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        bench.save()
        print(HEAD, flush=True)
        first, compiled = args.networks[0], args.networks[: None if args.compile_all else 1]
        compiled = compiled if set(COMPILED) & set(args.peers) and (CUDA or args.compile_all) else []

        def peers(network: str) -> None:
            for batch in args.batches:
                chosen = [p for p in args.peers if network in compiled or p not in COMPILED]
                bench.compare(network, batch, chosen, args.seconds, "peers")

        def sweep(peer: str, sizes: list[int]) -> None:
            for batch in sizes:
                bench.compare(first, batch, [peer], args.seconds / 3, "sweep")

        for network in sorted(args.networks, key=lambda n: n in compiled):  # what compiling puts off, last
            if network == first:
                sweep("ours", args.sweep)
            peers(network)
        if compiled:
            sweep("compiled", args.sweep_compiled)
    for name, share in bench.content["overhead"].items():
        print(f"overhead of the loop over bare steps ({name}): {share:.1%}")
    for part, share in bench.content.get("profile", {}).get("shares", {}).items():
        print(f"{part:24} {share:6.1%}")


if __name__ == "__main__":
    main()
