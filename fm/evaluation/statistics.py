"""Intervals and p-values for per-item scores of several seeds on one test set.

The scores are a two-way table: S seeds (rows) by N test items (columns), every seed scored on
the same items. Each entry is modeled as crossed random effects,

    score_si = mean + run_s + item_i + error_si,

where ``run`` is what a new draw of labels and a new initialization change, and ``item`` is what
another test set would change. Seeds are few, items many, so the interval leans on Student's t.

A figure that is a ratio of sums over items (F1) enters by `linearized_ratio`: a score per item.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from scipy import stats

from fm.errors import UserError

EXACT_SEEDS = 16
MONTE_CARLO_DRAWS = 100_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, in the units of the scores."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference of an arm from its baseline, with interval, p-value and variances.

    Attributes:
      difference: mean of arm minus baseline over seeds and items; higher is better.
      low: lower end of the interval, for new seeds and new items alike.
      high: upper end.
      p: two-sided sign-flip p-value over the seeds' mean differences, given these items.
      seeds: S.
      items: N.
      variance: the estimated components of one difference, in squared units of the scores and
        never below zero. ``run``: variance over seeds of a seed's expected difference.
        ``item``: variance over items of an item's expected difference. The variance of
        `difference` is run / S + item / N plus what the error term adds.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int
    items: int
    variance: dict[str, float]


def paired_difference(
    arm_SN: np.ndarray, baseline_SN: np.ndarray, *, level: float = 0.95
) -> Difference:
    """Returns the mean difference of two arms paired by seeds (rows) and test items (columns).

    Identical differences in every cell give an interval of width zero, since nothing in the
    table varies; all zero differences also give p = 1.

    Args:
      arm_SN: [S, N] scores, higher better, for instance 0 or 1 for wrong or right.
      baseline_SN: [S, N] scores of the baseline on the same seeds and items.
      level: confidence level of the interval.

    Raises:
      ValueError: the two tables differ in shape or are not finite [S, N] arrays.
      UserError: fewer than two seeds or two items; no interval exists then.
    """
    arm_SN, baseline_SN = np.asarray(arm_SN, float), np.asarray(baseline_SN, float)
    if arm_SN.shape != baseline_SN.shape:
        raise ValueError(f"arm {arm_SN.shape} and baseline {baseline_SN.shape} are not paired")
    difference_SN = arm_SN - baseline_SN
    interval, variance = _crossed(difference_SN, level)
    return Difference(
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        p=sign_flip_p(difference_SN.mean(axis=1)),
        seeds=difference_SN.shape[0],
        items=difference_SN.shape[1],
        variance=variance,
    )


def mean_over_seeds_and_items(scores_SN: np.ndarray, *, level: float = 0.95) -> Interval:
    """Returns an arm's mean score with an interval that covers new seeds and new test items.

    Raises:
      ValueError: not a finite [S, N] array.
      UserError: fewer than two seeds or two items.
    """
    return _crossed(np.asarray(scores_SN, float), level)[0]


def linearized_ratio(numerator_SN: np.ndarray, denominator_SN: np.ndarray) -> np.ndarray:
    """Returns item scores [S, N] whose mean over items is, for each seed, a ratio of sums.

    With R_s = sum_i numerator_si / sum_i denominator_si, the score of an item is

        R_s + (numerator_si - R_s denominator_si) / mean_i(denominator_si),

    the ratio and the item's influence on it (Taylor linearization: Woodruff 1971; Särndal,
    Swensson and Wretman 1992, section 5.6). Its mean over items is R_s exactly, and its variance
    over items that of the ratio to first order, so the functions here take these scores as they
    take right and wrong answers. For F1, see `fm.evaluation.ner.EntityCounts.f1_terms`.

    Args:
      numerator_SN: [S, N] of S seeds and N items.
      denominator_SN: [S, N], not negative.

    Returns:
      [S, N] scores; zero in a row whose denominators are all zero.

    Raises:
      ValueError: the two differ in shape.
    """
    numerator_SN = np.asarray(numerator_SN, float)
    denominator_SN = np.asarray(denominator_SN, float)
    if numerator_SN.shape != denominator_SN.shape:
        raise ValueError(
            f"numerator {numerator_SN.shape} and denominator {denominator_SN.shape} are not paired"
        )
    mean_S1 = denominator_SN.mean(axis=1, keepdims=True)
    scale_S1 = np.where(mean_S1 > 0, mean_S1, 1.0)
    ratio_S1 = numerator_SN.mean(axis=1, keepdims=True) / scale_S1
    return ratio_S1 + (numerator_SN - ratio_S1 * denominator_SN) / scale_S1


def mean_interval(values_S: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the mean over seeds with its Student t interval, taking the test items as fixed.

    Raises:
      ValueError: not a finite vector.
      UserError: fewer than two values.
    """
    values_S = np.asarray(values_S, float)
    if values_S.ndim != 1 or not np.isfinite(values_S).all():
        raise ValueError("values must be a vector of finite numbers")
    if values_S.size < 2:
        raise UserError(f"an interval over seeds needs at least 2 seeds, got {values_S.size}")
    variance = values_S.var(ddof=1) / values_S.size
    return _t_interval(values_S.mean(), variance, values_S.size - 1, level)


