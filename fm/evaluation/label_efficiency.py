"""How many labels, and how many steps, an arm saves against training from scratch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabelEfficiency:
    """Labels that training from scratch needs to match an arm's score, over the arm's labels.

    Attributes:
      label_multiplier: labels scratch needs, divided by the labels the arm had. When `censored`
        is ``above`` only a lower bound (largest budget / labels), when ``below`` only an upper
        bound (smallest budget / labels).
      low: lower end of the interval; None when it lies under the measured range.
      high: upper end; None when it lies over the measured range.
      censored: ``above`` when the arm is better than scratch at the largest budget, ``below`` when
        it is worse than scratch at the smallest, else None.
    """

    label_multiplier: float
    low: float | None
    high: float | None
    censored: Literal["above", "below"] | None


def label_multiplier(
    budgets_B: Sequence[float] | np.ndarray,
    scratch_BSN: np.ndarray,
    arm_SN: np.ndarray,
    num_labels: float,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> LabelEfficiency:
    """Estimates how many times `num_labels` scratch needs to reach the arm's mean score.

    The scratch curve (mean score at each budget) is made non-decreasing by isotonic regression
    and interpolated linearly in log(labels); the answer is the smallest budget at which it
    reaches the arm's mean score. Nothing is extrapolated: see `LabelEfficiency.censored`.

    The interval comes from redrawing seeds and items together, all budgets and both arms at
    once, since they share them: the B + 1 means are drawn from the multivariate t distribution
    that has the covariance of the crossed random-effects model and S - 1 degrees of freedom, and
    the multiplier is read off every draw. The plain bootstrap over both seeds and items is not
    used: with few seeds it sees (S - 1) / S of the run variance and none of its uncertainty, and
    it counts the error of a single cell three times (Owen 2007, "The pigeonhole bootstrap").
    `tests/evaluation/test_coverage.py` measures the coverage at 8 seeds. The interval is
    conditional on linear interpolation between the measured budgets being right.

    Args:
      budgets_B: [B] rising label budgets of the scratch curve, at least two.
      scratch_BSN: [B, S, N] scores, higher better, of scratch at each budget.
      arm_SN: [S, N] scores of the arm at `num_labels`, on the same seeds and test items.
      num_labels: the arm's budget; need not be one of `budgets_B`.
      level: confidence level.
      draws: number of redrawn curves.
      seed: of the redrawing.

    Raises:
      ValueError: shapes do not match, budgets are not positive and rising, or num_labels <= 0.
      UserError: fewer than two seeds or two items.
    """
    budgets_B = np.asarray(budgets_B, float)
    scratch_BSN, arm_SN = np.asarray(scratch_BSN, float), np.asarray(arm_SN, float)
    if (
        budgets_B.size < 2
        or not (np.diff(budgets_B) > 0).all()
        or min(budgets_B[0], num_labels) <= 0
    ):
        raise ValueError(f"budgets must be two or more, positive and rising, got {budgets_B}")
    if scratch_BSN.shape != (budgets_B.size, *arm_SN.shape):
        raise ValueError(
            f"scratch {scratch_BSN.shape} does not match {budgets_B.size} budgets and an arm "
            f"of {arm_SN.shape}"
        )
    if min(arm_SN.shape) < 2:
        raise UserError(
            f"a label multiplier needs at least 2 seeds and 2 test items, got {arm_SN.shape[0]} "
            f"and {arm_SN.shape[1]}"
        )
    scores_CSN = np.concatenate([scratch_BSN, arm_SN[None]])
    mean_C = scores_CSN.mean(axis=(1, 2))
    needed = _labels_to_reach(budgets_B, mean_C)

    random = np.random.default_rng(seed)
    df = arm_SN.shape[0] - 1
    root_CC = _sampling_root(scores_CSN)
    normal_DC = random.standard_normal((draws, mean_C.size)) @ root_CC
    drawn_DC = mean_C + normal_DC * np.sqrt(df / random.chisquare(df, (draws, 1)))
    needed_D = [_labels_to_reach(budgets_B, drawn_C) for drawn_C in drawn_DC]
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


def steps_to_quality(
    steps: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray, target: float
) -> int | None:
    """Returns the first step where the value and the mean of later ones reach a target, or None.

    A step counts when its own value is at least `target` and so is the mean of the values after
    it (the last step has none, its own value is enough): one lucky evaluation does not.

    Args:
      steps: [T] rising step numbers.
      values: [T] quality at each, higher better.
      target: quality to reach.

    Raises:
      ValueError: different lengths.
    """
    if len(steps) != len(values):
        raise ValueError(f"{len(steps)} steps but {len(values)} values")
    for index, (step, value) in enumerate(zip(steps, values, strict=True)):
        after = values[index + 1 :]
        if value >= target and (len(after) == 0 or float(np.mean(after)) >= target):
            return int(step)
    return None


def _labels_to_reach(budgets_B: np.ndarray, mean_C: np.ndarray) -> float:
    """Labels at which the scratch means mean_C[:-1] reach mean_C[-1].

    0 when the smallest budget is already better, infinity when none reaches it.
    """
    # Equal scores must compare equal although pooled means round differently.
    target = mean_C[-1].round(12)
    curve_B = isotonic_regression(mean_C[:-1]).x.round(12)
    if target < curve_B[0]:
        return 0.0
    if target > curve_B[-1]:
        return math.inf
    right = int(np.searchsorted(curve_B, target, side="left"))
    if right == 0:
        return float(budgets_B[0])
    share = (target - curve_B[right - 1]) / (curve_B[right] - curve_B[right - 1])
    return float(budgets_B[right - 1] * (budgets_B[right] / budgets_B[right - 1]) ** share)


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
