import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.errors import UserError
from fm.evaluation.label_efficiency import label_multiplier

BUDGETS = [25, 100, 400]


def scores(means, seeds=8, items=200, noise=0.0, seed=0):
    """[len(means), S, N] scores of exactly these means, with some noise round them."""
    random = np.random.default_rng(seed)
    error = random.normal(size=(len(means), seeds, items))
    error -= error.mean(axis=(1, 2), keepdims=True)
    return np.asarray(means, float)[:, None, None] + noise * error


@pytest.mark.parametrize(
    ("curve", "arm", "labels", "expected"),
    [
        ([0.5, 0.6, 0.7], 0.6, 25, 4),  # on a measured point
        ([0.5, 0.6, 0.7], 0.55, 25, 2),  # half way: the geometric mean of 25 and 100
        ([0.5, 0.6, 0.7], 0.65, 50, 4),  # labels between the budgets
        ([0.6, 0.5, 0.7], 0.55, 25, 1),  # a dip is pooled: 0.55 is reached at once
        ([0.6, 0.5, 0.7], 0.625, 25, 8),  # and the rise begins from the pooled value
        ([0.5, 0.7, 0.7], 0.7, 25, 4),  # a plateau is reached at its beginning
        ([0.5, 0.6, 0.7], 0.5, 100, 0.25),  # worse than scratch at the same labels
    ],
)
def test_reads_the_curve(curve, arm, labels, expected):
    stacked = scores([*curve, arm])
    found = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], labels)
    assert found.label_multiplier == pytest.approx(expected)
    assert found.censored is None


def test_beyond_the_last_budget_is_a_lower_bound():
    stacked = scores([0.5, 0.6, 0.7, 0.9], noise=0.1)
    found = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 25)
    assert (found.label_multiplier, found.low, found.high, found.censored) == (
        16,
        16,
        None,
        "above",
    )


def test_barely_beyond_keeps_a_low_end_inside_the_range():
    stacked = scores([0.5, 0.6, 0.7, 0.701], noise=0.5)
    found = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 25)
    assert found.censored == "above" and found.high is None
    assert found.low is not None and 4 < found.low < 16


def test_below_the_first_budget_is_an_upper_bound():
    stacked = scores([0.5, 0.6, 0.7, 0.3], noise=0.1)
    found = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 100)
    assert found.label_multiplier == found.high == 0.25
    assert (found.low, found.censored) == (None, "below")


def test_interval_holds_the_estimate_and_opens_at_the_ends():
    stacked = scores([0.5, 0.6, 0.7, 0.63], noise=0.2)
    found = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 25)
    assert found.low is not None and found.high is not None
    assert found.low < found.label_multiplier < found.high

    vague = scores([0.5, 0.6, 0.7, 0.63], noise=8.0, seed=1)
    found = label_multiplier(BUDGETS, vague[:-1], vague[-1], 25)
    assert found.low is None and found.high is None


def test_items_all_arms_find_hard_cancel():
    """Pairing: an effect of the items that every arm shares must not widen the interval."""
    stacked = scores([0.5, 0.6, 0.7, 0.63], noise=0.2)
    hard = np.random.default_rng(1).normal(size=stacked.shape[-1])
    plain = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 25)
    shifted = stacked + 5 * (hard - hard.mean())
    found = label_multiplier(BUDGETS, shifted[:-1], shifted[-1], 25)
    assert found.low is not None and found.high is not None
    assert plain.low is not None and plain.high is not None
    assert np.log(found.high / found.low) < 1.3 * np.log(plain.high / plain.low)


def test_repeats_exactly_for_a_seed_and_not_for_another():
    stacked = scores([0.5, 0.6, 0.7, 0.63], noise=0.2)
    first, again, other = (
        label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 25, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.label_multiplier == other.label_multiplier


@given(st.integers(1, 8), st.floats(0.51, 0.69))
def test_scales_with_the_budgets(factor, arm):
    stacked = scores([0.5, 0.6, 0.7, arm], noise=0.1, items=20)
    plain = label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 25, draws=50)
    scaled = label_multiplier(
        [factor * budget for budget in BUDGETS], stacked[:-1], stacked[-1], 25 * factor, draws=50
    )
    assert scaled.label_multiplier == pytest.approx(plain.label_multiplier)
    assert scaled.censored == plain.censored


@given(st.floats(0.3, 0.9), st.floats(0, 0.3))
def test_a_better_arm_is_worth_no_fewer_labels(arm, gain):
    stacked = scores([0.5, 0.6, 0.7, arm, arm + gain])
    worse, better = (
        label_multiplier(BUDGETS, stacked[:3], one, 25, draws=5) for one in stacked[3:]
    )
    assert better.label_multiplier >= worse.label_multiplier


def test_bad_input():
    stacked = scores([0.5, 0.6, 0.7, 0.63])
    with pytest.raises(ValueError, match="positive and rising"):
        label_multiplier([100, 25, 400], stacked[:-1], stacked[-1], 25)
    with pytest.raises(ValueError, match="positive and rising"):
        label_multiplier(BUDGETS, stacked[:-1], stacked[-1], 0)
    with pytest.raises(ValueError, match="does not match 3 budgets"):
        label_multiplier(BUDGETS, stacked[:2], stacked[-1], 25)
    with pytest.raises(UserError, match="at least 2 seeds"):
        label_multiplier(BUDGETS, stacked[:-1, :1], stacked[-1, :1], 25)
