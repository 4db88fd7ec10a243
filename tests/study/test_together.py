"""Runs side by side: in order, errors heard, what has not begun left alone."""

import threading
import time

import pytest

from fm.errors import UserError
from fm.study.cells import parallel_map


def test_results_come_in_the_order_of_the_items():
    assert parallel_map(lambda n: (time.sleep(0.02 * (3 - n)), n)[1], range(4)) == [0, 1, 2, 3]


def test_several_run_at_a_time():
    both = threading.Barrier(2, timeout=30)
    assert parallel_map(lambda n: both.wait() >= 0 and n, [1, 2]) == [1, 2]


def test_an_error_is_raised_and_the_rest_left():
    begun = []

    def run(n):
        begun.append(n)
        if n == 0:
            raise UserError("no")
        time.sleep(0.05)

    with pytest.raises(UserError, match="no"):
        parallel_map(run, range(1000))
    assert len(begun) < 100
