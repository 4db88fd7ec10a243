"""Lines and bars on stderr that say what a run is doing.

On a terminal a phase is a tqdm bar. Elsewhere (a file, a pipe, the log of a job) it is a line when
it begins, one every `INTERVAL` seconds, whatever the phase waits for, and one when a long phase
ends, so that a log never stands still for longer.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

# Seconds between two lines where there is no terminal.
INTERVAL = 15.0
# A phase shorter than this has no line at its end.
_SHORT = 5.0
_TICK = 1.0
# Replaced in tests.
_clock = time.monotonic

_lock = threading.RLock()
_open: list[Phase] = []
_last_line = [float("-inf")]
_ticker: list[threading.Event] = []


def say(line: str) -> None:
    """Prints a line to stderr, above the bar if there is one."""
    with _lock:
        _last_line[0] = _clock()
        if any(phase.bar is not None for phase in _open):
            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Returns a time in words, such as "6 s", "3 min" or "1 h 20 min"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class Phase:
    """A part of a run that is under way: its title, how far it is, and how long it has taken.

    Attributes:
      title: what is done.
      total: number of units there are; None if they are not counted.
      done: number of units done.
      bar: the bar on a terminal, else None.
    """

    def __init__(
        self, title: str, total: int | None, unit: str, done: int, *, quiet: bool, has_bar: bool
    ):
        self.title, self.total, self.done = title, total, done
        self.bar: tqdm | None = None
        self._unit, self._note, self._quiet, self._has_bar = unit, "", quiet, has_bar
        self._began = self._clock_start = _clock()
        self._counted_from = done
        self._stopped_at: float | None = None

    def update(self, units: int = 1, *, skipped: bool = False) -> None:
        """Counts units as done.

        Args:
          units: their number.
          skipped: whether they were done before, such as by an earlier run, and so say nothing
            about the time that the others take.
        """
        with _lock:
            self.done += units
            self._counted_from += units * skipped
            if self.bar is not None:
                if skipped:
                    self.bar.initial += units
                self.bar.update(units)

    def note(self, text: str) -> None:
        """Sets what is shown beside the count, such as the item at hand or the loss."""
        with _lock:
            self._note = text
            if self.bar is not None:
                self.bar.set_postfix_str(text, refresh=False)

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leaves what the block takes, such as compilation, out of the rate and the time left."""
        self._stopped_at = began = _clock()
        try:
            yield
        finally:
            with _lock:
                self._stopped_at = None
                self._clock_start += _clock() - began
                if self.bar is not None:
                    self.bar.start_t += _clock() - began

    def line(self) -> str:
        """Returns the phase as one line: count, time, rate and time left as far as known."""
        parts = [self.title]
        if self.total is not None:
            parts.append(f"{self.done:,} of {self.total:,} {self._unit}")
            now = _clock() if self._stopped_at is None else self._stopped_at
            counted, seconds = self.done - self._counted_from, now - self._clock_start
            if counted > 0 and seconds > 0:
                parts[1:] = [
                    *parts[1:],
                    _rate(counted / seconds, self._unit),
                    f"about {duration((self.total - self.done) * seconds / counted)} left",
                ]
        else:
            parts.append(duration(_clock() - self._began))
        return ": ".join([parts[0], ", ".join(filter(None, [*parts[1:], self._note]))])

    def _begin(self) -> None:
        if self._has_bar and _on_terminal():
            counted = self.total is not None
            self.bar = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.title,
                unit=self._unit.removesuffix("s"),
                mininterval=0.5,
                smoothing=0,  # as in `line`
                leave=not (counted or self._quiet),
                bar_format=None if counted else "{desc} … {elapsed}",
                file=sys.stderr,
            )
        elif not self._quiet:
            of = "" if self.total is None else f": {self.total - self.done:,} {self._unit}"
            say(f"{self.title}{of} …")

    def _end(self) -> None:
        seconds = _clock() - self._began
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        elif not self._quiet and seconds >= _SHORT:
            say(f"{self.title}: took {duration(seconds)}")


@contextlib.contextmanager
def phase(
    title: str,
    total: int | None = None,
    unit: str = "",
    *,
    done: int = 0,
    quiet: bool = False,
    has_bar: bool = True,
    shown: bool = True,
) -> Iterator[Phase]:
    """Shows the block as a `Phase`; of phases within another the innermost is shown.

    Args:
      title: what is done, such as "films: tokenizing 26,000 texts".
      total: number of units, if they are counted.
      unit: what is counted, in the plural.
      done: units done before.
      quiet: without a terminal, whether the lines at the beginning and the end are left out.
      has_bar: False shows nothing on a terminal, where a phase around others needs no bar.
      shown: False shows nothing, as in a process that is not the first of several.
    """
    own = Phase(title, total, unit, done, quiet=quiet, has_bar=has_bar)
    if not shown:
        yield own
        return
    with _lock:
        own._begin()
        _open.append(own)
        if len(_open) == 1:
            _start_ticker()
    try:
        yield own
    finally:
        with _lock:
            _open.remove(own)
            if not _open:
                _ticker.pop().set()
            own._end()


def tick() -> None:
    """Refreshes the innermost bar, or prints its line if `INTERVAL` has passed since the last."""
    with _lock:
        if not _open:
            return
        own = _open[-1]
        if own.bar is not None:
            own.bar.refresh()
        elif _clock() - _last_line[0] >= INTERVAL and not _on_terminal():
            say(own.line())


def _on_terminal() -> bool:
    """Returns whether stderr is a terminal that a bar can be drawn on; some have no width."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return True


def _start_ticker() -> None:
    ended = threading.Event()
    _ticker.append(ended)

    def keep_ticking() -> None:
        while not ended.wait(_TICK):
            tick()

    threading.Thread(target=keep_ticking, name="progress lines", daemon=True).start()


def _rate(per_second: float, unit: str) -> str:
    """Returns units per second, or seconds per unit if that is the larger number."""
    if per_second >= 1:
        return f"{per_second:,.3g} {unit}/s"
    return f"{1 / per_second:.3g} s each"
