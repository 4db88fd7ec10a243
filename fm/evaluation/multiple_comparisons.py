"""Adjusted p-values of many comparisons: step-down max-T over rows that share seeds and items.

Westfall and Young (1993, section 2.6): a comparison is called at level a if even the most extreme
of all comparisons not called before it would be so extreme with a chance under a, if no arm
differed from another. The joint distribution of the statistics under that null hypothesis is
simulated, so that comparisons that share an arm, seeds or items cost little.

It is simulated by rotations (Langsrud 2005, "Rotation tests"), of which sign flips are a part.
Under the null hypothesis the rows of a table (seeds, or checkpoints) are independent normal
vectors of mean zero over all comparisons together; they stay so when they are rotated, whatever
the covariance of the comparisons. A sign flip projects the rows on a corner of the cube, one of
2^S directions; a rotation projects them on any direction of the sphere. So the adjusted p of a
single comparison is the p of its t test (no row can contradict its own interval), and p has no
floor at 2 / 2^S, which with 4 checkpoints would be 0.125. Where the rows are not normal the t test
and the interval are off by as much.

Items are drawn anew too: the same is done with the columns of the table, whose projection on a
random direction is, for many items, that of Gaussian multipliers on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special, stats

from fm.evaluation.statistics import CrossedMean, crossed_mean, satterthwaite_df

NUM_DRAWS = 10_000
_CHUNK = 2_000


@dataclasses.dataclass(frozen=True)
class AdjustedTests:
    """Adjusted p-values of K comparisons.

    Attributes:
      p_K: two-sided p-values of the t tests.
      adjusted_K: adjusted for all comparisons; never below `p_K`.
      critical_p: p below which a comparison not called yet would have been called at `level`.
    """

    p_K: np.ndarray
    adjusted_K: np.ndarray
    critical_p: float


@dataclasses.dataclass(frozen=True)
class _NullTable:
    """What of a table [R, M] is drawn anew: its rows and its columns, with the mean's part.

    Attributes:
      run_R: root of R M times row means; their mean square is `observed.ms_run`.
      item_M: the same of columns.
      item_share: standard deviation of the column part of the mean, over that of `item_M`: columns
        hold a share of the error too, which the rows bring along already.
    """

    observed: CrossedMean
    run_R: np.ndarray
    item_M: np.ndarray
    item_share: float


def max_t_adjusted(
    tables: Sequence[np.ndarray],
    item_sets: Sequence[Hashable] | None = None,
    *,
    level: float = 0.05,
    draws: int = NUM_DRAWS,
    seed: int = 0,
) -> AdjustedTests:
    """Returns step-down max-T adjusted p-values of mean differences.

    The statistics of all comparisons are compared on the scale of their own p-values (as normal
    deviates), since they differ in degrees of freedom (Westfall and Young's min-P).

    Args:
      tables: K tables of differences [R, M], of independent rows and columns (see
        `fm.evaluation.design.Design.reduce`). Tables with as many rows share them: row s is the
        same seed in all. Those of different numbers of rows are drawn independently, which does
        not lessen the maximum (Sidak 1967).
      item_sets: of each table, the set of test items it is on; tables of one set share columns,
        those of different sets are independent. None if all are on one.
      level: for `AdjustedTests.critical_p`.
      draws: of the null hypothesis.
      seed: of the draws.

    Raises:
      ValueError: two tables of one set of items have different numbers of columns.
    """
    sets = [0] * len(tables) if item_sets is None else list(item_sets)
    if not tables:
        return AdjustedTests(np.zeros(0), np.zeros(0), level)
    widths = {(name, table.shape[1]) for name, table in zip(sets, tables, strict=True)}
    if len(widths) > len(set(sets)):
        raise ValueError("tables of one set of items must have as many columns")
    nulls = [_null_table(np.asarray(table, float)) for table in tables]
    p_K = np.array([_two_sided_p(null.observed) for null in nulls])
    order_K = np.argsort(p_K, kind="stable")
    random = np.random.default_rng(seed)
    z_DK = np.concatenate(
        [
            _null_scores(nulls, sets, min(_CHUNK, draws - start), random)
            for start in range(0, draws, _CHUNK)
        ]
    )
    observed = [null.observed for null in nulls]
    z_K = np.array([_normal_score(abs(each.mean), each.variance, each.df) for each in observed])
    # The most extreme of the comparisons from this one on, in order of the observed p.
    most_DK = np.maximum.accumulate(z_DK[:, order_K[::-1]], axis=1)[:, ::-1]
    share_K = (1 + (most_DK >= z_K[order_K]).sum(axis=0)) / (1 + draws)
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order_K] = np.maximum.accumulate(share_K)
    adjusted_K = np.minimum(np.maximum(adjusted_K, p_K), 1.0)
    left = min(int((adjusted_K < level).sum()), len(tables) - 1)
    critical_p = 2 * stats.norm.sf(np.quantile(most_DK[:, left], 1 - level))
    return AdjustedTests(p_K, adjusted_K, min(level, float(critical_p)))


def _null_table(table_RM: np.ndarray) -> _NullTable:
    """Splits a table into rows and columns whose mean square and mean fit the null hypothesis.

    Under it the mean is a draw of rows plus a draw of columns. Its square is shared out to the
    two as its variance is, so that either part is as large as the deviations it is drawn with.
    """
    observed = crossed_mean(table_RM)
    rows, columns = table_RM.shape
    root = np.sqrt(rows * columns)
    total = observed.variance * rows * columns
    mean = root * observed.mean
    excess = max(observed.ms_item - observed.ms_error, 0.0)
    run_share, item_part = (
        (np.sqrt(each / total) if total else 0.0) for each in (observed.ms_run, observed.ms_item)
    )
    run_R = np.sqrt(columns) * (table_RM.mean(axis=1) - observed.mean)
    item_M = np.sqrt(rows) * (table_RM.mean(axis=0) - observed.mean)
    return _NullTable(
        observed,
        run_R + run_share * mean / np.sqrt(rows),
        item_M + item_part * mean / np.sqrt(columns),
        float(np.sqrt(excess / observed.ms_item)) if observed.ms_item else 0.0,
    )


def _null_scores(
    nulls: Sequence[_NullTable], sets: Sequence[Hashable], draws: int, random: np.random.Generator
) -> np.ndarray:
    """Returns normal scores [draws, K] of all comparisons under the null hypothesis."""
    row_blocks = [len(null.run_R) for null in nulls]
    column_blocks = [(name, len(null.item_M)) for name, null in zip(sets, nulls, strict=True)]
    run_DK, ms_run_DK = _projected([null.run_R for null in nulls], row_blocks, draws, random)
    item_DK, ms_item_DK = _projected([null.item_M for null in nulls], column_blocks, draws, random)
    z_DK = np.empty_like(run_DK)
    for k, null in enumerate(nulls):
        total_D, df_D = satterthwaite_df(
            ms_run_DK[:, k], ms_item_DK[:, k], null.observed.ms_error, null.observed.shape
        )
        mean_D = run_DK[:, k] + null.item_share * item_DK[:, k]
        z_DK[:, k] = _normal_score(np.abs(mean_D), total_D, df_D)
    return z_DK


def _normal_score(mean, variance, df):
    """Returns about the normal deviate with the p-value of a t statistic (Wallace 1959).

    It only orders comparisons of different degrees of freedom, so being near is enough, and it
    takes a tenth of the time of the t distribution.
    """
    square = np.divide(
        mean**2, variance, out=np.zeros_like(mean, dtype=float), where=np.asarray(variance) > 0
    )
    score = np.sqrt(df * np.log1p(square / df)) * (8 * df + 1) / (8 * df + 3)
    return np.where((np.asarray(variance) > 0) | (mean == 0), score, np.inf)


def _projected(
    vectors: Sequence[np.ndarray],
    blocks: Sequence[Hashable],
    draws: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotates K vectors at random, those of a block together.

    Returns:
      [draws, K] sums over the root of the length of the rotated vectors, and [draws, K] mean
      squares about their means. A rotated vector's sum needs its projection on one direction only,
      and its mean square follows from its length.
    """
    projected_DK = np.empty((draws, len(vectors)))
    for block in dict.fromkeys(blocks):
        own = [k for k, each in enumerate(blocks) if each == block]
        columns_NK = np.stack([vectors[k] for k in own], axis=1)
        # In the space of the vectors: a direction's other coordinates only count by their length.
        basis_NQ, columns_QK = np.linalg.qr(columns_NK)
        size, rank = basis_NQ.shape
        direction_DQ = random.standard_normal((draws, rank))
        length_D = (direction_DQ**2).sum(axis=1)
        if size > rank:
            length_D += random.chisquare(size - rank, draws)
        projected_DK[:, own] = direction_DQ / np.sqrt(length_D)[:, None] @ columns_QK
    square_K = np.array([(vector**2).sum() for vector in vectors])
    degrees_K = np.array([len(vector) - 1 for vector in vectors])
    return projected_DK, np.maximum(square_K - projected_DK**2, 0.0) / degrees_K


def _two_sided_p(found: CrossedMean) -> float:
    """Returns the p-value of the t test that `statistics.table_difference` reports."""
    if found.variance > 0:
        return float(2 * special.stdtr(found.df, -abs(found.mean) / np.sqrt(found.variance)))
    return 0.0 if found.mean else 1.0
