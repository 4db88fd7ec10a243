"""Fitted learning curves, and the number of labels at which one arm stops being ahead.

An arm's error (1 - score) is taken to fall as a power of the number of labels down to an asymptote
(Cortes et al. 1993; Hestness et al. 2017),

    error(n) = asymptote + scale n^-exponent.

Four budgets cannot tell three parameters of every arm apart. So all arms of a task share one
asymptote, what the labels and the data leave undecided whoever learns from them; it does not move
the place where two curves cross. With fewer than four budgets it is zero. Nothing is read off a
curve beyond the budgets that were measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import least_squares

from fm.evaluation.design import Design
from fm.evaluation.label_efficiency import sample_means
from fm.evaluation.statistics import INDEPENDENT

Status = Literal["crosses", "ahead to the end", "never ahead", "unclear"]
MAX_EXPONENT = 3.0
MIN_BUDGETS_FOR_ASYMPTOTE = 4
_MIN_ERROR = 1e-4
_MIN_STANDARD_ERROR = 1e-3
_NEWTON_STEPS = 12
_GRID_POINTS = 200


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """A fitted power law of the error: asymptote + scale * labels ** -exponent.

    Attributes:
      asymptote: shared by all arms of a task.
      scale: what lies above the asymptote at one label.
      exponent: 0 to `MAX_EXPONENT`.
      largest_residual: largest distance of a measured mean from the curve, in units of the score.
    """

    asymptote: float
    scale: float
    exponent: float
    largest_residual: float

    def error(self, labels: np.ndarray) -> np.ndarray:
        """Returns the fitted error at numbers of labels."""
        return self.asymptote + self.scale * np.asarray(labels, float) ** -self.exponent


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The number of labels up to which an arm is ahead of a rival.

    Attributes:
      labels: from there on the rival is no worse; None if no such number was measured.
      low: lower end of the interval; None when the arm may never be ahead.
      high: upper end; None when it lies beyond the largest budget.
      status: "ahead to the end" or "never ahead" where the whole interval says so; "crosses" where
        the curves cross and all of the interval's upper part lies in the measured range; else
        "unclear".
    """

    labels: float | None
    low: float | None
    high: float | None
    status: Status


class LearningCurves:
    """Learning curves of A arms at the same B budgets, on the same seeds and test items.

    Args:
      budgets_B: [B] rising numbers of labels, at least two.
      scores_ABSN: [A, B, S, N] scores, higher better.
      design: which seeds share a checkpoint and which items a group.
      draws: number of redrawn sets of means, from the multivariate t distribution as in
        `fm.evaluation.label_efficiency.label_multiplier`. All curves are fitted to each again, with
        the asymptote as it was found.
      seed: of the redrawing.

    Raises:
      ValueError: shapes do not match, or budgets are not positive and rising.
      UserError: fewer than two rows or two columns of independent units.
    """

    def __init__(
        self,
        budgets_B: Sequence[float] | np.ndarray,
        scores_ABSN: np.ndarray,
        *,
        design: Design = INDEPENDENT,
        draws: int = 2000,
        seed: int = 0,
    ):
        self._budgets_B = np.asarray(budgets_B, float)
        scores_ABSN = np.asarray(scores_ABSN, float)
        budgets = self._budgets_B
        if budgets.size < 2 or not (np.diff(budgets) > 0).all() or budgets[0] <= 0:
            raise ValueError(f"budgets must be two or more, positive and rising, got {budgets}")
        num_arms, num_budgets = scores_ABSN.shape[:2]
        if num_budgets != budgets.size:
            raise ValueError(f"{budgets.size} budgets, but scores at {num_budgets}")
        means = sample_means(
            scores_ABSN.reshape(-1, *scores_ABSN.shape[2:]), design=design, draws=draws, seed=seed
        )
        error_AB = (1.0 - means.mean_C).reshape(num_arms, num_budgets)
        error_DAB = (1.0 - means.drawn_DC).reshape(-1, num_arms, num_budgets)
        sigma_AB = np.sqrt(means.variance_C).reshape(num_arms, num_budgets)
        sigma_AB = np.maximum(sigma_AB, _MIN_STANDARD_ERROR)
        asymptote, log_scale_A, exponent_A = _fit(self._budgets_B, error_AB, sigma_AB)
        log_scale_DA, exponent_DA = _refit(
            self._budgets_B, error_DAB, sigma_AB, asymptote, log_scale_A, exponent_A
        )
        self._grid_G = np.geomspace(budgets[0], budgets[-1], _GRID_POINTS)
        self._fitted_AG = _excess(self._grid_G, log_scale_A, exponent_A)
        self._drawn_DAG = _excess(self._grid_G, log_scale_DA, exponent_DA)
        fitted_AB = asymptote + _excess(self._budgets_B, log_scale_A, exponent_A)
        self.curves = tuple(
            LearningCurve(asymptote, float(np.exp(log_scale)), float(exponent), float(residual))
            for log_scale, exponent, residual in zip(
                log_scale_A, exponent_A, np.abs(fitted_AB - error_AB).max(axis=1), strict=True
            )
        )

    def crossing(self, arm: int, rivals: Sequence[int], *, level: float = 0.95) -> Crossing:
        """Returns up to how many labels an arm is ahead of all of the given rivals.

        Where it falls behind and gets ahead again, the last number counts.

        Args:
          arm: index of the arm.
          rivals: indices of the rivals; with several, the arm has to be ahead of the best of them.
          level: confidence level.
        """
        own = list(rivals)
        labels = float(self._last_ahead(self._fitted_AG[own].min(axis=0) - self._fitted_AG[arm]))
        gap_DG = self._drawn_DAG[:, own].min(axis=1) - self._drawn_DAG[:, arm]
        labels_D = self._last_ahead(gap_DG)
        # Order statistics, never interpolated: draws beyond the range are 0 or infinite.
        low = float(np.quantile(labels_D, (1 - level) / 2, method="lower"))
        high = float(np.quantile(labels_D, (1 + level) / 2, method="higher"))
        inside = 0 < labels < np.inf
        status: Status = "unclear"
        if np.isinf(low):
            status = "ahead to the end"
        elif high == 0:
            status = "never ahead"
        elif inside and high < np.inf:
            status = "crosses"
        return Crossing(
            labels=labels if inside else None,
            low=low if 0 < low < np.inf else None,
            high=high if 0 < high < np.inf else None,
            status=status,
        )

    def _last_ahead(self, gap_DG: np.ndarray) -> np.ndarray:
        """Returns the last number of labels where a gap is above zero; 0 if none is.

        Infinity if it is so at the largest budget.
        """
        ahead_DG = gap_DG > 0
        size = gap_DG.shape[-1]
        last_D = size - 1 - ahead_DG[..., ::-1].argmax(axis=-1)
        next_D = np.minimum(last_D + 1, size - 1)
        here_D, there_D = (
            np.take_along_axis(gap_DG, place[..., None], -1)[..., 0] for place in (last_D, next_D)
        )
        fall_D = np.where(here_D > there_D, here_D - there_D, 1.0)
        share_D = np.clip(here_D / fall_D, 0.0, 1.0)
        ratio_D = self._grid_G[next_D] / self._grid_G[last_D]
        labels_D = np.where(last_D == size - 1, np.inf, self._grid_G[last_D] * ratio_D**share_D)
        return np.where(ahead_DG.any(axis=-1), labels_D, 0.0)


