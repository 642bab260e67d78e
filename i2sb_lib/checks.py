"""How the book binds a claim to a number: `check` measures it here, `record` reads what a run measured."""

import importlib.metadata
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLONE = Path(tempfile.gettempdir()) / "i2sb-book"


class CheckFailed(AssertionError):
    """A claim of the book did not hold; the message gives the measured value and the tolerance."""


def check(
    claim: str,
    measured: Any,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    within: tuple[float, float] | None = None,
    what: str = "",
) -> None:
    """Assert that `measured` is at most, at least or within a tolerance, and say so in a fixed line.

    claim: label of the statement, such as "prop-posterior". what: a few words on the quantity.
    Exactly one of at_most, at_least and within (a closed interval) is given. In a notebook the
    line carries claim, measured value and tolerance as metadata, from which appendix C is made;
    its text does not depend on the measured value, so it is the same on every machine.
    Raises CheckFailed where the tolerance is not met or the value is not finite, ValueError for a
    check with no tolerance or several.
    """
    given = {"≤": at_most, "≥": at_least, "in": within}
    bounds = {sign: bound for sign, bound in given.items() if bound is not None}
    if len(bounds) != 1:
        raise ValueError(f"check {claim!r}: expected one of at_most, at_least, within, got {bounds}")
    ((sign, bound),) = bounds.items()
    value = float(measured)
    low, high = within or (
        -math.inf if at_least is None else at_least,
        math.inf if at_most is None else at_most,
    )
    limit = f"[{low:g}, {high:g}]" if within else f"{bound:g}"
    if not (math.isfinite(value) and low <= value <= high):
        raise CheckFailed(f"{claim}: {what or 'measured'} = {value:.6g}, expected {sign} {limit}")
    line = f"✓ {claim}: {what + ' ' if what else ''}{sign} {limit}"
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        print(line)
        return
    from IPython.display import publish_display_data

    record = {"claim": claim, "what": what, "sign": sign, "limit": bound, "measured": value}
    publish_display_data({"text/plain": line}, metadata={"i2sb_check": record})


def repository() -> Path:
    """The repository's root, with the book and data/runs: the one around the notebook or the library.

    Where there is none, as in Colab, it is cloned to CLONE, once: a clone appears there whole or not at all.
    Raises RuntimeError where it cannot be cloned.
    """
    near = [Path.cwd(), *Path.cwd().parents, Path(__file__).parent.parent, CLONE]
    for folder in near:
        if (folder / "data" / "runs").is_dir() and (folder / "book").is_dir():
            return folder
    urls = importlib.metadata.metadata("i2sb-lib").get_all("Project-URL") or []
    address = next(url.split(", ", 1)[1] for url in urls if url.startswith("Repository,"))
    with tempfile.TemporaryDirectory(dir=CLONE.parent) as aside:
        command = ["git", "clone", "--quiet", "--depth", "1", address, f"{aside}/clone"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"expected the book's records here or at {address}: {done.stderr.strip()}")
        Path(aside, "clone").rename(CLONE)
    return CLONE


def record(name: str, file: str = "metrics.json") -> Any:
    """What a run measured: data/runs/NAME/FILE of the repository, read as JSON."""
    return json.loads((repository() / "data" / "runs" / name / file).read_text(encoding="utf-8"))
