"""A fitted surface of the error over model size, pretraining tokens and labels.

    error = E + A N^-a + B D^-b + C L^-c

with N parameters, D pretraining tokens and L labels: the form of Hoffmann et al. (2022, eq. 2) with
a term for the labels. It is fitted in the logarithm of the error, as there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from fm.errors import UserError

AXES = ("parameters", "tokens", "labels")
# An exponent of 3 leaves nothing of a term after one doubling or two.
MAX_EXPONENT = 3.0
NUM_BOOTSTRAP = 200
# Errors of 0 have no logarithm.
_MIN_ERROR = 1e-4


@dataclasses.dataclass(frozen=True)
class ScalingSurface:
    """A fitted surface; an axis that takes fewer than two values has no term.

    Attributes:
      floor: E, the error that no size, tokens or labels remove.
      scales: of each axis, its term at the geometric mean of the axis's values.
      exponents: of each axis.
      centers: geometric means of each axis's values.
      r2: share of the variance of the log error that the surface explains.
    """

    floor: float
    scales: tuple[float, ...]
    exponents: tuple[float, ...]
    centers: tuple[float, ...]
    r2: float

    def __call__(self, points_P3: np.ndarray) -> np.ndarray:
        """Returns the errors [P] at (parameters, tokens, labels) [P, 3]."""
        ratios_P3 = np.asarray(points_P3, float) / np.array(self.centers)
        terms_P3 = np.array(self.scales) * ratios_P3 ** -np.array(self.exponents)
        return self.floor + terms_P3.sum(axis=1)


def fit_surface(points_P3: np.ndarray, errors_P: np.ndarray) -> ScalingSurface:
    """Returns the surface with the smallest squared distance in log error, from several starts.

    Args:
      points_P3: parameters, tokens and labels of each point, above 0, [P, 3].
      errors_P: 0 to 1, [P].

    Raises:
      UserError: there are fewer points than numbers to fit.
    """
    points_P3, errors_P = np.asarray(points_P3, float), np.asarray(errors_P, float)
    varied = _varied(points_P3)
    _check_count(len(points_P3), varied)
    return _fit(points_P3, errors_P, _starts(varied))


def bootstrap_exponents(
    points_P3: np.ndarray,
    errors_PSN: Sequence[np.ndarray],
    *,
    num_draws: int = NUM_BOOTSTRAP,
    level: float = 0.95,
) -> np.ndarray:
    """Returns percentile intervals of the exponents, [3, 2], NaN for an axis without a term.

    Seeds and items are drawn anew with replacement, each the same for all points, since all points
    share them (the pigeonhole bootstrap of Owen 2007).

    Args:
      points_P3: see `fit_surface`.
      errors_PSN: error of every seed on every item, of each point [S, N].
      num_draws: number of fits.
      level: confidence level.

    Raises:
      UserError: see `fit_surface`.
    """
    points_P3 = np.asarray(points_P3, float)
    errors = np.stack([np.asarray(each, float) for each in errors_PSN])
    varied = _varied(points_P3)
    _check_count(len(points_P3), varied)
    whole = _fit(points_P3, errors.mean(axis=(1, 2)), _starts(varied))
    start = np.array([whole.floor, *np.log(np.maximum(whole.scales, 1e-6)), *whole.exponents])
    rng, found = np.random.default_rng(0), []
    num_seeds, num_items = errors.shape[1:]
    for _ in range(num_draws):
        seeds = np.bincount(rng.integers(0, num_seeds, num_seeds), minlength=num_seeds)
        items = np.bincount(rng.integers(0, num_items, num_items), minlength=num_items)
        drawn = np.einsum("psn,s,n->p", errors, seeds / num_seeds, items / num_items)
        found.append(_fit(points_P3, drawn, [start]).exponents)
    tail = (1 - level) / 2
    intervals = np.quantile(np.array(found), (tail, 1 - tail), axis=0).T
    intervals[~varied] = np.nan
    return intervals


def _varied(points_P3: np.ndarray) -> np.ndarray:
    return np.array([len(np.unique(axis)) > 1 for axis in points_P3.T])


def _check_count(count: int, varied: np.ndarray) -> None:
    needed = 2 + 2 * int(varied.sum())
    if count < needed:
        raise UserError(
            f"a surface over {int(varied.sum())} axes needs {needed} points or more, got {count}"
        )


def _starts(varied: np.ndarray) -> list[np.ndarray]:
    grid = itertools.product((0.0, 0.1), (0.1, 0.5, 1.5), repeat=1)
    return [
        np.array([floor, *np.where(varied, np.log(0.1), 0.0), *np.full(3, exponent)])
        for floor, exponent in grid
    ]


def _fit(
    points_P3: np.ndarray, errors_P: np.ndarray, starts: Sequence[np.ndarray]
) -> ScalingSurface:
    varied = _varied(points_P3)
    centers = np.exp(np.log(points_P3).mean(axis=0))
    log_ratios_P3 = np.log(points_P3 / centers)
    logs_P = np.log(np.maximum(errors_P, _MIN_ERROR))

    def residuals(values: np.ndarray) -> np.ndarray:
        floor, log_scales, exponents = values[0], values[1:4], values[4:]
        terms_P3 = np.exp(log_scales - exponents * log_ratios_P3) * varied
        return np.log(np.maximum(floor + terms_P3.sum(axis=1), _MIN_ERROR)) - logs_P

    low = np.array([0.0, *np.full(3, np.log(1e-6)), *np.zeros(3)])
    high = np.array([max(float(errors_P.min()), 1e-3), *np.zeros(3) + 1e-9])
    high = np.array([*high, *np.full(3, MAX_EXPONENT)])
    fits = [
        least_squares(residuals, np.clip(start, low, high), bounds=(low, high)) for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost)
    spread = float(((logs_P - logs_P.mean()) ** 2).sum())
    return ScalingSurface(
        floor=float(best.x[0]),
        scales=tuple(float(each) for each in np.exp(best.x[1:4]) * varied),
        exponents=tuple(float(each) for each in best.x[4:] * varied),
        centers=tuple(float(each) for each in centers),
        r2=1 - 2 * float(best.cost) / spread if spread else 1.0,
    )
