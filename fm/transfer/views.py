"""Rows cut into thinned views: all of one width, so one small program reads every row."""

from __future__ import annotations

import numpy as np

from fm.transfer.examples import Rows


def cut(rows: Rows, most: int) -> tuple[Rows, np.ndarray]:
    """Views of at most `most` pieces of each row, which do not see each other.

    A row of w pieces makes n = ceil(w / most) views, at least one; piece l goes to view l % n, so
    that every view spans the row and only its last places can be padding.

    Args:
      rows: N rows, see `fm.transfer.examples`.
      most: pieces in a view; 0 leaves rows whole.

    Returns:
      M >= N views as rows of `most` pieces (or as many as rows have), and the row each is of,
      int [M], ascending.
    """
    N, L = rows["segments"].shape
    if not most or most >= L:
        return rows, np.arange(N)
    reached_N = L - np.argmax(rows["segments"][:, ::-1] > 0, axis=1)
    views_N = -(-reached_N // most)
    of_M = np.repeat(np.arange(N), views_N)
    number_M = np.arange(len(of_M)) - (np.cumsum(views_N) - views_N)[of_M]
    places_Ml = np.arange(most) * views_N[of_M][:, None] + number_M[:, None]
    within_Ml = places_Ml < L
    taken = {
        key: value[of_M[:, None], np.where(within_Ml, places_Ml, 0)] for key, value in rows.items()
    }
    taken["segments"] = np.where(within_Ml, taken["segments"], 0)
    return taken, of_M


def mean(sums: np.ndarray, views: Rows, of_M: np.ndarray) -> np.ndarray:
    """Means over the filled pieces of each row.

    Args:
      sums: [M, ...] over the filled pieces of each view.
      views: the views, as `cut` made them.
      of_M: the row each is of.

    Returns:
      [N, ...]; zero for a row of nothing but padding.
    """
    first_N = np.searchsorted(of_M, np.arange(of_M[-1] + 1))
    filled_N = np.add.reduceat(np.sum(views["segments"] > 0, axis=1), first_N)
    counts_N = np.maximum(filled_N, 1).astype(np.float32)
    return np.add.reduceat(sums, first_N, axis=0) / counts_N.reshape(-1, *[1] * (sums.ndim - 1))
