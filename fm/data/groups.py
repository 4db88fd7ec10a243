"""Batches of several formats side by side: a dict of groups, each with its share of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fm.data.batches import Batch, Batches
from fm.errors import UserError


class Grouped(Iterator[dict[str, Batch]]):
    """One batch of every group at a time; the place is that of all of them."""

    def __init__(self, groups: Mapping[str, Batches]):
        self._groups = dict(groups)

    def __next__(self) -> dict[str, Batch]:
        return {name: next(batches) for name, batches in self._groups.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns the place after the batches taken so far, JSON-able."""
        return {name: batches.get_state() for name, batches in self._groups.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place that `get_state` returned, of the same groups."""
        for name, batches in self._groups.items():
            batches.set_state(state[name])

    def part(self, index: int, count: int) -> Grouped:
        """The same batches, of each group the `index`-th of `count` equal blocks of rows."""
        return Grouped({name: each.part(index, count) for name, each in self._groups.items()})


def rows_of(weights: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Rows of a batch for each group, by weight, one at least; rounded so that they add up.

    Raises:
      UserError: a weight that is not above 0, or fewer rows than groups.
    """
    if not weights or min(weights.values()) <= 0:
        raise UserError(f"mixture weights {dict(weights)} must be above 0, one or more")
    if batch_size < len(weights):
        raise UserError(f"batch_size={batch_size} is less than a row for each of {len(weights)}")
    exact = {name: batch_size * each / sum(weights.values()) for name, each in weights.items()}
    rows = {name: max(1, int(each)) for name, each in exact.items()}
    # What rounding left over or took too much, where it is felt least.
    while (left := batch_size - sum(rows.values())) != 0:
        step = 1 if left > 0 else -1
        open_ = [name for name in rows if rows[name] + step >= 1]
        name = max(open_, key=lambda name: step * (exact[name] - rows[name]))
        rows[name] += step
    return rows
