"""Search of hyper-parameters: runs read at doublings, the worse half of them stopped each time.

This is successive halving (Jamieson and Talwalkar 2016) of runs that can be read and continued, so
that a search costs little more than its best run, with a rule for the length of that run: training
goes on until two doublings in turn have gained nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Trial = dict[str, Any]
# Trains a candidate until so many epochs are done; returns its validation score.
ReadFn = Callable[[int], float]


def successive_halving(
    candidates: Sequence[Callable[[], ReadFn]], epoch_grid: Sequence[int], min_epochs: int = 0
) -> list[dict[int, float]]:
    """Returns the readings of every candidate, {epochs: validation score}.

    All are read at the first numbers of epochs; from `min_epochs` on the better half, rounded up,
    goes on at each, of equal ones the first. A candidate stops as well when its last two readings
    are no better than an earlier one.

    Args:
      candidates: each starts a run. From `min_epochs` on, of runs that wait for their next reading
        only the better half is held.
      epoch_grid: numbers of epochs, each twice the one before.
      min_epochs: no run stops before, since early readings are chance.
    """
    readings: list[dict[int, float]] = [{} for _ in candidates]
    waiting: dict[int, ReadFn] = {}
    alive = list(range(len(candidates)))
    for epochs in epoch_grid:
        kept: list[int] = []
        most = math.ceil(len(alive) / 2) if epochs >= min_epochs else len(alive)
        for n in alive:
            read = waiting.pop(n, None) or candidates[n]()
            readings[n][epochs] = read(epochs)
            waiting[n] = read
            kept = sorted([*kept, n], key=lambda each: (-max(readings[each].values()), each))
            for dropped in kept[most:]:
                del waiting[dropped]
            kept = kept[:most]
        alive = sorted(
            n for n in kept if epochs < min_epochs or not has_plateaued(list(readings[n].values()))
        )
        waiting = {n: waiting[n] for n in alive}
    return readings


def has_plateaued(scores: Sequence[float]) -> bool:
    """Returns whether the last two scores, in order of training, are no better than one before."""
    return len(scores) > 2 and max(scores[-2:]) <= max(scores[:-2])


def standard_error_of_share(share: float, count: int) -> float:
    """Returns the standard error of a share of `count` examples."""
    return math.sqrt(share * (1 - share) / count)


def best_epochs(
    readings: Mapping[int, float],
    num_held_out: int,
    standard_error: Callable[[float, int], float] = standard_error_of_share,
) -> int:
    """Returns the most epochs whose score is within one standard error of the best.

    The error is `standard_error(best, num_held_out)`, by default that of a share. Few examples tell
    readings apart poorly, and an average of parameters rarely gets worse by training on (the rule
    of one standard error, Breiman et al. 1984, sec. 3.4.3, here in favor of the longer run).
    """
    best = max(readings.values())
    error = standard_error(best, num_held_out)
    return max(epochs for epochs, score in readings.items() if score >= best - error)


def last_gain(readings: Mapping[int, float]) -> float:
    """Returns the last score less the best before it; 0 of a single reading."""
    scores = [readings[epochs] for epochs in sorted(readings)]
    return scores[-1] - max(scores[:-1]) if len(scores) > 1 else 0.0
