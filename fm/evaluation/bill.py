"""What K tasks cost in all, by entries that each task pays for itself or all share.

The K tasks are any of those there are: a figure is the mean over all ways to draw them, for their
order means nothing. More than there are stand for further tasks like these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

# Break-even is looked for up to so many tasks.
MOST = 1000


@dataclasses.dataclass(frozen=True)
class Item:
    """One entry of a bill.

    Attributes:
      costs: by unit; None where it was not recorded.
      share: how much of it K tasks pay; more than 1 where they need it again.
    """

    costs: Mapping[str, float | None]
    share: Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """Where one bill is lower than another.

    Attributes:
      first: the K from which on it is, up to `MOST`; None if it is not in the end.
      last: in that case the largest K at which it is; None if there is none.
    """

    first: int | None
    last: int | None = None


def own(tasks: int) -> Callable[[int], float]:
    """The share of what one of so many tasks pays for itself: it is K / tasks times drawn."""
    return lambda count: count / tasks


def shared(users: int, tasks: int) -> Callable[[int], float]:
    """The share of what is paid once: the chance that one of its users is among the K drawn."""
    others = tasks - users

    def share(count: int) -> float:
        return 1.0 - (math.comb(others, count) / math.comb(tasks, count) if count <= others else 0)

    return share


def tuned(steps: int, epochs: float, batch_size: int, labels: int, tasks: int):
    """The share of tuning one network: updates for K tasks over those for all of them.

    Args:
      steps: taken at least.
      epochs: over the labels, at least.
      batch_size: of an update.
      labels: of each task.
      tasks: whose tuning costs a whole.
    """

    def updates(count: int) -> int:
        return max(steps, math.ceil(epochs * labels * count / batch_size))

    return lambda count: updates(count) / updates(tasks)


def total(items: Sequence[Item], unit: str, count: int) -> float | None:
    """The bill of `count` tasks in a unit; None where a part of it is not known."""
    parts = [(item.costs[unit], item.share(count)) for item in items if unit in item.costs]
    if any(cost is None for cost, _ in parts):
        return None
    return math.fsum(cost * share for cost, share in parts if cost is not None)


def break_even(items: Sequence[Item], others: Sequence[Item], unit: str) -> BreakEven:
    """From how many tasks on the first bill is lower than the other's."""
    costs = [(total(items, unit, k), total(others, unit, k)) for k in range(1, MOST + 1)]
    lower = [a is not None and b is not None and a < b for a, b in costs]
    if not lower[-1]:
        return BreakEven(None, max((k for k, yes in enumerate(lower, 1) if yes), default=None))
    return BreakEven(1 + max((k for k, yes in enumerate(lower, 1) if not yes), default=0))
