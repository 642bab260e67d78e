"""Writing that is whole or nothing, from many threads, and whose commit a result records."""

import ast
import errno
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT, script
from safetensors.torch import save_file

from i2sb_lib import files
from i2sb_lib.files import atomic_write, git_commit, partials
from i2sb_lib.folders import list_images
from i2sb_lib.images import open_image, save_image, to_tensor


def test_eight_threads_may_save_one_path(tmp_path):
    """And whoever reads meanwhile sees one of their pictures, whole."""
    path = tmp_path / "out.png"
    levels = range(0, 256, 32)

    def work(level):
        found = set()
        for _ in range(12):
            save_image(torch.full((3, 40, 40), level, dtype=torch.uint8), path)
            found.add(tuple(to_tensor(open_image(path)).unique().tolist()))
        return found

    with ThreadPoolExecutor(8) as pool:
        seen = set().union(*pool.map(work, levels))
    assert seen <= {(level,) for level in levels}
    assert [f.name for f in tmp_path.iterdir()] == ["out.png"]


def test_a_failure_is_told_by_the_name_that_was_asked_for(tmp_path):
    def full(partial):
        raise OSError(errno.ENOSPC, "No space left on device", str(partial))

    with pytest.raises(OSError, match=r"out\.png") as found:
        atomic_write(tmp_path / "out.png", full)
    assert found.value.filename == str(tmp_path / "out.png")


def test_a_killed_process_leaves_no_picture_and_no_damage(tmp_path):
    save_image(torch.zeros(3, 4, 4, dtype=torch.uint8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    code = (
        "import os, runpy, sys; from pathlib import Path\n"
        "write = runpy.run_path(sys.argv[1])['atomic_write']\n"
        "write(Path(sys.argv[2]), lambda p: (p.write_bytes(b'half'), os.kill(os.getpid(), 9)))"
    )
    done = subprocess.run([sys.executable, "-c", code, files.__file__, str(tmp_path / "a.png")])
    assert done.returncode == -9
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    assert list_images(tmp_path)[0] == [tmp_path / "a.png"]


def test_what_a_killed_process_left_is_found_and_nothing_of_the_user_s(tmp_path):
    names = list[str]()
    for name in ("state.pt", "state.pt", "README"):
        atomic_write(tmp_path / "there" / name, lambda p: names.append(p.name))
    for name in [
        *names[1:],
        ".todo.tmp.md",
        ".tmpbB8V1G",
        names[0][1:],
        f".{names[0]}",
        f".{'0' * 32}.tmp.pt",
    ]:
        (tmp_path / name).touch()
    (tmp_path / names[0]).mkdir()
    assert sorted(partials(tmp_path)) == sorted(tmp_path / name for name in names[1:])


def test_every_text_that_is_read_or_written_says_its_encoding():
    """A locale's may be ASCII, or UTF-16."""
    found = [
        f"{file.name}:{call.lineno}"
        for file in sorted((ROOT / "i2sb_lib").glob("*.py"))
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", "") in ("read_text", "write_text")
        and "encoding" not in [k.arg for k in call.keywords]
    ]
    assert not found


@pytest.mark.slow
def test_the_commit_is_found_in_any_locale():
    code = "from i2sb_lib.files import git_commit; print(git_commit())"
    env = {k: v for k, v in os.environ.items() if not k.startswith("LC_")}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, f"{git_commit()}\n")


def test_an_error_keeps_the_old_file(tmp_path):
    path = tmp_path / "deep" / "er" / f"{'n' * 250}.json"  # as long as a name may be
    atomic_write(path, lambda p: p.write_text("old"))

    def fail(partial):
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
def test_a_file_has_the_rights_that_opening_it_would_give(tmp_path):
    """safetensors makes files that only their owner can read."""
    path, before = tmp_path / "a.safetensors", os.umask(0o027)
    try:
        atomic_write(path, lambda p: save_file({"x": torch.zeros(1)}, p))
        assert mode(path) == 0o640
        path.chmod(0o600)
        atomic_write(path, lambda p: p.write_text("new"))
        assert mode(path) == 0o600
    finally:
        os.umask(before)


def git(folder, *args):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(["git", "-C", str(folder), *who, *args], capture_output=True, text=True, env=env)
    return done.stdout.strip()


def committed(folder) -> str:
    """Make a folder a repository of all that is in it; its commit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_of_this_project_s_own_repository_or_none(tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    for place in (own, other / "venv" / "site-packages", other):  # a clone, installed, copied
        (place / "i2sb_lib").mkdir(parents=True)
        shutil.copy(files.__file__, place / "i2sb_lib")
    shutil.copy(ROOT / "pyproject.toml", own)
    (other / "pyproject.toml").write_text('[project]\nname = "another"\n')
    ours, theirs = committed(own), committed(other)
    assert len(ours) == len(theirs) == 40
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    assert git_commit(own) == ours
    assert git_commit(other) is None
    assert git_commit(other / "venv" / "site-packages") is None
    (own / "i2sb_lib" / "files.py").write_text("# changed\n")
    assert git_commit(own) == f"{ours}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(own) is None  # without git
    assert git_commit.__defaults__ == (Path(files.__file__).parents[1],)


@pytest.mark.parametrize("kind", ["picture", "zip", "parquet", "checkpoint"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_mutated_file_is_read_or_refused_in_one_sentence(kind, tmp_path, monkeypatch):
    """A sample of benchmarks/fuzz.py, of another seed than its record."""
    fuzz = script("fuzz")
    monkeypatch.setattr(fuzz, "CLAIMS", 0)
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
    verdicts, count = {"read": 0, "refused": 0}, 150 if kind == "picture" else 20
    for index in range(count):
        what, contents = fuzz.case(kind, 1, index)
        folder = tmp_path / str(index)
        folder.mkdir()
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        verdict, text = fuzz.judge(kind, folder)
        assert verdict != "fault", f"{what} {index}: {text}"
        verdicts[verdict] += 1
    assert verdicts["refused"] > count / 4
    assert verdicts["read"] > count / 20
