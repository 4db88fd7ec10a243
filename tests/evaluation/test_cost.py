"""Compute cost and break-even against sums done by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.evaluation.cost import (
    MAX_TASKS,
    BreakEven,
    CostItem,
    amortized_cost,
    break_even,
    break_even_tasks,
    compute_cost,
    joint_tuning_step_fraction,
    matching_scratch_flops,
    per_task_share,
    shared_cost_probability,
)
from fm.evaluation.label_efficiency import LabelEfficiency

COST = st.integers(0, 10**15)
COSTS = {
    "pretrain_flops": 100.0,
    "pretrain_cpu_seconds": 10.0,
    "adapt_flops": 5.0,
    "adapt_cpu_seconds": 1.0,
}


@given(COST, COST, COST)
def test_break_even_is_the_smallest_number_of_tasks(pretrain, shared, scratch):
    tasks = break_even_tasks(pretrain, shared, scratch)
    if tasks is None:
        assert scratch - shared <= 1e-6 * scratch
    else:
        assert pretrain + tasks * shared < tasks * scratch
        assert not pretrain + (tasks - 1) * shared < (tasks - 1) * scratch


@pytest.mark.parametrize(
    ("pretrain", "shared", "scratch", "expected"),
    [
        (100, 1, 11, 11),  # ten tasks only draw level
        (101, 1, 11, 11),
        (0, 1, 2, 1),  # somebody else paid
        (0, 2, 2, None),
        (100, 3, 2, None),
        (3e12, 4966055936.0, math.nextafter(4966055936.0, math.inf), None),
        (3e12, 1e9, 1e9 * (1 + 1e-9), None),
        (1e21, 1e15, 2e15, 1_000_001),
    ],
)
def test_break_even_by_hand(pretrain, shared, scratch, expected):
    assert break_even_tasks(pretrain, shared, scratch) == expected


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_break_even_refuses_impossible_costs(cost):
    with pytest.raises(ValueError, match="finite and not negative"):
        break_even_tasks(cost, 1, 2)


def test_scratch_network_is_priced_where_it_is_as_good():
    # Half way between 100 and 400 labels in the logarithm: half way between 10 and 90 FLOPs too.
    flops, note = matching_scratch_flops(
        [25, 100, 400], [5, 10, 90], 50, LabelEfficiency(4.0, 3.0, 5.0, None)
    )
    assert (flops, note) == (pytest.approx(30), "")


def test_scratch_network_that_never_got_there_has_no_price():
    above = LabelEfficiency(16.0, 16.0, None, "above")
    flops, note = matching_scratch_flops([25, 100, 400], [5, 10, 90], 25, above)
    assert flops is None
    assert "never reached" in note and "400 labels" in note
    row = compute_cost("reviews", "in_domain", **COSTS, scratch_cost=(flops, note))
    assert row.break_even_tasks is None and row.note == note


@pytest.mark.parametrize(
    ("efficiency", "note"),
    [
        (LabelEfficiency(0.25, None, 0.25, "below"), "scratch does better on 25 labels already"),
        (LabelEfficiency(0.5, 0.3, 0.8, None), "scratch is as good with 50 labels"),
        (
            LabelEfficiency(1.0, 0.8, 1.2, None),
            "the interval of the label multiplier does not lie above 1",
        ),
        (
            LabelEfficiency(2.0, None, 3.0, None),
            "the interval of the label multiplier does not lie above 1",
        ),
    ],
)
def test_an_arm_that_scratch_beats_pays_nothing_back(efficiency, note):
    price = matching_scratch_flops([25, 100, 400], [5, 10, 90], 100, efficiency)
    assert price == (None, note)


def test_row_breaks_even_or_says_why_not():
    row = compute_cost("reviews", "in_domain", **COSTS, scratch_cost=(15.0, ""))
    assert (row.break_even_tasks, row.note) == (11, "")
    row = compute_cost("reviews", "in_domain", **COSTS, scratch_cost=(5.0, ""))
    assert row.break_even_tasks is None and "no less per task" in row.note
    row = compute_cost("reviews", "in_domain", **COSTS, scratch_cost=(4.0, "scratch does better"))
    assert row.note.startswith("scratch does better; ")
    assert (row.task, row.arm, row.adapt_cpu_seconds, row.pretrain_flops) == (
        "reviews",
        "in_domain",
        1,
        100,
    )


def entry(cost, share):
    return CostItem({"flops": cost}, share)


def test_shares_are_means_over_all_draws():
    users, tasks = {0, 1}, range(5)
    for count in range(1, 6):
        draws = list(itertools.combinations(tasks, count))
        hit = sum(bool(users & set(draw)) for draw in draws) / len(draws)
        assert shared_cost_probability(2, 5)(count) == pytest.approx(hit)
        assert per_task_share(5)(count) == pytest.approx(
            sum(0 in draw for draw in draws) / len(draws)
        )
    assert shared_cost_probability(2, 5)(100) == 1 and per_task_share(5)(100) == 20


def test_tuning_is_paid_by_its_updates():
    # 60 labels of each task, 2 epochs in batches of 32: 4, 8, 12 updates, and 10 at least.
    share = joint_tuning_step_fraction(10, 2.0, 32, 60, 3)
    assert [share(count) for count in (1, 2, 3, 6)] == [10 / 12, 10 / 12, 1.0, 23 / 12]


def test_amortized_cost_adds_what_each_pays_and_what_all_share():
    # Three tasks of 1, 2 and 3; two of them share 10.
    items = [
        *(entry(cost, per_task_share(3)) for cost in (1.0, 2.0, 3.0)),
        entry(10.0, shared_cost_probability(2, 3)),
    ]
    assert amortized_cost(items, "flops", 1) == pytest.approx(2 + 10 * 2 / 3)
    assert amortized_cost(items, "flops", 2) == pytest.approx(4 + 10)
    assert amortized_cost(items, "flops", 6) == pytest.approx(12 + 10)
    assert amortized_cost([*items, entry(None, per_task_share(3))], "flops", 1) is None
    assert amortized_cost(
        [*items, CostItem({"seconds": 1.0}, per_task_share(3))], "flops", 3
    ) == pytest.approx(16)


def test_break_even():
    joint = [
        entry(100.0, shared_cost_probability(2, 2)),
        entry(1.0, per_task_share(2)),
        entry(1.0, per_task_share(2)),
    ]
    scratch = [entry(20.0, per_task_share(2)), entry(22.0, per_task_share(2))]
    # 100 + K against 21 K: level at 5.
    assert break_even(joint, scratch, "flops") == BreakEven(6)
    assert break_even(scratch, joint, "flops") == BreakEven(None, 4)
    assert break_even(joint, joint, "flops") == BreakEven(None, None)
    assert break_even(scratch, [entry(43.0, per_task_share(2))], "flops") == BreakEven(1)
    far = [entry(20.0 * MAX_TASKS, per_task_share(1))]
    assert (
        break_even(
            [entry(far[0].costs["flops"] * MAX_TASKS, shared_cost_probability(1, 1))], far, "flops"
        ).first
        is None
    )
    assert break_even([entry(None, per_task_share(1))], far, "flops") == BreakEven(None, None)
