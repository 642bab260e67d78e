"""Execute the chapters that are stale, in place: `make execute`, or `make execute CHAPTER=07_two_algorithms`.

A notebook is stale when its code is not the code that its outputs came from: its metadata keep a hash
of that. What a change of the library makes of the outputs, `pytest --nbval book` tells.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

BOOK = Path(__file__).parent


def code_hash(notebook: dict[str, Any]) -> str:
    """Short hash of the code cells' text, in order."""
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def is_stale(notebook: dict[str, Any]) -> bool:
    """Whether the outputs came from other code than stands there, or from none."""
    return notebook["metadata"].get("i2sb", {}).get("code") != code_hash(notebook)


def execute(file: Path) -> None:
    """Run a notebook in a fresh kernel, without a time limit, and write it back with its outputs.

    Raises nbclient's CellExecutionError where a cell fails; the file is then as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(file.parent)}}
    )
    client.execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {
        "i2sb": {"code": code_hash(notebook)},
        "kernelspec": kernel,
        "language_info": {"name": "python"},
    }
    partial = file.with_suffix(".tmp")
    nbformat.write(notebook, partial)
    partial.replace(file)


def main(names: list[str]) -> None:
    """Execute the chapters that are named, else every stale one, and say which."""
    files = [BOOK / f"{Path(n).stem}.ipynb" for n in names] or sorted(BOOK.glob("*.ipynb"))
    for file in files:
        if names or is_stale(json.loads(file.read_text())):
            print(f"executing {file.name}", flush=True)
            execute(file)


if __name__ == "__main__":
    main(sys.argv[1:])
