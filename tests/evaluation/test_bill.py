"""Bills of K tasks against sums done by hand."""

import itertools

import pytest

from fm.evaluation.cost import (
    MAX_TASKS,
    BreakEven,
    CostItem,
    amortized_cost,
    break_even,
    joint_tuning_share,
    per_task_share,
    shared_share,
)


def entry(cost, share):
    return CostItem({"flops": cost}, share)


def test_shares_are_means_over_all_draws():
    users, tasks = {0, 1}, range(5)
    for count in range(1, 6):
        draws = list(itertools.combinations(tasks, count))
        hit = sum(bool(users & set(draw)) for draw in draws) / len(draws)
        assert shared_share(2, 5)(count) == pytest.approx(hit)
        assert per_task_share(5)(count) == pytest.approx(
            sum(0 in draw for draw in draws) / len(draws)
        )
    assert shared_share(2, 5)(100) == 1 and per_task_share(5)(100) == 20


def test_tuning_is_paid_by_its_updates():
    # 60 labels of each task, 2 epochs in batches of 32: 4, 8, 12 updates, and 10 at least.
    share = joint_tuning_share(10, 2.0, 32, 60, 3)
    assert [share(count) for count in (1, 2, 3, 6)] == [10 / 12, 10 / 12, 1.0, 23 / 12]


def test_a_bill_adds_what_each_pays_and_what_all_share():
    # Three tasks of 1, 2 and 3; two of them share 10.
    bill = [
        *(entry(cost, per_task_share(3)) for cost in (1.0, 2.0, 3.0)),
        entry(10.0, shared_share(2, 3)),
    ]
    assert amortized_cost(bill, "flops", 1) == pytest.approx(2 + 10 * 2 / 3)
    assert amortized_cost(bill, "flops", 2) == pytest.approx(4 + 10)
    assert amortized_cost(bill, "flops", 6) == pytest.approx(12 + 10)
    assert amortized_cost([*bill, entry(None, per_task_share(3))], "flops", 1) is None
    assert amortized_cost(
        [*bill, CostItem({"seconds": 1.0}, per_task_share(3))], "flops", 3
    ) == pytest.approx(16)


def test_break_even():
    joint = [
        entry(100.0, shared_share(2, 2)),
        entry(1.0, per_task_share(2)),
        entry(1.0, per_task_share(2)),
    ]
    distinct = [entry(20.0, per_task_share(2)), entry(22.0, per_task_share(2))]
    # 100 + K against 21 K: level at 5.
    assert break_even(joint, distinct, "flops") == BreakEven(6)
    assert break_even(distinct, joint, "flops") == BreakEven(None, 4)
    assert break_even(joint, joint, "flops") == BreakEven(None, None)
    assert break_even(distinct, [entry(43.0, per_task_share(2))], "flops") == BreakEven(1)
    far = [entry(20.0 * MAX_TASKS, per_task_share(1))]
    assert (
        break_even(
            [entry(far[0].costs["flops"] * MAX_TASKS, shared_share(1, 1))], far, "flops"
        ).first
        is None
    )
    assert break_even([entry(None, per_task_share(1))], far, "flops") == BreakEven(None, None)
