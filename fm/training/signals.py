"""Unix signals: SIGINT and SIGTERM between steps, and a time limit by SIGALRM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from fm.errors import UserError


class Interrupted(Exception):
    """Raised when a signal stops a run; the message names the saved step and how to resume."""


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
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def record(number, _):
        received.append(signal.Signals(number).name)
        restore()

    for number in previous:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Runs the block; raises UserError with `message` if it takes longer than `seconds`.

    There is no limit outside the main thread or on Windows, which has no SIGALRM.

    Raises:
      UserError: with `message`, when the time is over.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise UserError(message)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
