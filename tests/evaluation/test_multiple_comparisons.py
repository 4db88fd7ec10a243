import itertools

import numpy as np
import pytest
from scipy import stats

from fm.evaluation.multiple_comparisons import max_t_adjusted
from fm.evaluation.statistics import paired_difference

# Of a share near 0.05 from the default number of draws.
MONTE_CARLO = 4 * (0.05 * 0.95 / 10_000) ** 0.5


def tables(count, seed=0, seeds=8, items=30, run=0.1, item=0.0, error=0.1, means=0.0):
    """Independent tables [seeds, items] of differences; `item` is shared by all."""
    random = np.random.default_rng(seed)
    common = item * random.normal(size=items)
    means = np.broadcast_to(means, count)
    return [
        mean
        + common
        + run * random.normal(size=(seeds, 1))
        + error * random.normal(size=(seeds, items))
        for mean in means
    ]


@pytest.mark.parametrize("item", [0.0, 0.3])
@pytest.mark.parametrize("seeds", [4, 8])
def test_one_comparison_needs_no_adjustment(item, seeds):
    for seed in range(3):
        (table,) = tables(1, seed, seeds=seeds, item=item, means=0.1)
        found = max_t_adjusted([table])
        p = paired_difference(table, np.zeros_like(table)).p
        assert found.p_K[0] == pytest.approx(p)
        # With 4 seeds and large items Satterthwaite's t is a little too short, which shows here.
        assert p <= found.adjusted_K[0] <= p + 0.02
        assert found.critical_p == pytest.approx(0.05, abs=0.012 if seeds == 8 else 0.025)


def test_equal_comparisons_count_once():
    (table,) = tables(1, means=0.1)
    alone, often = max_t_adjusted([table]), max_t_adjusted([table] * 20)
    np.testing.assert_allclose(often.adjusted_K, alone.adjusted_K[0], atol=MONTE_CARLO)


def test_independent_comparisons_are_adjusted_as_by_step_down_sidak():
    """Comparisons that share nothing: their least p has the distribution of independent ones."""
    random = np.random.default_rng(0)
    effects = [0.25, 0.2, 0.12, 0.0, 0.0, 0.0]
    own = [
        np.repeat(0.1 * stats.zscore(random.normal(size=(400, 1)), ddof=1) + mean, 2, axis=1)
        for mean in effects
    ]
    own = [table[random.permutation(400)] for table in own]
    found = max_t_adjusted(own, range(6))
    order = np.argsort(found.p_K)
    left = np.arange(6, 0, -1)
    sidak = np.maximum.accumulate(1 - (1 - found.p_K[order]) ** left)
    np.testing.assert_allclose(found.adjusted_K[order], sidak, atol=0.03)


def test_items_are_drawn_anew_too():
    """Seeds alike, so only items vary: independent sets of items count as independent tests."""
    random = np.random.default_rng(0)
    items = [random.normal(size=300) for _ in range(5)]
    own = [np.tile(stats.zscore(each, ddof=1) + 0.13, (8, 1)) for each in items]
    found = max_t_adjusted(own, range(5))
    p = stats.ttest_1samp(own[0][0], 0).pvalue
    np.testing.assert_allclose(found.p_K, p)
    np.testing.assert_allclose(found.adjusted_K.max(), 1 - (1 - p) ** 5, atol=0.02)
    assert found.adjusted_K.max() > 2 * p


def test_adjusted_is_never_below_p_and_keeps_its_order():
    found = max_t_adjusted(tables(12, item=0.1, means=np.linspace(0, 0.4, 12)))
    assert (found.adjusted_K >= found.p_K).all() and (found.adjusted_K <= 1).all()
    order = np.argsort(found.p_K)
    assert (np.diff(found.adjusted_K[order]) >= 0).all()


def test_has_no_floor_of_sign_patterns():
    strong = tables(10, seeds=4, run=0.01, error=0.01, means=1.0)
    found = max_t_adjusted(strong)
    assert found.adjusted_K.max() < 0.01 < 2 / 2**4


def test_step_down_spares_the_rest():
    """A comparison that is called no longer raises the bar for the others."""
    weak = tables(6, means=[0.12, 0, 0, 0, 0, 0])
    strong = tables(6, seed=1, means=1.0)
    alone, together = max_t_adjusted(weak), max_t_adjusted(weak + strong)
    assert together.adjusted_K[0] == pytest.approx(alone.adjusted_K[0], abs=0.02)


def test_sign_flips_agree_where_they_can():
    """Westfall and Young's max-T with all 256 sign patterns, without item variance."""
    own = tables(5, seed=2, items=400, means=[0.15, 0.05, 0.0, 0.1, 0.02])
    rows_KS = np.array([table.mean(axis=1) for table in own])
    signs_PS = np.array(list(itertools.product((-1, 1), repeat=8)))

    def t_statistics(values_KS):
        return np.abs(values_KS.mean(-1)) / values_KS.std(-1, ddof=1)

    observed_K = t_statistics(rows_KS)
    null_PK = t_statistics(signs_PS[:, None] * rows_KS)
    order = np.argsort(-observed_K)
    most_PK = np.maximum.accumulate(null_PK[:, order[::-1]], axis=1)[:, ::-1]
    flipped = np.maximum.accumulate((most_PK >= observed_K[order] - 1e-9).mean(axis=0))
    found = max_t_adjusted(own).adjusted_K[order]
    np.testing.assert_allclose(found, flipped, atol=0.06)


def test_repeats_exactly_and_takes_no_comparison():
    own = tables(3)
    np.testing.assert_array_equal(max_t_adjusted(own).adjusted_K, max_t_adjusted(own).adjusted_K)
    assert max_t_adjusted([]).adjusted_K.size == 0


def test_items_of_one_set_must_be_as_many():
    with pytest.raises(ValueError, match="as many columns"):
        max_t_adjusted([np.ones((8, 5)), np.ones((8, 6))])
    assert max_t_adjusted([np.ones((8, 5)), np.zeros((8, 6))], ["a", "b"]).p_K.tolist() == [0, 1]
