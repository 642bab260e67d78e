"""How far long work has come: a bar on a terminal, a line a minute in a pipe or a log."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm.auto import tqdm

EVERY = 60.0  # seconds before a log's first line, and between two
DELAY = 5.0  # before a bar: what is done by then needs none
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} gone, about {remaining} to go{postfix}"


class _Lines:
    """A stream on which what tqdm draws over itself comes out as lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line not in ("", self.last):
            self.stream.write(line + "\n")
            self.last = line

    def flush(self) -> None:
        self.stream.flush()


def progress(
    items: Iterable[Any] | None = None, *, desc: str, unit: str, show: bool = True, **options: Any
) -> tqdm:
    """tqdm over `items` (or of options' total, advanced by hand), with an estimate, on stderr.

    On a terminal a bar, after DELAY seconds; elsewhere a line every EVERY seconds, and at the end of what
    took so long: many small works, as of a folder's pictures, fill no log. show: False for silence. desc
    says what is done, unit what is counted.
    """
    how: dict[str, Any] = {"delay": DELAY}
    show = show and not getattr(sys.stderr, "closed", sys.stderr is None)  # as a shell or a service does
    if show and not sys.stderr.isatty():
        how |= {"file": _Lines(sys.stderr), "bar_format": _LINE, "mininterval": EVERY, "miniters": 1}
    return tqdm(items, desc=desc, unit=unit, disable=not show, **how, **options)
