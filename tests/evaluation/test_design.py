import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fm.errors import UserError
from fm.evaluation.design import Design, check_design
from fm.evaluation.statistics import mean_over_seeds_and_items, paired_difference

EIGHT = [0, 1, 2, 3] * 2


def table(seed=0, seeds=8, items=60):
    random = np.random.default_rng(seed)
    return random.normal(size=(seeds, 1)) + random.normal(size=(seeds, items))


def difference(scores, design):
    return paired_difference(scores, np.zeros_like(scores), design=design)


def test_checkpoints_enter_as_their_means():
    """Without item variance it is the t interval over checkpoint means, with C - 1 df."""
    scores = np.repeat(table(items=1), 10, axis=1)
    found = difference(scores, Design(EIGHT))
    means = scores[:, 0].reshape(2, 4).mean(axis=0)
    expected = stats.ttest_1samp(means, 0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.df, found.checkpoints, found.seeds) == (pytest.approx(3), 4, 8)


def test_one_checkpoint_leaves_the_seeds():
    scores = table()
    assert difference(scores, Design([7] * 8)) == difference(scores, Design())


def test_equal_groups_enter_as_their_means():
    scores = table()
    grouped = difference(scores, Design(groups=np.arange(60) % 12))
    means = scores.reshape(8, 5, 12).mean(axis=1)
    by_hand = difference(means, Design())
    assert (grouped.low, grouped.high, grouped.df) == pytest.approx(
        (by_hand.low, by_hand.high, by_hand.df)
    )
    assert (grouped.items, grouped.groups, grouped.num_columns) == (60, 12, 12)


@pytest.mark.parametrize("uneven", [False, True])
def test_standard_error_of_groups_is_that_of_cluster_robust_regression(uneven):
    """All seeds alike, so only items vary; statsmodels knows no crossed seeds."""
    random = np.random.default_rng(3)
    groups = (
        np.concatenate([np.arange(20), random.integers(0, 20, 380)])
        if uneven
        else (np.arange(400) % 20)
    )
    items = random.normal(size=20)[groups] + random.normal(size=400) + 0.2
    found = difference(np.tile(items, (8, 1)), Design(groups=groups.tolist()))
    fit = sm.OLS(items, np.ones(400)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert found.difference == pytest.approx(items.mean())
    # The jackknife is a little wider where sizes differ.
    assert found.standard_error / fit.bse[0] == pytest.approx(1, abs=0.04 if uneven else 1e-9)
    assert found.df == pytest.approx(19)


@given(st.integers(0, 1000), st.integers(2, 9))
def test_reducing_keeps_the_mean_of_every_row(seed, num_groups):
    random = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(num_groups), random.integers(0, num_groups, 30)]).tolist()
    scores = table(seed, items=len(groups))
    reduced = Design(EIGHT, groups).reduce(scores)
    assert reduced.shape == (4, num_groups)
    np.testing.assert_allclose(
        reduced.mean(axis=1), scores.reshape(2, 4, -1).mean(axis=(0, 2)), atol=1e-12
    )


def test_groups_of_correlated_items_widen_the_interval():
    random = np.random.default_rng(0)
    scores = np.repeat(random.normal(size=(1, 10)), 40, axis=1) + 0.1 * random.normal(size=(8, 400))
    groups = np.repeat(np.arange(10), 40).tolist()
    plain, grouped = (
        mean_over_seeds_and_items(scores, design=each) for each in (Design(), Design(None, groups))
    )
    assert grouped.high - grouped.low > 3 * (plain.high - plain.low)


def test_few_groups_that_decide_leave_few_degrees_of_freedom():
    """Where seeds are alike and all that varies is between 4 groups, 8 seeds do not help."""
    scores = np.tile(np.repeat(np.random.default_rng(1).normal(size=4), 50), (8, 1))
    groups = np.repeat(np.arange(4), 50).tolist()
    assert difference(scores, Design(groups=groups)).df == pytest.approx(3)
    assert difference(table(items=300), Design()).df >= 7


def test_a_design_of_another_table_is_refused():
    with pytest.raises(ValueError, match="checkpoints of 8 seeds"):
        Design(EIGHT).reduce(np.zeros((6, 5)))
    with pytest.raises(ValueError, match="groups of 3 items"):
        Design(groups=[1, 2, 3]).reduce(np.zeros((6, 5)))
    with pytest.raises(UserError, match=r"^--pretrain_seeds=3: must divide .* 8"):
        Design([0, 1, 2] * 2 + [0, 1]).reduce(np.zeros((8, 5)))
    with pytest.raises(UserError, match="2 groups of test items, got 8 and 1"):
        difference(table(), Design(groups=[0] * 60))


@pytest.mark.parametrize(
    ("seeds", "checkpoints", "groups", "message"),
    [
        (8, 2, None, r"--pretrain_seeds=2: .* must be 1 .* or at least 4"),
        (9, 4, None, r"--pretrain_seeds=4: must divide the number of seeds, 9"),
        (8, 1, [0, 1] * 50, r"--item_group: .* 2 groups.* at least 8 different values"),
        (8, 1, [*range(12), *[0] * 60], r"--item_group: 61 of 72 .* worth 1.4 .* at least 6"),
    ],
)
def test_designs_whose_intervals_do_not_hold_are_refused(seeds, checkpoints, groups, message):
    with pytest.raises(UserError, match=message) as refused:
        check_design(seeds, checkpoints, groups)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("seeds", "checkpoints"), [(8, 1), (8, 4), (8, 8), (1, 1), (20, 5)])
def test_designs_that_hold_are_accepted(seeds, checkpoints):
    check_design(seeds, checkpoints, list(range(8)) * 3)