def sign_flip_p(differences_S: np.ndarray, *, seed: int = 0) -> float:
    """Returns the two-sided sign-flip p-value of paired differences (null: symmetric about 0).

    The share of sign patterns whose mean is at least as far from zero as the one observed: all
    2^S of them up to 16 seeds, else a seeded sample with the observed pattern counted in
    (Phipson and Smyth 2010), so that p is never zero. With S seeds p cannot go under 2 / 2^S.

    `scipy.stats.permutation_test` is not used: its tolerance for ties is relative to the observed
    sum, so differences that cancel give other values (0.94 in place of 1), and it draws other
    patterns over 16 seeds.

    Raises:
      ValueError: not a finite vector of at least one difference.
    """
    differences_S = np.asarray(differences_S, float)
    if differences_S.ndim != 1 or not differences_S.size or not np.isfinite(differences_S).all():
        raise ValueError("differences must be a non-empty vector of finite numbers")
    seeds = differences_S.size
    # Patterns that tie with the observed one must count although their sums round differently.
    observed = abs(differences_S.sum()) - 1e-12 * np.abs(differences_S).sum()
    if seeds <= EXACT_SEEDS:
        signs_PS = np.array(list(itertools.product((-1.0, 1.0), repeat=seeds)))
        return float(np.mean(np.abs(signs_PS @ differences_S) >= observed))
    random = np.random.default_rng(seed)
    signs_PS = random.integers(0, 2, (MONTE_CARLO_DRAWS, seeds), dtype=np.int8) * 2.0 - 1.0
    extreme = np.count_nonzero(np.abs(signs_PS @ differences_S) >= observed)
    return float((extreme + 1) / (MONTE_CARLO_DRAWS + 1))


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Returns p-values after Holm's (1979) correction for multiple comparisons.

    Holm (1979): the k-th smallest of m is multiplied by m - k + 1, then made non-decreasing
    and cut at 1. The order of the input is kept.

    Raises:
      ValueError: a p-value outside [0, 1], or not a vector.
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a vector of numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def _crossed(scores_SN: np.ndarray, level: float) -> tuple[Interval, dict[str, float]]:
    """Interval for the grand mean of a crossed table, and its variance components.

    The mean squares of the two-way table without replication have expectations
    MS_run = error + N run, MS_item = error + S item, MS_error = error (Searle, Casella and
    McCulloch 1992, section 4.3), so

        Var(mean) = run / S + item / N + error / (S N)
                  = MS_run / (S N) + (MS_item - MS_error) / (S N),

    with Satterthwaite's (1946) degrees of freedom. The second term is cut at zero and the
    degrees of freedom at S - 1 from below: never narrower than the interval over seeds alone.
    """
    if scores_SN.ndim != 2 or not np.isfinite(scores_SN).all():
        raise ValueError("scores must be a finite table of seeds by items")
    seeds, items = scores_SN.shape
    if seeds < 2 or items < 2:
        raise UserError(
            f"an interval needs at least 2 seeds and 2 test items, got {seeds} and {items}"
        )
    mean = scores_SN.mean()
    run_S = scores_SN.mean(axis=1) - mean
    item_N = scores_SN.mean(axis=0) - mean
    error_SN = scores_SN - mean - run_S[:, None] - item_N
    df = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    ms_run, ms_item, ms_error = (
        np.array([items * (run_S**2).sum(), seeds * (item_N**2).sum(), (error_SN**2).sum()]) / df
    )
    total = ms_run + max(ms_item - ms_error, 0.0)
    if total > 0:
        satterthwaite = total**2 / (np.array([ms_run, ms_item, ms_error]) ** 2 / df).sum()
    else:
        satterthwaite = 0.0
    interval = _t_interval(mean, total / (seeds * items), max(satterthwaite, seeds - 1), level)
    return interval, {
        "run": float(max(ms_run - ms_error, 0.0) / items),
        "item": float(max(ms_item - ms_error, 0.0) / seeds),
    }


def _t_interval(mean: float, variance: float, df: float, level: float) -> Interval:
    """Interval for a mean whose own variance was estimated with `df` degrees of freedom."""
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance)
    return Interval(float(mean), float(mean - half), float(mean + half))
