"""What a person at a terminal is told: each failure and each warning in one line, in any encoding."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from i2sb_lib.faults import MissingExtra, Notice, first_line, is_out_of_memory


def explain(error: BaseException) -> str | None:
    """One line for what may be wrong with files, values or memory; None for a fault of the program."""
    if is_out_of_memory(error):
        return f"out of memory: {first_line(error).removeprefix('out of memory: ')}"
    return " ".join(str(error).split()) if isinstance(error, ValueError | OSError | MissingExtra) else None


class _Forgiving:
    """A stream beside the work: where nothing can be written to it, nothing fails."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def plain_console() -> Iterator[None]:
    """Inside, a warning of this library is a line on stderr, once; other packages' stay as they are.

    What the console's encoding cannot show comes out as "?", and nothing fails for it; nor for a stream that
    a shell has closed, or for an stderr that is full. Where whoever read what is printed has gone (`| head`),
    the program leaves in silence with 141, as the shell's own do; where standard output is full, with one
    sentence at the end.
    """
    others, seen = warnings.showwarning, set[str]()

    def show(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if not issubclass(category, Notice):
            others(message, category, filename, *rest)
        elif str(message) not in seen:
            seen.add(str(message))
            print(f"i2sb: {message}", file=sys.stderr)

    # None where a shell closed it: nothing else is to get its number
    sys.stdout, sys.stderr = (s or open(os.devnull, "w", encoding="utf-8") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    stderr, sys.stderr = sys.stderr, _Forgiving(sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Notice)
            warnings.showwarning = show  # type: ignore[assignment]
            try:
                yield
            finally:
                sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        where = "" if error.filename else "standard output: "
        sys.exit(141 if isinstance(error, BrokenPipeError) else f"i2sb: {where}{explain(error)}")
    finally:
        sys.stderr = stderr
