"""Long work says how far it has come: a line now and then in a pipe, a bar on a terminal, or nothing."""

import io
import sys
import time

import pytest

from i2sb_lib import progress as module
from i2sb_lib.progress import progress


@pytest.fixture
def pipe(monkeypatch):
    """A call puts a pipe where stderr is: in the test, since pytest puts its own there before it."""

    def put(terminal=False):
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
        return stream

    return put


def test_a_log_gets_a_line_now_and_then_with_an_estimate(pipe, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.1)
    monkeypatch.setattr(module, "DELAY", 0.0)
    stream = pipe()
    bar = progress(total=40, desc="training", unit="steps")
    for _ in range(40):
        time.sleep(0.01)
        bar.set_postfix(loss="0.5", refresh=False)
        bar.update()
    bar.close()
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 12
    assert all(line.startswith("training: ") and "about 0" in line for line in lines[1:])
    assert lines[-1].startswith("training: 40 of 40 steps")
    assert "loss=0.5" in lines[-1]


def test_short_work_in_a_pipe_and_silenced_work_say_nothing(pipe, monkeypatch):
    stream = pipe()
    assert list(progress(range(5), desc="preparing", unit="images")) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(module, "DELAY", 0.0)
    assert list(progress(range(5), desc="preparing", unit="images", show=False)) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_work_longer_than_a_bar_s_delay_and_shorter_than_a_line_s_says_nothing_in_a_pipe(pipe, monkeypatch):
    """Else each picture of a folder would, beside its path."""
    monkeypatch.setattr(module, "DELAY", 0.01)
    monkeypatch.setattr(module, "EVERY", 5.0)
    for terminal in (False, True):
        stream = pipe(terminal)
        for _ in progress(range(8), desc="restoring", unit="calls"):
            time.sleep(0.02)
        assert ("restoring" in stream.getvalue()) == terminal


@pytest.mark.parametrize("kind", ["none", "closed"])
def test_where_stderr_is_closed_nothing_is_said_and_nothing_fails(monkeypatch, kind):
    """As of pythonw and services."""
    monkeypatch.setattr(module, "DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", stream := None if kind == "none" else io.StringIO())
    if stream:
        stream.close()
    assert list(progress(range(5), desc="preparing", unit="images")) == [0, 1, 2, 3, 4]


def test_a_terminal_gets_a_bar_of_what_takes_a_while(pipe, monkeypatch):
    stream = pipe(terminal=True)
    list(progress(range(5), desc="preparing", unit="images"))
    assert stream.getvalue() == ""
    monkeypatch.setattr(module, "DELAY", 0.0)
    list(progress(range(5), desc="preparing", unit="images"))
    assert "\r" in stream.getvalue()
