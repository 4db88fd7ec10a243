"""What a paired design can see: the smallest difference, and how much more would decide a row."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from fm.evaluation.statistics import Difference, satterthwaite_df

POWER = 0.8
# Beyond these nobody collects them: such a row counts as one that more would not decide.
MAX_ROWS = 1000
MAX_COLUMN_FACTOR = 100


def detectable_difference(
    standard_error: float, df: float, *, level: float = 0.05, power: float = POWER
) -> float:
    """Returns the smallest true difference that a two-sided test at `level` sees with `power`.

    (t_{1 - level/2} + t_{power}) standard errors (Bloom 1995, "Minimum detectable effects").
    """
    return float((stats.t.isf(level / 2, df) + stats.t.ppf(power, df)) * standard_error)


def seeds_to_decide(found: Difference, *, level: float = 0.05) -> int | None:
    """Returns how many more seeds would show the difference found, if it is the true one.

    That is, with a power of 80% in a two-sided test at `level`, the test items as they are. With
    several checkpoints, seeds of new checkpoints, as many on each as now.

    Returns:
      0 if the design is large enough already; None where more seeds would not do, since the test
      items limit what can be seen, or where it takes more than `MAX_ROWS` rows.
    """
    rows_R = np.arange(found.num_rows, MAX_ROWS + 1)
    needed = _first_seen(found, rows_R, np.full(rows_R.shape, found.num_columns), level)
    if needed is None:
        return None
    return (int(rows_R[needed]) - found.num_rows) * (found.seeds // found.num_rows)


def items_to_decide(found: Difference, *, level: float = 0.05) -> int | None:
    """Returns how many more test items would show the difference found, if it is the true one.

    As in `seeds_to_decide`, the seeds as they are. With groups, items of new groups of the same
    mean size.

    Returns:
      0 if the design is large enough already; None where more items would not do, since the seeds
      limit what can be seen, or where it takes more than `MAX_COLUMN_FACTOR` times as many.
    """
    # To a hundredth, then exactly.
    now = found.num_columns
    steps_M = np.unique(np.geomspace(now, MAX_COLUMN_FACTOR * now, 500).astype(int))
    needed = _first_seen(found, np.full(steps_M.shape, found.num_rows), steps_M, level)
    if needed is None:
        return None
    steps_M = np.arange(steps_M[max(needed - 1, 0)], steps_M[needed] + 1)
    needed = _first_seen(found, np.full(steps_M.shape, found.num_rows), steps_M, level)
    assert needed is not None
    more = int(steps_M[needed]) - now
    return math.ceil(more * found.items / found.num_columns)


def _first_seen(
    found: Difference, rows_T: np.ndarray, columns_T: np.ndarray, level: float
) -> int | None:
    """Returns the first of T designs in which the difference found would be seen."""
    rows, columns = found.num_rows, found.num_columns
    run, item = found.variance["run"], found.variance["item"]
    # What is left of the variance of the mean; never below zero but for rounding.
    rest = found.standard_error**2 - run / rows - item / columns
    error = max(rest, 0.0) * rows * columns
    total_T, df_T = satterthwaite_df(
        error + columns_T * run, error + rows_T * item, error, (rows_T, columns_T)
    )
    quantile_T = stats.t.isf(level / 2, df_T) + stats.t.ppf(POWER, df_T)
    seen_T = abs(found.difference) >= quantile_T * np.sqrt(total_T / (rows_T * columns_T))
    return int(seen_T.argmax()) if seen_T.any() and found.difference else None
