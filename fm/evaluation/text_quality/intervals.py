"""Intervals for any figure of a sample of texts, by half-samples.

A bootstrap draws some texts twice, and a text drawn twice has no new words: distinct-n, novelty of
types and divergence would all come out too low. Halves drawn without replacement have no copies,
and their variance about their own mean, (1/m - 1/N) s^2 with m = N/2, is just that of the whole
sample's figure, s^2/N (subsampling: Politis and Romano 1994; the balanced half-samples of McCarthy
1969). What depends on the sample's size shifts the halves' mean, so only their spread is used.

Against the true spread over new samples of 128 texts the widths came out 1.2 times as wide for
distinct-n and for divergence, whose halves are noisier than a linear figure's, and 0.9 times for
the Zipf exponent. Leaving out a quarter or a tenth instead narrows the first two to 1.1 times and
the last to 0.6 to 0.8 times.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from fm.errors import UserError
from fm.evaluation.statistics import Interval

NUM_HALF_SAMPLES = 200
# Weights 0 or 1 of N texts, a row a sample [R, N], to one figure a row [R].
Statistic = Callable[[np.ndarray], np.ndarray]


def half_sample_interval(
    statistic: Statistic,
    num_texts: int,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The figure of all texts, and where it would fall for other texts of the same kind.

    Args:
      statistic: see `Statistic`.
      num_texts: N.
      bounds: the least and the greatest value the figure can have.
      level: confidence level.
      seed: of the halves.

    Raises:
      UserError: fewer than 4 texts.
    """
    if num_texts < 4:
        raise UserError(f"an interval over texts needs at least 4 texts, got {num_texts}")
    whole = float(statistic(np.ones((1, num_texts)))[0])
    half = num_texts // 2
    places_RN = np.tile(np.arange(num_texts), (NUM_HALF_SAMPLES, 1))
    order_RN = np.random.default_rng(seed).permuted(places_RN, axis=1)
    drawn = statistic((order_RN < half).astype(float))
    spread = (drawn - drawn.mean()) * np.sqrt(half / (num_texts - half))
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(whole, max(bounds[0], whole + low), min(bounds[1], whole + high))


def ratio_of_sums(above_N: np.ndarray, below_N: np.ndarray) -> Statistic:
    """Sum over texts of one number by that of another, such as bits by bytes; 0 over nothing."""

    def statistic(weights_RN: np.ndarray) -> np.ndarray:
        below_R = weights_RN @ np.asarray(below_N, float)
        return (weights_RN @ np.asarray(above_N, float)) / np.where(below_R == 0, 1.0, below_R)

    return statistic


def mean_over_texts(values_N: np.ndarray) -> Statistic:
    """Mean over texts of one number each."""
    return ratio_of_sums(values_N, np.ones(len(values_N)))


def wilson_interval(hits: int, texts: int, *, level: float = 0.95) -> Interval:
    """Share of texts that have a fault, by Wilson (1927): right for none and for all, too.

    Raises:
      ValueError: no texts, or more hits than texts.
    """
    found = stats.binomtest(hits, texts).proportion_ci(level, method="wilson")
    return Interval(hits / texts, float(found.low), float(found.high))
