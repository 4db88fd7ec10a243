"""Intervals and p-values for per-item scores of several seeds on one test set.

The scores are a two-way table: S seeds (rows) by N test items (columns), every seed scored on
the same items. Each entry is modeled as crossed random effects,

    score_si = mean + run_s + item_i + error_si,

where ``run`` is what a new draw of labels and a new initialization change, and ``item`` is what
another test set would change. Seeds are few, items many, so the interval leans on Student's t.
Where seeds share a checkpoint or items a group, a `Design` first reduces both to what is
independent, and rows and columns are those.

A figure that is a ratio of sums over items (F1) enters by `linearized_ratio`: a score per item.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from fm.errors import UserError
from fm.evaluation.design import Design

# Differences under a percentage point count as none in tests of equivalence.
DEFAULT_MARGIN = 0.01
INDEPENDENT = Design()


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, in the units of the scores."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference of an arm from its baseline, with interval, p-values and variances.

    Rows are seeds, or checkpoints if there are several; columns are items, or groups of items.

    Attributes:
      difference: mean of arm minus baseline over seeds and items; higher is better.
      low: lower end of the interval, for new rows and new columns alike.
      high: upper end.
      p: two-sided p-value of the t test with the interval's standard error and degrees of freedom,
        so it is under 0.05 exactly where the 95% interval excludes zero.
      p_equivalence: of two one-sided tests (Schuirmann 1987) that the true difference lies within
        the margin, to both sides.
      margin: of equivalence, in the units of the scores.
      standard_error: of `difference`.
      df: Satterthwaite's degrees of freedom.
      seeds: S.
      checkpoints: C; with 1 all figures are for this checkpoint.
      items: N.
      groups: G; None if items are independent.
      variance: the estimated components of one difference, in squared units of the scores and
        never below zero. ``run``: variance over rows of a row's expected difference. ``item``:
        variance over columns of a column's expected difference. The variance of `difference` is
        run / rows + item / columns plus what the error term adds.
    """

    difference: float
    low: float
    high: float
    p: float
    p_equivalence: float
    margin: float
    standard_error: float
    df: float
    seeds: int
    checkpoints: int
    items: int
    groups: int | None
    variance: dict[str, float]

    @property
    def num_rows(self) -> int:
        """Independent rows: checkpoints if there are several, else seeds."""
        return self.checkpoints if self.checkpoints > 1 else self.seeds

    @property
    def num_columns(self) -> int:
        """Independent columns: groups of items if there are any, else items."""
        return self.items if self.groups is None else self.groups


def paired_difference(
    arm_SN: np.ndarray,
    baseline_SN: np.ndarray,
    *,
    design: Design = INDEPENDENT,
    level: float = 0.95,
    margin: float = DEFAULT_MARGIN,
) -> Difference:
    """Returns the mean difference of two arms paired by seeds (rows) and test items (columns).

    Identical differences in every cell give an interval of width zero, since nothing in the
    table varies, and p = 0; all zero differences give p = 1.

    Args:
      arm_SN: [S, N] scores, higher better, for instance 0 or 1 for wrong or right.
      baseline_SN: [S, N] scores of the baseline on the same seeds and items.
      design: which seeds share a checkpoint and which items a group.
      level: confidence level of the interval.
      margin: differences smaller than this count as none in `Difference.p_equivalence`.

    Raises:
      ValueError: the two tables differ in shape or are not finite [S, N] arrays.
      UserError: fewer than two rows or two columns; no interval exists then.
    """
    arm_SN, baseline_SN = np.asarray(arm_SN, float), np.asarray(baseline_SN, float)
    if arm_SN.shape != baseline_SN.shape:
        raise ValueError(f"arm {arm_SN.shape} and baseline {baseline_SN.shape} are not paired")
    return table_difference(arm_SN - baseline_SN, design=design, level=level, margin=margin)


def table_difference(
    difference_SN: np.ndarray,
    *,
    design: Design = INDEPENDENT,
    level: float = 0.95,
    margin: float = DEFAULT_MARGIN,
) -> Difference:
    """Returns what `paired_difference` does, from a table of differences [S, N]."""
    difference_SN = np.asarray(difference_SN, float)
    found = crossed_mean(_checked_table(difference_SN, design))
    interval = _t_interval(found.mean, found.variance, found.df, level)
    error = found.variance**0.5
    return Difference(
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        p=min(1.0, 2 * _tail(abs(found.mean), error, found.df)),
        p_equivalence=_tail(margin - abs(found.mean), error, found.df),
        margin=margin,
        standard_error=error,
        df=found.df,
        seeds=difference_SN.shape[0],
        checkpoints=design.num_checkpoints,
        items=difference_SN.shape[1],
        groups=design.num_groups,
        variance=found.components,
    )


