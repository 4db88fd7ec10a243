"""What training asks of its data: the next batch in time, and its place among them."""

from __future__ import annotations

from typing import Any, Protocol

from fm.errors import UserError
from fm.training.account import Batch
from fm.training.patience import waiting
from fm.training.run import RunConfig


class Batches(Protocol):
    """A pipeline; `fm.data.batches.Batches` is one."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The place after the batches taken so far, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        ...

    def part(self, index: int, count: int) -> Batches:
        """The same batches, of each the `index`-th of `count` equal blocks of rows."""
        ...


def next_batch(batches: Batches, n: int, run: RunConfig) -> Batch:
    """The next batch, after `n` of them.

    Raises:
      UserError: there is none, or none that comes within the run's patience.
    """
    stalled = f"the data stalls, no batch in {run.patience:g} s after {n} of them"
    try:
        with waiting(run.patience, stalled):
            return next(batches)
    except StopIteration:
        raise UserError(
            f"the data ends after {n} batches; steps={run.steps} needs more epochs"
        ) from None
