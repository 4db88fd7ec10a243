import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.errors import UserError
from fm.evaluation.model_selection import (
    draw_label_set_idx,
    draw_train_idx,
    from_the_middle,
    make_folds,
    quantile_strata,
    select_trial,
)

LABELS = st.lists(st.integers(0, 5), min_size=2, max_size=150).map(np.array)


@st.composite
def pools(draw):
    labels = draw(LABELS)
    budget = draw(st.integers(len(np.unique(labels)), labels.size))
    return labels, budget, draw(st.integers(0, 1000))


@given(pools())
def test_draws_are_distinct_nested_and_cover_every_class(pool):
    labels, budget, seed = pool
    drawn = draw_train_idx(labels, budget, seed)
    assert len(set(drawn)) == budget
    assert set(labels[drawn]) == set(labels)
    everything = draw_train_idx(labels, labels.size, seed)
    assert sorted(everything) == list(range(labels.size))
    np.testing.assert_array_equal(drawn, everything[:budget])


@given(pools())
def test_draws_give_two_of_each_class_before_three_of_any(pool):
    labels, budget, seed = pool
    drawn = labels[draw_train_idx(labels, budget, seed)]
    sizes = np.bincount(labels)
    counts = np.bincount(drawn, minlength=sizes.size)
    assert counts.max() <= 2 or (counts >= np.minimum(sizes, 2)).all()


def test_draws_follow_the_proportions_of_the_pool():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    np.testing.assert_array_equal(np.bincount(labels[draw_train_idx(labels, 100, 0)]), [70, 20, 10])
    balanced = np.repeat(np.arange(4), 100)
    np.testing.assert_array_equal(np.bincount(balanced[draw_train_idx(balanced, 20, 0)]), [5] * 4)


def test_draws_differ_between_seeds_and_not_within_one():
    labels = np.repeat([0, 1], 500)
    first, again, other = (draw_train_idx(labels, 50, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 15


def test_every_example_is_drawn_equally_often():
    labels = np.repeat([0, 1], [30, 10])
    times = np.bincount(
        np.concatenate([draw_train_idx(labels, 8, seed) for seed in range(4000)]), minlength=40
    )
    np.testing.assert_allclose(times / 4000, 8 / 40, atol=0.03)


def test_impossible_budgets():
    with pytest.raises(UserError, match=r"budget of 5 labels exceeds the pool of 4") as error:
        draw_train_idx(np.array([0, 1, 0, 1]), 5, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="budget of 2 labels cannot cover 3 classes"):
        draw_train_idx(np.array([0, 1, 2, 1]), 2, 0)


@given(LABELS, st.integers(0, 100))
def test_folds_partition_what_can_be_held_out(labels, seed):
    sizes = np.bincount(labels)
    if sizes.max() < 2:
        with pytest.raises(UserError, match="none of the"):
            make_folds(labels, seed=seed)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = make_folds(labels, seed=seed)
    held_out = np.concatenate([validation for _, validation in cut])
    for train, validation in cut:
        assert validation.size
        np.testing.assert_array_equal(np.union1d(train, validation), np.arange(labels.size))
        assert not np.intersect1d(train, validation).size
        assert set(labels[train]) == set(labels), "a class without a training example"
    if labels.size < 100:
        assert sorted(held_out) == list(np.flatnonzero(sizes[labels] > 1))
        counts = [np.bincount(labels[part], minlength=sizes.size) for _, part in cut]
        assert (np.ptp(counts, axis=0) <= 1).all(), "not stratified"
    else:
        assert len(cut) == 1


def test_four_folds_under_a_hundred_and_a_quarter_from_there():
    labels = np.arange(100) % 2
    assert [len(part) for _, part in make_folds(labels[:20], seed=0)] == [5, 5, 5, 5]
    assert len(make_folds(labels[:99], seed=0)) == 4
    ((train, validation),) = make_folds(labels, seed=0)
    assert (len(train), len(validation)) == (75, 25)
    assert abs(int(labels[validation].sum()) - 12.5) == 0.5
    assert not np.array_equal(validation, make_folds(labels, seed=1)[0][1])


@pytest.mark.parametrize(
    ("grid", "expected"),
    [([], []), ([1], [1]), ([1, 2], [2, 1]), ([1, 2, 3], [2, 3, 1]), ([1, 2, 3, 4], [3, 2, 4, 1])],
)
def test_a_grid_from_its_middle(grid, expected):
    assert from_the_middle(grid) == expected


@pytest.mark.parametrize(("error", "chosen"), [(0.05, "b"), (0.2, "a2")])
def test_an_earlier_method_within_one_standard_error_is_chosen(error, chosen):
    found = [("a1", "probe", 0.6), ("a2", "probe", 0.7), ("b", "full", 0.8), ("c", "lora", 0.75)]
    trials = [
        {"config": {"name": name, "method": method}, "validation": value, "standard_error": error}
        for name, method, value in found
    ]
    assert select_trial(trials)["config"]["name"] == chosen


def test_choose_takes_the_first_of_the_best():
    trials = [
        {"config": name, "validation": value}
        for name, value in [("a", math.nan), ("b", 0.4), ("c", 0.7), ("d", 0.7)]
    ]
    assert select_trial(trials)["config"] == "c"
    assert select_trial(trials[:1])["config"] == "a", "a single trial needs no figure"
    with pytest.raises(ValueError, match="no trial"):
        select_trial([trials[0]] * 2)
    with pytest.raises(ValueError, match="no trial"):
        select_trial([])


def test_label_sets_are_drawn_with_every_class_and_in_proportion():
    draws = np.random.default_rng(0)
    hot = draws.random((500, 6)) < [0.6, 0.3, 0.1, 0.05, 0.02, 0.004]
    hot[0, 5] = True
    for seed in range(20):
        order = draw_label_set_idx(hot, 120, seed)
        assert len(set(order.tolist())) == 120
        present = np.append(hot[order[:7]].any(axis=0), ~hot[order[:7]].any(axis=1).all())
        assert present.all()
        shares = hot[order].mean(axis=0)
        assert np.abs(shares - hot.mean(axis=0)).max() < 0.08
        np.testing.assert_array_equal(draw_label_set_idx(hot, 30, seed), order[:30])
    assert draw_label_set_idx(hot, 30, 0).tolist() != draw_label_set_idx(hot, 30, 1).tolist()
    assert len(draw_label_set_idx(hot[:3], 3, 0)) == 3
    with pytest.raises(UserError, match="a budget of 4 labels exceeds the pool of 3"):
        draw_label_set_idx(hot[:3], 4, 0)


def test_quantile_strata_have_equal_numbers_of_examples_and_none_for_nan():
    values = np.append(np.random.default_rng(0).permutation(100.0 + np.arange(100)), np.nan)
    strata = quantile_strata(values, 5)
    assert np.bincount(strata[:-1]).tolist() == [20] * 5 and strata[-1] == -1
    assert strata[np.argmin(values[:-1])] == 0 and strata[np.argmax(values[:-1])] == 4
    tied = quantile_strata(np.array([1.0] * 9 + [2.0]), 5)
    assert sorted(set(tied)) == list(range(len(set(tied)))) and len(set(tied)) <= 2
    assert quantile_strata(np.full(4, 3.0), 5).tolist() == [0] * 4
    assert quantile_strata(np.full(2, np.nan), 5).tolist() == [-1, -1]