def mean_over_seeds_and_items(
    scores_SN: np.ndarray, *, design: Design = INDEPENDENT, level: float = 0.95
) -> Interval:
    """Returns an arm's mean score with an interval that covers new seeds and new test items.

    Raises:
      ValueError: not a finite [S, N] array.
      UserError: fewer than two rows or two columns of independent units.
    """
    found = crossed_mean(_checked_table(np.asarray(scores_SN, float), design))
    return _t_interval(found.mean, found.variance, found.df, level)


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


@dataclasses.dataclass(frozen=True)
class CrossedMean:
    """The grand mean of a crossed table of R rows and M columns, and its estimated variance.

    Attributes:
      mean: the grand mean.
      variance: of the mean, over new rows and new columns.
      df: Satterthwaite's degrees of freedom of `variance`.
      ms_run: mean square of rows.
      ms_item: mean square of columns.
      ms_error: mean square of the rest.
      shape: (R, M).
    """

    mean: float
    variance: float
    df: float
    ms_run: float
    ms_item: float
    ms_error: float
    shape: tuple[int, int]

    @property
    def components(self) -> dict[str, float]:
        """Variance over rows (``run``) and columns (``item``), never below zero."""
        rows, columns = self.shape
        return {
            "run": max(self.ms_run - self.ms_error, 0.0) / columns,
            "item": max(self.ms_item - self.ms_error, 0.0) / rows,
        }


def crossed_mean(scores_RM: np.ndarray) -> CrossedMean:
    """Returns the grand mean of a table of independent rows and columns, and its variance.

    The mean squares of the two-way table without replication have expectations
    MS_run = error + M run, MS_item = error + R item, MS_error = error (Searle, Casella and
    McCulloch 1992, section 4.3), so

        Var(mean) = run / R + item / M + error / (R M)
                  = MS_run / (R M) + (MS_item - MS_error) / (R M),

    with Satterthwaite's (1946) degrees of freedom. The second term is cut at zero, and the
    degrees of freedom at those of the fewer of rows and columns: with many columns the interval is
    never narrower than that over rows alone.
    """
    rows, columns = scores_RM.shape
    mean = scores_RM.mean()
    run_R = scores_RM.mean(axis=1) - mean
    item_M = scores_RM.mean(axis=0) - mean
    error_RM = scores_RM - mean - run_R[:, None] - item_M
    df = np.array([rows - 1, columns - 1, (rows - 1) * (columns - 1)])
    ms_run, ms_item, ms_error = (
        np.array([columns * (run_R**2).sum(), rows * (item_M**2).sum(), (error_RM**2).sum()]) / df
    )
    total, satterthwaite = satterthwaite_df(ms_run, ms_item, ms_error, (rows, columns))
    return CrossedMean(
        mean=float(mean),
        variance=float(total / (rows * columns)),
        df=float(satterthwaite),
        ms_run=float(ms_run),
        ms_item=float(ms_item),
        ms_error=float(ms_error),
        shape=(rows, columns),
    )


def satterthwaite_df(ms_run, ms_item, ms_error, shape):
    """Returns R M Var(mean) of crossed tables and its degrees of freedom, see `crossed_mean`.

    Args:
      ms_run: mean square of rows, an array of any shape or a number, as all that follow.
      ms_item: mean square of columns.
      ms_error: mean square of the rest.
      shape: (R, M) of the tables.
    """
    rows, columns = shape
    total = ms_run + np.maximum(ms_item - ms_error, 0.0)
    squares = (
        ms_run**2 / (rows - 1)
        + ms_item**2 / (columns - 1)
        + ms_error**2 / ((rows - 1) * (columns - 1))
    )
    df = np.divide(total**2, squares, out=np.zeros_like(squares), where=squares > 0)
    return total, np.maximum(df, np.minimum(rows, columns) - 1)


def _checked_table(scores_SN: np.ndarray, design: Design) -> np.ndarray:
    """Returns the table reduced to independent rows and columns, at least two of each."""
    if scores_SN.ndim != 2 or not np.isfinite(scores_SN).all():
        raise ValueError("scores must be a finite table of seeds by items")
    reduced_RM = design.reduce(scores_SN)
    if min(reduced_RM.shape) < 2:
        columns = "test items" if design.groups is None else "groups of test items"
        raise UserError(
            f"an interval needs at least 2 seeds and 2 {columns}, got {reduced_RM.shape[0]} and "
            f"{reduced_RM.shape[1]}"
        )
    return reduced_RM


def _tail(excess: float, standard_error: float, df: float) -> float:
    """Returns the chance that a t variable is over `excess` standard errors."""
    if standard_error > 0:
        return float(stats.t.sf(excess / standard_error, df))
    return 0.0 if excess > 0 else 1.0


def _t_interval(mean: float, variance: float, df: float, level: float) -> Interval:
    """Interval for a mean whose own variance was estimated with `df` degrees of freedom."""
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance)
    return Interval(float(mean), float(mean - half), float(mean + half))