def _excess(labels_N: np.ndarray, log_scale_A: np.ndarray, exponent_A: np.ndarray) -> np.ndarray:
    """Returns what curves have above the asymptote, [..., A, N]."""
    return np.exp(log_scale_A[..., None] - exponent_A[..., None] * np.log(labels_N))


def _fit(
    budgets_B: np.ndarray, error_AB: np.ndarray, sigma_AB: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns asymptote, log scales [A] and exponents [A] of the weighted least squares fit."""
    arms = len(error_AB)
    highest = max(float(error_AB.min()) - _MIN_ERROR, 0.0)
    free = budgets_B.size >= MIN_BUDGETS_FOR_ASYMPTOTE and highest > _MIN_ERROR
    start_A = np.log(np.maximum(error_AB, _MIN_ERROR))
    log_B = np.log(budgets_B)
    slope_A = np.array([np.polyfit(log_B, each, 1)[0] for each in start_A])
    exponent_A = np.clip(-slope_A, 0.01, MAX_EXPONENT - 0.01)
    log_scale_A = (start_A + exponent_A[:, None] * log_B).mean(axis=1)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        asymptote = parameters[-1] if free else 0.0
        excess_AB = _excess(budgets_B, parameters[:arms], parameters[arms : 2 * arms])
        return ((asymptote + excess_AB - error_AB) / sigma_AB).ravel()

    lower = [*[-np.inf] * arms, *[0.0] * arms]
    upper = [*[np.inf] * arms, *[MAX_EXPONENT] * arms]
    start = [*log_scale_A, *exponent_A]
    if free:
        lower, upper, start = [*lower, 0.0], [*upper, highest], [*start, highest / 4]
    found = least_squares(residuals, start, bounds=(lower, upper), x_scale="jac").x
    return (float(found[-1]) if free else 0.0), found[:arms], found[arms : 2 * arms]


def _refit(
    budgets_B: np.ndarray,
    error_DAB: np.ndarray,
    sigma_AB: np.ndarray,
    asymptote: float,
    log_scale_A: np.ndarray,
    exponent_A: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log scales and exponents [D, A] fitted to redrawn errors, by Gauss-Newton steps.

    All draws at once, from the curves that were fitted to what was measured. Logarithms are of the
    labels over their geometric mean, where a curve's two parameters hardly depend on each other.
    """
    log_B = np.log(budgets_B)
    center = log_B.mean()
    height_DA = np.broadcast_to(log_scale_A - exponent_A * center, error_DAB.shape[:2]).copy()
    exponent_DA = np.broadcast_to(exponent_A, error_DAB.shape[:2]).copy()
    weight_AB = sigma_AB**-2.0
    x_B = log_B - center
    for _ in range(_NEWTON_STEPS):
        excess_DAB = np.exp(height_DA[..., None] - exponent_DA[..., None] * x_B)
        residual_DAB = error_DAB - asymptote - excess_DAB
        slope_DAB = excess_DAB**2 * weight_AB
        moment0, moment1, moment2 = ((slope_DAB * x_B**power).sum(axis=-1) for power in range(3))
        pull_DAB = excess_DAB * weight_AB * residual_DAB
        pull0, pull1 = pull_DAB.sum(axis=-1), -(pull_DAB * x_B).sum(axis=-1)
        # Normal equations of the derivatives (excess, -excess * x), slightly damped.
        damped0, damped2 = moment0 * (1 + 1e-6), moment2 * (1 + 1e-6)
        determinant = np.maximum(damped0 * damped2 - moment1**2, 1e-300)
        height_step = (damped2 * pull0 + moment1 * pull1) / determinant
        exponent_step = (damped0 * pull1 + moment1 * pull0) / determinant
        height_DA += np.clip(height_step, -1.0, 1.0)
        exponent_DA = np.clip(exponent_DA + np.clip(exponent_step, -0.5, 0.5), 0.0, MAX_EXPONENT)
    return height_DA + exponent_DA * center, exponent_DA
