"""What each head does, in a few numbers, beside what even attention would give."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Habits:
    """Of one head, means over the queries that see more than one key; None if there are none.

    Attributes:
        distance: how far off it looks, in the unit of the distances given; keys without a
            distance are left out and the others weigh accordingly.
        entropy: in bits; 2 to its power is the number of pieces looked at, as it were.
        itself: weight on the query's own piece.
        before: weight on the piece before it; the first query has none.
        first: weight on the first piece.
    """

    distance: float | None
    entropy: float | None
    itself: float | None
    before: float | None
    first: float | None


def habits(weights_LS: np.ndarray, seen_LS: np.ndarray, distance_LS: np.ndarray) -> Habits:
    """Sums one head up.

    Args:
        weights_LS: rows that sum to one.
        seen_LS: bool, which keys a query could see.
        distance_LS: between query and key, NaN where there is none.
    """
    choosing_L = seen_LS.sum(-1) > 1
    w = np.asarray(weights_LS, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_L = -np.sum(np.where(w > 0, w * np.log2(w), 0.0), axis=-1)
        near = np.where(np.isnan(distance_LS), 0.0, w)
        distance_L = np.sum(near * np.nan_to_num(distance_LS), axis=-1) / near.sum(-1)
    before_L = np.concatenate([[np.nan], np.diagonal(w, -1)])

    def mean(values_L: np.ndarray) -> float | None:
        kept = values_L[choosing_L & np.isfinite(values_L)]
        return float(kept.mean()) if len(kept) else None

    return Habits(
        distance=mean(distance_L),
        entropy=mean(np.maximum(entropy_L, 0.0)),
        itself=mean(np.diagonal(w)),
        before=mean(before_L),
        first=mean(w[:, 0]),
    )


def even(seen_LS: np.ndarray) -> np.ndarray:
    """The weights of a query that gives every key it sees the same, float64 [L, S]."""
    return seen_LS / np.maximum(seen_LS.sum(-1, keepdims=True), 1)


def steps(length: int) -> np.ndarray:
    """Distances in tokens, float64 [L, L]."""
    place = np.arange(length, dtype=np.float64)
    return np.abs(place[:, None] - place)


def patches_apart(rows: int, columns: int, start: bool) -> np.ndarray:
    """Distances between patches of a grid, row by row, in patches, float64 [L, L].

    Args:
        rows: of the grid.
        columns: of the grid.
        start: a start piece leads them; it lies nowhere, so its distances are NaN.
    """
    place = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1).astype(np.float64)
    apart = np.linalg.norm(place[:, None] - place, axis=-1)
    return np.pad(apart, ((1, 0), (1, 0)), constant_values=np.nan) if start else apart
