"""Ctrl-C and SIGTERM as a question the loop asks between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from fm.errors import UserError


class Interrupted(Exception):
    """A run stopped by a signal; its one-line message says what was saved and how to go on."""


@contextlib.contextmanager
def catch_termination_signals() -> Iterator[Callable[[], str | None]]:
    """Holds SIGINT and SIGTERM back; yields a function that names the one that came, or None.

    A second signal acts as it always did, so a hung step can be left. Outside the main thread,
    where Python hands out no signals, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, _):
        came.append(signal.Signals(number).name)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        restore()


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Interrupts what takes longer than `seconds` inside, by the system's alarm.

    Data are read in the loop's own thread, so a stalled one is that thread, waiting. Outside the
    main thread, and on Windows, which has no alarm, it waits on.

    Raises:
      UserError: with the message, after that time.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise UserError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
