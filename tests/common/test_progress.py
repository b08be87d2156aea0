"""The progress display: a bar where standard error is a terminal, lines in a log elsewhere."""

import io
import sys
import time

import pytest

from vpp_jax.common import progress
from vpp_jax.common.progress import ProgressBar, track, waiting


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_few_seconds_and_the_last_one(clock, capsys):
    with ProgressBar("episodes", interval_s=5.0) as bar:
        bar.update(10, 40, "10 episodes from an earlier run")
        for done in range(11, 41):
            clock.now += 2.0
            bar.update(done, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "10/40 episodes, 00:00 elapsed  10 episodes from an earlier run"
    assert lines[1] == "13/40 episodes, 00:06 elapsed, 00:54 left"  # what an earlier run has done says nothing of the rate
    assert lines[-1] == "40/40 episodes, 01:00 elapsed"
    assert len(lines) == 11


def test_a_known_start_counts_as_done_before(clock, capsys):
    bar = ProgressBar("steps", 110, 100)
    clock.now += 30.0
    bar.update(101, note="loss 0.5")
    bar.message("eval 101  loss 0.7")
    assert capsys.readouterr().err == "101/110 steps, 00:30 elapsed, 04:30 left  loss 0.5\neval 101  loss 0.7\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with ProgressBar("frames") as bar:
        for done in range(5):
            bar.update(done, 4, f"file {done}")
        bar.message("something else")
    shown = screen.getvalue()
    assert "100%" in shown
    assert "4/4" in shown
    assert "frames/s" in shown
    assert "file 4" in shown
    assert "something else\n" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_an_invisible_one_shows_nothing(monkeypatch, terminal):
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with ProgressBar("batches", 3, visible=False) as bar:
        bar.update(1)
        bar.update(3)
    assert screen.getvalue() == ""


def test_items_are_tracked(clock, capsys):
    assert list(track(range(3, 9, 2), "batches")) == [3, 5, 7]
    assert capsys.readouterr().err.splitlines()[-1] == "3/3 batches, 00:00 elapsed"
    assert list(track((), "batches")) == []
    assert capsys.readouterr().err == ""


def test_work_of_unknown_length_tells_how_long_it_took(capsys):
    with waiting("compiling", interval_s=0.01):
        time.sleep(0.05)
    with waiting("compiling", interval_s=60.0), waiting("hidden", interval_s=0.001, visible=False):
        time.sleep(0.01)
    lines = capsys.readouterr().err.splitlines()
    assert set(lines) == {"compiling: 00:00 so far"}
    assert 1 <= len(lines) <= 3  # after 0.01, 0.02 and 0.04 s
