import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from fm.errors import UserError
from fm.evaluation.statistics import (
    mean_interval,
    mean_over_seeds_and_items,
    paired_difference,
)

DIFFERENCES = arrays(int, st.integers(2, 9), elements=st.integers(-20, 20))


def table(seed=0, seeds=8, items=50, run=0.3, item=0.5, error=1.0, mean=0.2):
    random = np.random.default_rng(seed)
    return (
        mean
        + run * random.normal(size=(seeds, 1))
        + item * random.normal(size=(1, items))
        + error * random.normal(size=(seeds, items))
    )


def test_components_match_the_anova_table_of_statsmodels():
    scores = table()
    seed, item = np.indices(scores.shape)
    model = sm.formula.ols(
        "y ~ C(seed) + C(item)",
        {"y": scores.ravel(), "seed": seed.ravel(), "item": item.ravel()},
    ).fit()
    anova = sm.stats.anova_lm(model)
    mean_square = anova["sum_sq"] / anova["df"]
    run = (mean_square["C(seed)"] - mean_square["Residual"]) / scores.shape[1]
    items = (mean_square["C(item)"] - mean_square["Residual"]) / scores.shape[0]

    result = paired_difference(scores, np.zeros_like(scores))

    assert run > 0 and items > 0, "choose a table whose components are positive"
    assert result.variance == pytest.approx({"run": run, "item": items})
    assert result.difference == pytest.approx(scores.mean())
    assert (result.seeds, result.items) == scores.shape


def test_interval_follows_satterthwaite():
    scores = table()
    result = paired_difference(scores, np.zeros_like(scores))
    seeds, items = scores.shape
    rows, columns = scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    error = ((scores - rows - columns + scores.mean()) ** 2).sum() / ((seeds - 1) * (items - 1))
    run, item = items * rows.var(ddof=1), seeds * columns.var(ddof=1)
    total = run + item - error
    df = total**2 / (
        run**2 / (seeds - 1) + item**2 / (items - 1) + error**2 / ((seeds - 1) * (items - 1))
    )
    low, high = stats.t.interval(0.95, df, scores.mean(), math.sqrt(total / (seeds * items)))
    assert (result.low, result.high) == pytest.approx((low, high))


def test_without_item_variance_it_is_the_t_interval_over_seeds():
    runs = table(items=1)
    noise = np.tile([[1.0, -1.0]], (8, 10)) * np.repeat([[1.0], [-1.0]], 4, axis=0)
    scores = runs + 0.1 * noise
    np.testing.assert_allclose(scores.mean(0), scores.mean(), atol=1e-12)
    result = mean_over_seeds_and_items(scores)
    over_seeds = mean_interval(scores.mean(1))
    assert (result.low, result.high) == pytest.approx((over_seeds.low, over_seeds.high))


def test_without_run_variance_it_is_the_t_interval_over_items():
    scores = np.tile(table(seeds=1), (8, 1))
    result = mean_over_seeds_and_items(scores)
    expected = stats.ttest_1samp(scores[0], 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx(tuple(expected))


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_interval_is_never_narrower_than_the_standard_error_of_seeds(seed, run, item, error):
    scores = table(seed, run=run, item=item, error=error)
    result = mean_over_seeds_and_items(scores)
    standard_error = scores.mean(1).std(ddof=1) / math.sqrt(8)
    # 1.96: the least factor that any number of degrees of freedom allows.
    assert result.high - result.low >= 2 * 1.9599 * standard_error * (1 - 1e-9)


@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 10))
def test_interval_moves_with_the_scores(seed, shift, scale):
    arm, baseline = table(seed), table(seed + 1)
    plain = paired_difference(arm, baseline)
    moved = paired_difference(shift + scale * arm, scale * baseline)
    assert moved.low == pytest.approx(shift + scale * plain.low, abs=1e-9)
    assert moved.variance["item"] == pytest.approx(scale**2 * plain.variance["item"], abs=1e-9)


def test_swapping_the_arms_mirrors_the_interval():
    arm, baseline = table(1), table(2)
    there, back = paired_difference(arm, baseline), paired_difference(baseline, arm)
    assert (there.difference, there.low, there.high) == pytest.approx(
        (-back.difference, -back.high, -back.low)
    )
    assert there.p == back.p


@given(st.integers(0, 10_000), st.floats(-0.5, 0.5), st.integers(2, 9), st.integers(2, 60))
def test_p_never_contradicts_the_interval(seed, mean, seeds, items):
    scores = table(seed, seeds, items, run=0.1, item=0.3, error=0.2, mean=mean)
    result = paired_difference(scores, np.zeros_like(scores))
    assert (result.p < 0.05) == (result.low > 0 or result.high < 0)
    narrow = paired_difference(scores, np.zeros_like(scores), level=0.9, margin=0.3)
    # Two one-sided tests at 5% are a 90% interval inside the margin.
    assert (narrow.p_equivalence < 0.05) == (narrow.low > -0.3 and narrow.high < 0.3)


def test_p_is_students_where_only_seeds_or_only_items_vary():
    over_seeds = np.repeat(table(items=1), 9, axis=1)
    result = paired_difference(over_seeds, np.zeros_like(over_seeds))
    assert result.p == pytest.approx(stats.ttest_1samp(over_seeds[:, 0], 0).pvalue)
    over_items = np.tile(table(seeds=1), (8, 1))
    result = paired_difference(over_items, np.zeros_like(over_items), margin=0.3)
    assert result.p == pytest.approx(stats.ttest_1samp(over_items[0], 0).pvalue)
    one_sided = [
        stats.ttest_1samp(over_items[0], -0.3, alternative="greater").pvalue,
        stats.ttest_1samp(over_items[0], 0.3, alternative="less").pvalue,
    ]
    assert result.p_equivalence == pytest.approx(max(one_sided))


@pytest.mark.parametrize(
    ("gap", "p", "p_equivalence"), [(0.0, 1, 0), (0.005, 0, 0), (0.02, 0, 1), (-0.02, 0, 1)]
)
def test_differences_that_do_not_vary_are_certain(gap, p, p_equivalence):
    result = paired_difference(np.full((3, 4), gap), np.zeros((3, 4)), margin=0.01)
    assert (result.p, result.p_equivalence) == pytest.approx((p, p_equivalence), abs=1e-12)


def test_higher_level_is_wider():
    scores = table()
    narrow, wide = (mean_over_seeds_and_items(scores, level=level) for level in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_all_zero_differences():
    same = table() > 0
    result = paired_difference(same, same)
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert result.variance == {"run": 0, "item": 0}


@pytest.mark.parametrize("shape", [(1, 50), (8, 1)])
def test_one_seed_or_one_item_has_no_interval(shape):
    with pytest.raises(UserError, match=r"at least 2 seeds and 2 test items"):
        paired_difference(np.ones(shape), np.zeros(shape))


def test_unpaired_or_broken_tables_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(np.ones((8, 5)), np.ones((8, 6)))
    with pytest.raises(ValueError, match="finite"):
        mean_over_seeds_and_items(np.full((8, 5), np.nan))


def test_mean_interval_is_students():
    values = table()[:, 0]
    result = mean_interval(values, 0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (result.low, result.high) == pytest.approx(tuple(expected))
    assert result.mean == pytest.approx(values.mean())
    with pytest.raises(UserError, match="at least 2 seeds, got 1"):
        mean_interval(values[:1])
