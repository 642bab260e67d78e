"""Files that appear whole or not at all, and the commit of the code that wrote them."""

import contextlib
import os
import stat
import subprocess
import unicodedata
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    Threads and processes may write one path at once: each has a temporary file of its own, whose name
    starts with a dot and ends as `path` does, and the last to finish is what is kept. It has the rights
    that `path` had or, where that is new, those of any new file, whatever `write` gives it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".i2sb-{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        partial.touch()
        mode = (path if path.exists() else partial).stat().st_mode
        write(partial)
        with contextlib.suppress(OSError):  # a file system without rights
            partial.chmod(stat.S_IMODE(mode))
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)  # the name that its user knows
        raise
    finally:
        partial.unlink(missing_ok=True)


def same(name: str) -> str:
    """A name in the form of Unicode's that most systems use, for comparison: Macs have another."""
    return unicodedata.normalize("NFC", name)


def is_special(path: Path) -> bool:
    """Whether what is at a path, through its links, is neither file nor folder: it may have no end."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def partials(folder: Path) -> list[Path]:
    """The temporary files that killed processes, or those at work, have in a folder: none of the user's."""
    return [file for file in folder.glob(f".i2sb-{'[0-9a-f]' * 32}.tmp*") if file.is_file()]


def git_commit(root: Path = Path(__file__).parents[1]) -> str | None:
    """The commit of the checkout that this code is in, and -dirty where a file of it was changed since.

    None where the code is installed or copied elsewhere.
    """
    project = root / "pyproject.toml"
    if not ((root / ".git").exists() and project.exists() and b'name = "i2sb-lib"' in project.read_bytes()):
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # GIT_...: of a hook of another repository
    here = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(command, capture_output=True, check=True, env=here).stdout.decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return None
