"""How many labels an arm saves against a rival."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fm.errors import UserError
from fm.evaluation.design import Design
from fm.evaluation.statistics import INDEPENDENT


@dataclasses.dataclass(frozen=True)
class LabelEfficiency:
    """Labels that a rival needs to match an arm's score, over the arm's labels.

    Attributes:
      label_multiplier: labels the rival needs, divided by the labels the arm had. When `censored`
        is not None it is no estimate but a bound: ``above`` a lower one (largest budget / labels),
        ``below`` an upper one (smallest budget / labels).
      low: lower end of the interval; None when it lies under the measured range.
      high: upper end; None when it lies over the measured range.
      censored: ``above`` when the arm is better than the rival at the largest budget, ``below``
        when it is worse than the rival at the smallest, else None.
    """

    label_multiplier: float
    low: float | None
    high: float | None
    censored: Literal["above", "below"] | None


def label_multiplier(
    budgets_B: Sequence[float] | np.ndarray,
    rival_BSN: np.ndarray,
    arm_SN: np.ndarray,
    num_labels: float,
    *,
    design: Design = INDEPENDENT,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> LabelEfficiency:
    """Estimates how many times `num_labels` a rival needs to reach the arm's mean score.

    The rival's curve (mean score at each budget) is made non-decreasing by isotonic regression
    and interpolated linearly in log(labels); the answer is the smallest budget at which it
    reaches the arm's mean score. Nothing is extrapolated: see `LabelEfficiency.censored`.

    The interval comes from redrawing seeds and items together, all budgets and both arms at
    once, since they share them: the B + 1 means are drawn from the multivariate t distribution
    that has the covariance of the crossed random-effects model and S - 1 degrees of freedom (or
    those of the columns, if fewer), and the multiplier is read off every draw. The plain bootstrap
    over both seeds and items is not used: with few seeds it sees (S - 1) / S of the run variance
    and none of its uncertainty, and it counts the error of a single cell three times (Owen 2007,
    "The pigeonhole bootstrap"). `tests/evaluation/test_coverage.py` measures the coverage at 8
    seeds. The interval is conditional on linear interpolation between the measured budgets being
    right.

    Args:
      budgets_B: [B] rising label budgets of the rival's curve, at least two.
      rival_BSN: [B, S, N] scores, higher better, of the rival at each budget.
      arm_SN: [S, N] scores of the arm at `num_labels`, on the same seeds and test items.
      num_labels: the arm's budget; need not be one of `budgets_B`.
      design: which seeds share a checkpoint and which items a group.
      level: confidence level.
      draws: number of redrawn curves.
      seed: of the redrawing.

    Raises:
      ValueError: shapes do not match, budgets are not positive and rising, or num_labels <= 0.
      UserError: fewer than two rows or two columns of independent units.
    """
    budgets_B = np.asarray(budgets_B, float)
    rival_BSN, arm_SN = np.asarray(rival_BSN, float), np.asarray(arm_SN, float)
    if (
        budgets_B.size < 2
        or not (np.diff(budgets_B) > 0).all()
        or min(budgets_B[0], num_labels) <= 0
    ):
        raise ValueError(f"budgets must be two or more, positive and rising, got {budgets_B}")
    if rival_BSN.shape != (budgets_B.size, *arm_SN.shape):
        raise ValueError(
            f"rival {rival_BSN.shape} does not match {budgets_B.size} budgets and an arm "
            f"of {arm_SN.shape}"
        )
    means = sample_means(
        np.concatenate([rival_BSN, arm_SN[None]]), design=design, draws=draws, seed=seed
    )
    needed = float(_labels_to_reach(budgets_B, means.mean_C))
    needed_D = _labels_to_reach(budgets_B, means.drawn_DC)
    # Order statistics, never interpolated: draws beyond the range are 0 or infinite.
    low = float(np.quantile(needed_D, (1 - level) / 2, method="lower"))
    high = float(np.quantile(needed_D, (1 + level) / 2, method="higher"))

    first, last = float(budgets_B[0]), float(budgets_B[-1])
    if math.isinf(needed):
        return LabelEfficiency(
            last / num_labels, min(low, last) / num_labels if low else None, None, "above"
        )
    if needed == 0:
        top = None if math.isinf(high) else max(high, first) / num_labels
        return LabelEfficiency(first / num_labels, None, top, "below")
    return LabelEfficiency(
        needed / num_labels,
        low / num_labels if low else None,
        None if math.isinf(high) else high / num_labels,
        None,
    )


@dataclasses.dataclass(frozen=True)
class SampledMeans:
    """Means of C tables of scores and redrawn ones.

    Attributes:
      mean_C: the means.
      variance_C: their variances over new rows and columns.
      drawn_DC: D draws of all means together, as other seeds and items might have given them.
    """

    mean_C: np.ndarray
    variance_C: np.ndarray
    drawn_DC: np.ndarray


def sample_means(
    scores_CSN: np.ndarray, *, design: Design = INDEPENDENT, draws: int = 2000, seed: int = 0
) -> SampledMeans:
    """Returns the means of C tables on the same seeds and items, and draws of all of them at once.

    The draws are of the multivariate t distribution with the covariance of the crossed model.

    Raises:
      UserError: fewer than two rows or two columns of independent units.
    """
    scores_CRM = design.reduce(scores_CSN)
    _, rows, columns = scores_CRM.shape
    if min(rows, columns) < 2:
        raise UserError(
            f"redrawn means need at least 2 seeds and 2 test items, got {rows} and {columns}"
        )
    mean_C = scores_CRM.mean(axis=(1, 2))
    random = np.random.default_rng(seed)
    df = min(rows, columns) - 1
    root_CC = _sampling_root(scores_CRM)
    normal_DC = random.standard_normal((draws, mean_C.size)) @ root_CC
    drawn_DC = mean_C + normal_DC * np.sqrt(df / random.chisquare(df, (draws, 1)))
    return SampledMeans(mean_C, (root_CC**2).sum(axis=0), drawn_DC)


def _labels_to_reach(budgets_B: np.ndarray, mean_DC: np.ndarray) -> np.ndarray:
    """Labels at which the rival's means mean_DC[..., :-1] reach mean_DC[..., -1].

    0 when the smallest budget is already better, infinity when none reaches it.
    """
    # Equal scores must compare equal although pooled means round differently.
    target_D = mean_DC[..., -1].round(12)
    curve_DB = _isotonic(mean_DC[..., :-1]).round(12)
    right_D = np.minimum((curve_DB < target_D[..., None]).sum(axis=-1), budgets_B.size - 1)
    left_D = np.maximum(right_D - 1, 0)
    high_D, low_D = (
        np.take_along_axis(curve_DB, place[..., None], -1)[..., 0] for place in (right_D, left_D)
    )
    rise_D = np.where(high_D > low_D, high_D - low_D, 1.0)
    share_D = np.where(right_D > left_D, ((target_D - low_D) / rise_D).clip(0.0, 1.0), 1.0)
    between_D = budgets_B[left_D] * (budgets_B[right_D] / budgets_B[left_D]) ** share_D
    # A budget that was measured is given as it is, not as the power of its ratios.
    needed_D = np.where(share_D == 1.0, budgets_B[right_D], between_D)
    needed_D = np.where(target_D < curve_DB[..., 0], 0.0, needed_D)
    return np.where(target_D > curve_DB[..., -1], np.inf, needed_D)


def _isotonic(values_DB: np.ndarray) -> np.ndarray:
    """Returns the non-decreasing curves closest to the given ones, [D, B].

    The max-min formula (Barlow et al. 1972, section 1.2): the largest over i <= b of the least mean
    of values i to j over j >= b; for all draws at once, unlike `scipy.optimize`'s.
    """
    size = values_DB.shape[-1]
    sums = np.concatenate([np.zeros((*values_DB.shape[:-1], 1)), values_DB.cumsum(axis=-1)], -1)
    fitted = []
    for place in range(size):
        least = [
            np.min([(sums[..., j + 1] - sums[..., i]) / (j + 1 - i) for j in range(place, size)], 0)
            for i in range(place + 1)
        ]
        fitted.append(np.max(least, axis=0))
    return np.stack(fitted, axis=-1)


def _sampling_root(scores_CSN: np.ndarray) -> np.ndarray:
    """A root R_CC, with R^T R the covariance of the C means over new seeds and new items.

    The multivariate form of the variance in `statistics.paired_difference`: MS_run / (S N) plus
    the positive part of (MS_item - MS_error) / (S N), the mean squares now C by C matrices.
    """
    _, seeds, items = scores_CSN.shape
    mean_C11 = scores_CSN.mean(axis=(1, 2), keepdims=True)
    run_CS1 = scores_CSN.mean(axis=2, keepdims=True) - mean_C11
    item_C1N = scores_CSN.mean(axis=1, keepdims=True) - mean_C11
    error_CSN = scores_CSN - mean_C11 - run_CS1 - item_C1N

    def mean_square(effect: np.ndarray, repeats: int, df: int) -> np.ndarray:
        return repeats * np.einsum("csn,dsn->cd", effect, effect) / df

    ms_run = mean_square(run_CS1, items, seeds - 1)
    ms_item = mean_square(item_C1N, seeds, items - 1)
    ms_error = mean_square(error_CSN, 1, (seeds - 1) * (items - 1))
    value_C, vector_CC = np.linalg.eigh(ms_item - ms_error)
    excess = (vector_CC * np.maximum(value_C, 0)) @ vector_CC.T
    value_C, vector_CC = np.linalg.eigh((ms_run + excess) / (seeds * items))
    return np.sqrt(np.maximum(value_C, 0))[:, None] * vector_CC.T
