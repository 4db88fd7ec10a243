"""What a run says on stderr while it works, with a clock that the test moves."""

import io
import os
import sys

import pytest

from fm import progress_lines
from fm.progress_lines import INTERVAL, duration, phase, say, tick


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress_lines, "_clock", found)
    monkeypatch.setattr(progress_lines, "_last_line", [found.now])
    monkeypatch.setattr(progress_lines, "_TICK", 1e6)
    return found


@pytest.fixture
def lines(capsys):
    return lambda: capsys.readouterr().err.splitlines()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_counted_phase_has_a_line_now_and_then(clock, lines):
    with phase("digits: adapting", 15, "cells") as cells:
        assert lines() == ["digits: adapting: 15 cells …"]
        cells.update(3)
        clock.now += INTERVAL - 1
        tick()
        assert lines() == []  # not more often
        clock.now += 1
        cells.note("scratch, 20 labels")
        tick()
        assert lines() == [
            "digits: adapting: 3 of 15 cells, 5 s each, about 60 s left, scratch, 20 labels"
        ]
        tick()
        assert lines() == []
    assert lines() == ["digits: adapting: took 15 s"]


def test_a_phase_that_hangs_still_has_lines(clock, lines):
    with phase("digits: adapting", 2, "cells"):
        clock.now += INTERVAL
        tick()
    assert "digits: adapting: 0 of 2 cells" in lines()


def test_an_uncounted_phase_says_how_long_it_takes(clock, lines):
    with phase("tokenizing 9 texts"):
        clock.now += INTERVAL
        tick()
    assert lines() == [
        "tokenizing 9 texts …", "tokenizing 9 texts: 15 s", "tokenizing 9 texts: took 15 s",
    ]  # fmt: skip


def test_a_short_phase_is_one_line(clock, lines):
    with phase("tokenizing 9 texts"):
        clock.now += 1
    assert lines() == ["tokenizing 9 texts …"]


def test_any_line_puts_off_the_next(clock, lines):
    with phase("tokenizing", quiet=True):
        clock.now += INTERVAL - 1
        say("something else")
        clock.now += 2
        tick()
    assert lines() == ["something else"]


def test_of_two_phases_the_inner_one_is_shown(clock, lines):
    with phase("outer", quiet=True):
        with phase("inner", quiet=True):
            clock.now += INTERVAL
            tick()
        clock.now += INTERVAL
        tick()
    assert lines() == ["inner: 15 s", "outer: 30 s"]


def test_time_left_counts_neither_what_was_done_before_nor_compilation(clock):
    with phase("digits", 100, "steps", done=50, quiet=True) as steps:
        assert steps.line() == "digits: 50 of 100 steps"
        with steps.clock_stopped():
            clock.now += 1000
        steps.update(20, skipped=True)
        clock.now += 5
        steps.update(10)
        line = "digits: 80 of 100 steps, 2 steps/s, about 10 s left"
        assert steps.line() == line
        with steps.clock_stopped():
            clock.now += 1000
            assert steps.line() == line


def test_a_terminal_has_bars_and_lines_above_them(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with phase("digits", 10, "steps") as steps:
        steps.update(5)
        say("a line of its own")
        steps.note("1.5 bits")
        tick()
    with phase("tokenizing 9 texts"):
        tick()
    text = terminal.getvalue()
    assert "a line of its own\n" in text
    assert "digits:  50%" in text and "5/10" in text and "1.5 bits" in text
    assert "tokenizing 9 texts … " in text and text.endswith("\n")


def test_a_terminal_without_width_has_lines(clock, monkeypatch):
    terminal = Terminal()
    terminal.fileno = lambda: 2
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    with phase("digits", 10, "steps"):
        clock.now += INTERVAL
        tick()
    lines = terminal.getvalue().splitlines()
    assert lines[:2] == ["digits: 10 steps …", "digits: 0 of 10 steps"]


def test_a_phase_without_a_bar_is_silent_on_a_terminal(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with phase("compare", quiet=True, has_bar=False):
        clock.now += INTERVAL
        tick()
    assert terminal.getvalue() == ""


def test_a_hidden_phase_says_nothing(clock, lines):
    with phase("digits", 10, "steps", shown=False) as steps:
        steps.update()
        clock.now += INTERVAL
        tick()
    assert lines() == []


def test_a_failed_phase_is_closed(clock, lines):
    with pytest.raises(ValueError), phase("digits", 10, "steps", quiet=True):
        raise ValueError
    clock.now += INTERVAL
    tick()
    assert lines() == []


def test_the_ticker_runs_by_itself(monkeypatch, lines):
    monkeypatch.setattr(progress_lines, "_TICK", 0.001)
    monkeypatch.setattr(progress_lines, "INTERVAL", 0.0)
    with phase("tokenizing", quiet=True):
        found = []
        while not found:
            found = lines()
    assert found[0] == "tokenizing: 0 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
