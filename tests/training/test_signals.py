"""Signals are held back for a block; the handlers and timers of others stay as they were."""

import ctypes
import os
import signal
import time

import pytest

from experiments import cli
from fm.errors import UserError
from fm.training.signals import catch_termination_signals, time_limit

LIBC = ctypes.CDLL(None)
Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@pytest.fixture(params=["reported as None", "not reported"])
def handler_from_c(request, monkeypatch):
    """The signals that a handler set from C has received; Python reports it as None or not at all.

    Python reports None for a handler that was there before Python itself.
    """
    received = []
    handler = Handler(received.append)
    old = signal.getsignal(signal.SIGTERM)
    LIBC.signal(signal.SIGTERM, handler)
    if request.param == "reported as None":
        known, honest = [None], signal.getsignal
        monkeypatch.setattr(signal, "getsignal", lambda n: known[0] if n == 15 else honest(n))
    yield received
    monkeypatch.undo()
    signal.signal(signal.SIGTERM, old)


def test_a_handler_set_from_c_is_held_back_and_comes_back(handler_from_c):
    for _ in range(2):
        with catch_termination_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
            assert received() == "SIGTERM" and not handler_from_c
            os.kill(os.getpid(), signal.SIGTERM)  # a second one has its usual effect
            assert handler_from_c == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler_from_c == [signal.SIGTERM] * 2
        handler_from_c.clear()


def test_the_command_line_puts_a_handler_set_from_c_back(handler_from_c):
    with pytest.raises(KeyboardInterrupt), cli._interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert not handler_from_c
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler_from_c == [signal.SIGTERM]


@pytest.fixture
def alarms():
    """The times at which the alarm of somebody else has come."""
    came = []
    old = signal.signal(signal.SIGALRM, lambda *_: came.append(time.monotonic()))
    yield came
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def wait(condition):
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("interval", [0.0, 0.04])
def test_an_outer_timer_comes_inside_the_block(alarms, interval):
    signal.setitimer(signal.ITIMER_REAL, 0.04, interval)
    with pytest.raises(UserError, match="too long"), time_limit(0.2, "too long"):
        wait(lambda: alarms)
        time.sleep(5)
    if interval:
        assert len(alarms) > 1
        seen = len(alarms)
        wait(lambda: len(alarms) > seen + 1)
    else:
        assert len(alarms) == 1 and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("too_long", [False, True])
@pytest.mark.parametrize("start", [lambda: signal.setitimer(signal.ITIMER_REAL, 1, 3), None])
def test_an_outer_timer_goes_on_after_the_block(alarms, too_long, start):
    interval = 3.0 if start else 0.0
    (start or (lambda: signal.alarm(1)))()
    try:
        with time_limit(0.02 if too_long else 10, "too long"):
            time.sleep(0.05)
    except UserError:
        assert too_long
    remaining, found = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < remaining < 0.99 and found == interval and not alarms
    wait(lambda: alarms)


def test_an_outer_limit_ends_an_inner_block():
    for outer, inner in ((0.05, 10), (10, 0.05)):
        first = pytest.raises(UserError, match="outer" if outer < inner else "inner")
        with first, time_limit(outer, "outer"), time_limit(inner, "inner"):
            time.sleep(5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
