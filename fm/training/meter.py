"""Means over the steps since the last record, and how fast they went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from fm.training.log import Record
from fm.training.unit import Unit, told


class Meter:
    """Turns the metrics of single steps into records.

    Attributes:
      sums: of every metric since the last record, with `steps`; saved with a checkpoint, so that
        a resumed run writes the records of an unbroken one.
    """

    def __init__(self, unit: Unit, peak: float | None, sums: dict[str, float] | None = None):
        """Starts with the `sums` of a checkpoint, or none; `peak` in FLOP/s, None if unknown."""
        self.sums = dict(sums or {})
        self._unit, self._peak = unit, peak
        self.restart()

    def restart(self) -> None:
        """Forgets the pace so far: compilation is not part of it."""
        self._tokens, self._flops, self._since, self._paused = 0, 0.0, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the pace."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def add(self, metrics: Mapping[str, float], tokens: int, flops: float) -> None:
        """Counts one step."""
        for name, figure in {**metrics, "steps": 1}.items():
            self.sums[name] = self.sums.get(name, 0) + figure
        self._tokens += tokens
        self._flops += flops

    def record(self, step: int, tokens: int, learning_rate: float) -> Record:
        """The record of the steps added since the last one."""
        steps = self.sums.pop("steps")
        means = {name: figure / steps for name, figure in self.sums.items()}
        means["learning_rate"] = learning_rate
        seconds = max(1e-9, time.perf_counter() - self._since - self._paused)
        pace = {
            "tokens_per_second": self._tokens / seconds,
            "share_of_peak": self._flops / seconds / self._peak if self._peak else None,
        }
        self.sums = {}
        self.restart()
        figures = told(means, self._unit) | shares(means)
        return {"kind": "train", "step": step, "tokens": tokens, **means, **figures, **pace}


def shares(means: Mapping[str, float]) -> dict[str, float]:
    """Share of the pieces each group has, as `GROUP/share`."""
    pieces = {name: figure for name, figure in means.items() if name.endswith("/pieces")}
    return {
        f"{name.removesuffix('pieces')}share": figure / sum(pieces.values())
        for name, figure in pieces.items()
    }
