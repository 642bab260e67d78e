"""What goes wrong around a long run, found early or told in one sentence: disk, tools, memory, signals."""

import contextlib
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and where the last good state is."""


class MissingExtra(ImportError):
    """A package of an extra is not installed; the message says for what, and how to install it."""


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """In which packages of an extra of ours are imported, for `what`; MissingExtra where one is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(f'{what} needs {error.name}: pip install "i2sb-lib[{name}]"') from error


class Notice(UserWarning):
    """What this library warns of."""


def warn(message: str) -> None:
    """Warn of this at the line that called the library, through whatever lies between."""
    ours, torchs = (os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith((ours, torchs, contextlib.__file__)):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, Notice, stacklevel=level)


def told(x: Any) -> str:
    """What came in place of what was expected: a tensor's dtype and shape; of other things the type first."""
    what = f"{x.dtype} of shape {tuple(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else ""
    return what if isinstance(x, torch.Tensor) else type(x).__name__ + f" of {what}" * bool(what)


def floats(x: torch.Tensor, what: str, n: int = 0) -> torch.Tensor:
    """Return x; ValueError, expected `what`, unless it is a float tensor of n axes or more."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim >= n):
        raise ValueError(f"expected {what}, got {told(x)}")
    return x


def first_line(error: BaseException) -> str:
    """An error in one line: its first, not too long, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(". ")


def listed(faults: list[str], most: int = 20) -> str:
    """The first so many of them, and how many more there are."""
    return "; ".join(faults[:most]) + f"; and {len(faults) - most} more" * (len(faults) > most)


def unreadable(name: object, wanted: str, error: Exception) -> ValueError:
    """What to raise for a file that is not what was wanted: one sentence, for whatever error that came as."""
    reason = first_line(error).split(" <_io")[0]
    return ValueError(f"{name}: expected {wanted}, got something unreadable ({reason})")


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """In which the folder is there; TrainingError where nothing can be written to it, or it cannot be made.

    What had to be made for it and holds nothing is afterwards gone again.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            said = f"{folder}: expected a folder that can be written to, got: {error.strerror}"
            raise TrainingError(said) from None
        yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # never made, or in use by now
                place.rmdir()


def check_writable(folder: Path) -> None:
    """TrainingError where nothing can be written to the folder, or where it cannot be made; none is left."""
    with writable(folder):
        pass


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """In which the folder is there, can be written to, and no other training is at work in it: TrainingError.

    The lock is the kernel's, on the folder itself: there is no file of it, and it ends with its process.
    """
    with writable(folder), contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows, and NFS: they have no such lock
            import fcntl

            stack.callback(os.close, place := os.open(folder, os.O_RDONLY))
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stack.callback(fcntl.flock, place, fcntl.LOCK_UN)  # also in what was forked meanwhile
            except BlockingIOError:
                raise TrainingError(f"{folder}: expected no other training, got one at work") from None
        yield


def check_compiler(device: torch.device) -> None:
    """TrainingError where torch.compile cannot compile for the device: one tiny function is tried."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # dynamo, inductor and triton have no common one
        what = "a C++ compiler, and on a GPU Triton: install g++ or clang, or give --no-compile"
        said = first_line(getattr(error, "inner_exception", error))
        raise TrainingError(f"--compile needs {what} ({said})") from error


def create_writer(folder: Path) -> Any:
    """TensorBoard's writer of scalars; MissingExtra where it is not installed."""
    with extra("metrics", "--tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, a CPU's or a GPU's way to say that memory is out."""
    said = r"out of memory|not enough memory|allocate memory|ALLOC_FAILED"
    return isinstance(error, MemoryError) or bool(re.search(said, str(error)))


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list to which SIGINT (Ctrl-C), SIGTERM and SIGHUP are added, instead of what they do otherwise.

    The third interrupts at once: launchers send one twice. Signals that are ignored (nohup) stay so, and
    outside the main thread, where Python has no signals, the list stays empty.
    """
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 2:
            raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last where a terminal goes, and not on Windows
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    mine = [n for n in known if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {n: signal.signal(n, note) for n in mine if here}
    try:
        yield seen
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def pass_on(number: int, where: str, out: str | None) -> None:
    """Do what a noted signal asks for: its handler (KeyboardInterrupt for Ctrl-C), else exit 128 + number.

    Before that, one line on stderr where out, the run's folder, is given: where it ended, and how to go on.
    """
    if out is not None:
        said, how = f"stopped by {signal.Signals(number).name} at {where}, which is saved", shlex.quote(out)
        print(f"{said}; go on with: i2sb train --resume --out {how}", file=sys.stderr, flush=True)
    handler = signal.getsignal(number)
    if not callable(handler):
        sys.exit(128 + number)
    handler(number, None)
