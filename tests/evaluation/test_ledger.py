import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.evaluation.cost import break_even_tasks, compute_cost, matching_scratch_flops
from fm.evaluation.label_efficiency import LabelEfficiency

COST = st.integers(0, 10**15)
BILL = {
    "pretrain_flops": 100.0,
    "pretrain_seconds": 10.0,
    "adapt_flops": 5.0,
    "adapt_seconds": 1.0,
}


@given(COST, COST, COST)
def test_break_even_is_the_smallest_number_of_tasks(pretrain, shared, distinct):
    tasks = break_even_tasks(pretrain, shared, distinct)
    if tasks is None:
        assert distinct <= shared
    else:
        assert pretrain + tasks * shared < tasks * distinct
        assert not pretrain + (tasks - 1) * shared < (tasks - 1) * distinct


@pytest.mark.parametrize(
    ("pretrain", "shared", "distinct", "expected"),
    [
        (100, 1, 11, 11),  # ten tasks only draw level
        (101, 1, 11, 11),
        (0, 1, 2, 1),  # somebody else paid
        (0, 2, 2, None),
        (100, 3, 2, None),
        (1e21, 1e15, 2e15, 1_000_001),
    ],
)
def test_break_even_by_hand(pretrain, shared, distinct, expected):
    assert break_even_tasks(pretrain, shared, distinct) == expected


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_break_even_refuses_impossible_costs(cost):
    with pytest.raises(ValueError, match="finite and not negative"):
        break_even_tasks(cost, 1, 2)


def test_distinct_network_is_priced_where_it_is_as_good():
    # Half way between 100 and 400 labels in the logarithm: half way between 10 and 90 FLOPs too.
    flops, note = matching_scratch_flops(
        [25, 100, 400], [5, 10, 90], 50, LabelEfficiency(4.0, 3.0, 5.0, None)
    )
    assert (flops, note) == (pytest.approx(30), "")


def test_distinct_network_that_never_got_there_has_no_price():
    above = LabelEfficiency(16.0, 16.0, None, "above")
    flops, note = matching_scratch_flops([25, 100, 400], [5, 10, 90], 25, above)
    assert flops is None
    assert "never reached" in note and "400 labels" in note
    row = compute_cost("reviews", "in_domain", **BILL, scratch_cost=(flops, note))
    assert row.break_even_tasks is None and row.note == note


def test_distinct_network_that_was_better_at_once_costs_the_smallest_budget():
    below = LabelEfficiency(0.25, None, 0.25, "below")
    flops, note = matching_scratch_flops([25, 100, 400], [5, 10, 90], 100, below)
    assert flops == pytest.approx(5)
    assert "25 labels already" in note


def test_row_breaks_even_or_says_why_not():
    row = compute_cost("reviews", "in_domain", **BILL, scratch_cost=(15.0, ""))
    assert (row.break_even_tasks, row.note) == (11, "")
    row = compute_cost("reviews", "in_domain", **BILL, scratch_cost=(5.0, ""))
    assert row.break_even_tasks is None and "no less per task" in row.note
    row = compute_cost("reviews", "in_domain", **BILL, scratch_cost=(4.0, "scratch does better"))
    assert row.note.startswith("scratch does better; ")
    assert (row.task, row.arm, row.adapt_seconds, row.pretrain_flops) == (
        "reviews",
        "in_domain",
        1,
        100,
    )
