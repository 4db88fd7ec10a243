"""Unix signals: SIGINT and SIGTERM between steps, and a time limit by SIGALRM."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from fm.errors import UserError

# More than the largest `struct sigaction` of a Unix system.
_SIGACTION_BYTES = 1024


class Interrupted(Exception):
    """Raised when a signal stops a run; the message names the saved step and how to resume."""


def save_handlers(numbers: Sequence[int]) -> Callable[[], None]:
    """Returns a function that puts the signals' present handlers back, also those set from C.

    Python does not see a handler that a library has set from C: `signal.getsignal` returns None for
    it, or what was set before, and `signal.signal` cannot set it again.
    """
    handlers = {number: signal.getsignal(number) for number in numbers}
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    actions = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in numbers}
    if libc is not None:
        for number, action in actions.items():
            libc.sigaction(number, None, action)

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            if libc is not None:
                libc.sigaction(number, actions[number], None)

    return restore


@contextlib.contextmanager
def catch_termination_signals() -> Iterator[Callable[[], str | None]]:
    """Holds back SIGINT and SIGTERM in the block; yields a function that names the received one.

    A second signal has its usual effect, so a hanging step can still be killed. Outside the main
    thread, which receives no signals in Python, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[str] = []
    numbers = signal.SIGINT, signal.SIGTERM
    restore = save_handlers(numbers)

    def record(number, _):
        received.append(signal.Signals(number).name)
        restore()

    for number in numbers:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Runs the block; raises UserError with `message` if it takes longer than `seconds`.

    A timer that is running already goes on: its handler is called at its time, inside the block or
    after it. There is no limit outside the main thread or on Windows, which has no SIGALRM.

    Raises:
      UserError: with `message`, when the time is over.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "setitimer"):
        yield
        return
    restore = save_handlers([signal.SIGALRM])
    remaining, interval = signal.getitimer(signal.ITIMER_REAL)
    began = time.monotonic()
    deadline = began + seconds
    outer_due = began + remaining if remaining else math.inf

    def start_timer():
        delay = min(deadline, outer_due) - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))

    def stop(*_):
        nonlocal outer_due
        if time.monotonic() >= deadline:
            raise UserError(message)
        outer_due = time.monotonic() + interval if interval else math.inf
        restore()
        signal.raise_signal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, stop)
        start_timer()

    signal.signal(signal.SIGALRM, stop)
    try:
        start_timer()
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        restore()
        if outer_due < math.inf:
            delay = max(outer_due - time.monotonic(), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, delay, interval)
