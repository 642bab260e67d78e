"""The repository's address, which stands in `_config.yml` and is copied from there.

    python book/address.py                                  # writes every copy anew
    python book/address.py https://github.com/OWNER/NAME    # to another address

The copies: README.md, index.md, pyproject.toml, CITATION.cff, links in notebooks, and the first cell of
each, which installs the library in Colab. A test compares them all.
"""

import json
import re
import sys
from pathlib import Path

from execute import code_hash, is_stale

ROOT = Path(__file__).parent.parent
CONFIG = "_config.yml"
TEXTS = [CONFIG, "README.md", "index.md", "pyproject.toml", "CITATION.cff"]
BOOTSTRAP = """\
# Colab only: install the library, leave torch, torchvision and numpy, fetch the book.
import sys

if "google.colab" in sys.modules:
    from importlib.metadata import version
    from pathlib import Path

    keep = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy")]
    Path("/tmp/keep.txt").write_text("\\n".join(keep))
    clones = [p for p in (Path.cwd(), *Path.cwd().parents) if (p / "i2sb_lib").is_dir()]
    source = f"file://{clones[0]}" if clones else "git+ADDRESS"
    source = f"i2sb-lib[train,demo,metrics] @ {source}"
    %pip install --quiet --constraint /tmp/keep.txt "{source}" POT matplotlib
    from i2sb_lib.checks import repository

    sys.path.append(str(repository() / "book"))"""


def address(root: Path = ROOT) -> str:
    """https://github.com/OWNER/NAME, as `_config.yml` has it."""
    found = re.search(r"^  url: (\S+)", (root / CONFIG).read_text(), re.M)
    if not found:
        raise ValueError(f"expected a line '  url: …' below 'repository:' in {CONFIG}, found none")
    return found[1]


def slug(url: str) -> str:
    """OWNER/NAME of an address; ValueError where it is none of that form."""
    if not (form := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)", url)) or url.endswith(".git"):
        raise ValueError(f"expected an address such as https://github.com/OWNER/NAME, got {url!r}")
    return form[1]


def bootstrap(url: str) -> str:
    """The first cell of every notebook."""
    return BOOTSTRAP.replace("ADDRESS", url)


def moved(text: str, old: str, url: str) -> str:
    """A notebook's text with that first cell; outputs that were current stay so, as it makes none."""
    current = not is_stale(json.loads(text))
    notebook = json.loads(text.replace(old, slug(url)))
    notebook["cells"][0]["source"] = bootstrap(url).splitlines(keepends=True)
    if current:
        notebook["metadata"]["i2sb"]["code"] = code_hash(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def move(url: str, root: Path = ROOT) -> list[str]:
    """Write `url` wherever the address stands; the names of the files that changed."""
    old, new = slug(address(root)), slug(url)
    changed = []
    for file in [*(root / name for name in TEXTS), *sorted((root / "book").glob("*.ipynb"))]:
        before = file.read_text()
        after = moved(before, old, url) if file.suffix == ".ipynb" else before.replace(old, new)
        if after != before:
            file.write_text(after)
            changed.append(str(file.relative_to(root)))
    return changed


if __name__ == "__main__":
    try:
        print(*move(sys.argv[1] if sys.argv[1:] else address()), sep="\n")
    except ValueError as error:
        sys.exit(str(error))
