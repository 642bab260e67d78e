"""A check passes, fails and speaks the same words whatever it measured."""

import math
import re
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from i2sb_lib import checks
from i2sb_lib.checks import CheckFailed, check, record, repository


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({"at_most": 1e-6}, [1e-6, 0, -5], [1.01e-6, 1]),
        ({"at_least": 2.0}, [2, 3.5], [1.99, -2]),
        ({"within": (-1.0, 0.5)}, [-1, 0, 0.5], [0.51, -1.01]),
        ({"at_most": 0.0}, [0.0], [1e-300]),  # a bound of zero is a bound
        ({"within": (0.0, 0.0)}, [0.0], [1e-300]),
    ],
)
def test_passes_and_fails(options, good, bad, capsys):
    for value in good:
        check("claim", value, **options)
    for value in [*bad, math.nan, math.inf, -math.inf]:
        with pytest.raises(CheckFailed):
            check("claim", value, **options)
    assert capsys.readouterr().out.count("✓ claim") == len(good)


def test_a_failure_gives_value_and_tolerance():
    with pytest.raises(CheckFailed, match=re.escape("prop: error = 0.25, expected ≤ 0.1")):
        check("prop", 0.25, at_most=0.1, what="error")
    with pytest.raises(CheckFailed, match=re.escape("prop: measured = 3, expected in [1, 2]")):
        check("prop", 3, within=(1, 2))
    assert issubclass(CheckFailed, AssertionError)


@pytest.mark.parametrize("options", [{}, {"at_most": 1, "at_least": 0}, {"at_most": 0.0, "within": (0, 1)}])
def test_an_ambiguous_tolerance_is_refused(options):
    with pytest.raises(ValueError, match="check 'prop': expected one of at_most, at_least, within"):
        check("prop", 0.5, **options)


def test_the_line_does_not_depend_on_the_measured_value(capsys):
    for value in (1e-13, torch.tensor(2e-8), 0):
        check("prop-posterior", value, at_most=1e-6, what="gap")
    check("rate", 1.93, within=(1.9, 2.1))
    check("order", 7, at_least=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["✓ prop-posterior: gap ≤ 1e-06"] * 3 + ["✓ rate: in [1.9, 2.1]", "✓ order: ≥ 2"]


def test_a_notebook_gets_the_same_line_and_the_record_as_metadata():
    shell = InteractiveShell.instance()
    try:
        with capture_output() as seen:
            for value in ("3e-9", "5e-9"):
                cell = f"from i2sb_lib.checks import check\ncheck('prop', {value}, at_most=1e-8, what='gap')"
                assert shell.run_cell(cell, store_history=False).success
    finally:
        InteractiveShell.clear_instance()
    assert not seen.stdout
    assert [o.data for o in seen.outputs] == [{"text/plain": "✓ prop: gap ≤ 1e-08"}] * 2
    records = [o.metadata["i2sb_check"] for o in seen.outputs]
    want = {"claim": "prop", "what": "gap", "sign": "≤", "limit": 1e-8}
    assert records == [{**want, "measured": 3e-9}, {**want, "measured": 5e-9}]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """As in Colab: a notebook with no repository around it; returns where the published one is."""
    published = tmp_path / "published"
    for folder in ("book", "data/runs/a"):
        (published / folder).mkdir(parents=True)
    (published / "data/runs/a/metrics.json").write_text('{"seed": 3}')
    (published / "book" / "a.md").write_text("a")
    git = ["git", "-C", str(published), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(checks, "__file__", str(tmp_path / "site-packages" / "i2sb_lib" / "checks.py"))
    monkeypatch.setattr(checks, "CLONE", tmp_path / "clone")
    metadata = {"Project-URL": [f"Repository, {published.as_uri()}"]}
    monkeypatch.setattr(checks.importlib.metadata, "metadata", lambda _: _Metadata(metadata))
    return published


class _Metadata(dict):
    def get_all(self, name):
        return self[name]


def test_the_records_are_found_again_where_the_first_call_cloned_them(alone):
    assert record("a") == {"seed": 3}
    shutil.rmtree(alone)  # the second call needs no network
    assert record("a") == {"seed": 3}
    assert repository() == checks.CLONE


def test_a_clone_that_fails_says_so_and_leaves_nothing(alone):
    shutil.rmtree(alone)
    with pytest.raises(RuntimeError, match="expected the book's records"):
        repository()
    assert sorted(p.name for p in checks.CLONE.parent.iterdir()) == ["notebooks"]


def test_a_record_of_this_repository_is_read_from_any_folder_inside_it(monkeypatch):
    monkeypatch.chdir(ROOT / "book")
    assert repository() == ROOT
    assert record("nfe")["results"]
