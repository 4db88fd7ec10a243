"""Means over pairs of runs: pairs that share a run are not independent, so runs are the units."""

from __future__ import annotations

import numpy as np
from scipy import stats

from fm.errors import UserError
from fm.evaluation.statistics import Interval

# Two runs make one pair, which leaves nothing to leave out.
MIN_RUNS = 3


def mean_over_pairs(values_RR: np.ndarray, *, level: float = 0.95) -> Interval:
    """Returns the mean over all pairs of different runs, with an interval that covers new runs.

    The mean is a U-statistic of the runs. Its variance is that of the jackknife, which leaves out
    one run with all of its pairs at a time (Arvesen 1969), and t has R - 1 degrees of freedom.

    Args:
      values_RR: symmetric, of each pair of runs; the diagonal is not read.
      level: confidence level.

    Raises:
      ValueError: not a square matrix, or a pair has no finite value.
      UserError: there are fewer than `MIN_RUNS` runs.
    """
    values_RR = np.asarray(values_RR, float)
    count = len(values_RR)
    if values_RR.shape != (count, count):
        raise ValueError(f"values of pairs must be a square matrix, not {values_RR.shape}")
    if count < MIN_RUNS:
        raise UserError(f"an interval over pairs needs at least {MIN_RUNS} runs, got {count}")
    first, second = np.triu_indices(count, 1)
    values_P = values_RR[first, second]
    if not np.isfinite(values_P).all():
        raise ValueError("every pair of runs must have a finite value")
    mean = float(values_P.mean())
    without_R = np.array([values_P[(first != n) & (second != n)].mean() for n in range(count)])
    variance = (count - 1) / count * float(((without_R - without_R.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * variance**0.5
    return Interval(mean, mean - half, mean + half)
