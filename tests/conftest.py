"""What every test shares: a private cache, fixed seeds, tiny photographs, one tiny trained run.

PyTorch, and the library with it, is imported where it is used: the process that hands out the tests starts
three seconds sooner without.
"""

import contextlib
import dataclasses
import gc
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import kernels
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, here and in what tests start
SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = {"lpips": "alexnet-owt-*.pth", "fid": "weights-inception-*.pth"}


def pytest_configure(config):
    if config.getoption("nbval", False) and sys.platform == "linux":
        kernels.prepare(workers=hasattr(config, "workerinput"))


def pytest_collection_finish():
    """What is imported by now stays, and the garbage collector need not look through it again and again."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch._dynamo  # noqa: F401  # each worker needs it sooner or later: an optimizer imports it
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Neither read nor fill the user's cache; processes that tests start inherit this."""
    os.environ["I2SB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Background jobs ignore Ctrl-C, those under nohup SIGHUP, and what they start: tests need both."""
    usual = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    for number, handler in usual.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seeds():
    import torch

    torch.manual_seed(0)
    np.random.seed(0)


def script(name: str, folder: str = "benchmarks"):
    """A script of benchmarks/, or of another folder, as a module; it finds those beside it."""
    if (beside := str(ROOT / folder)) not in sys.path:
        sys.path.append(beside)
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photograph(seed: int, height: int = 20, width: int = 20) -> Image.Image:
    """A smooth colour picture that no other seed makes."""
    y, x = np.mgrid[:height, :width] / 20
    waves = np.random.default_rng(seed).uniform(1, 6, (3, 3))
    planes = [np.sin(a * x + b * y + c) for a, b, c in waves]
    return Image.fromarray((127.5 * (1 + np.stack(planes, -1))).astype(np.uint8))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of 24 PNG files of 20 x 20 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        photograph(i).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def tiny(photos, tmp_path):
    """The configuration of a run of nine steps that takes about a second."""
    from i2sb_lib.config import TrainConfig

    return TrainConfig(
        data=str(photos), out=str(tmp_path / "run"), size=16, network="unet-tiny", steps=9, batch_size=4,
        holdout=4, warmup=2, lr=1e-3, precision="no", eval_every=1000, save_every=3, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run_folder(photos, tmp_path_factory) -> Path:
    """The folder of one finished tiny run, to be read and not changed."""
    from i2sb_lib.config import TrainConfig
    from i2sb_lib.training import train

    out = tmp_path_factory.mktemp("run") / "tiny"
    base = TrainConfig(data=str(photos), out=str(out), size=16, network="unet-tiny", batch_size=4)
    train(dataclasses.replace(base, steps=30, holdout=4, warmup=2, precision="no", progress=False))
    return out


@pytest.fixture(scope="session")
def i2sb():
    """Start `python -m i2sb_lib …` as a process: from any folder, without a GPU."""

    def start(*args, module=("-m", "i2sb_lib"), **options) -> subprocess.Popen:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, *module, *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen(command, env=env, start_new_session=True, **pipes))
        return started[-1]

    started: list[subprocess.Popen] = []
    yield start
    for process in started:  # and whatever it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the CelebA and CelebA-HQ parquet files are not beside this checkout")
    return SHARED


def weights_missing(metric: str) -> str:
    """Why a metric's pretrained network cannot be loaded offline; empty where it can."""
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return "" if list(folder.glob(WEIGHTS[metric])) else f"no {WEIGHTS[metric]} in {folder}"


def _need(metric: str, request) -> None:
    reason = weights_missing(metric)
    request.node.user_properties.append((metric, reason or "ran"))  # for the summary below
    if reason:
        pytest.skip(reason)


@pytest.fixture
def lpips_weights(request):
    _need("lpips", request)


@pytest.fixture
def fid_weights(request):
    _need("fid", request)


def pytest_terminal_summary(terminalreporter):
    """One line that says whether the metrics with pretrained networks were tested."""
    found = [p for s in ("passed", "failed", "skipped") for r in terminalreporter.stats.get(s, [])
             for p in getattr(r, "user_properties", [])]  # fmt: skip  # a module that is skipped has none
    parts = []
    for metric in WEIGHTS:
        states = [state for name, state in found if name == metric]
        skipped = [s for s in states if s != "ran"]
        what = f"{len(states) - len(skipped)} ran, {len(skipped)} skipped"
        parts.append(f"{metric.upper()} tests: {what}" + (f" ({skipped[0]})" if skipped else ""))
    terminalreporter.write_line("pretrained metrics: " + "; ".join(parts))
