"""Cells are saved and read back; independent runs are mapped in parallel."""

import contextlib
import dataclasses
import threading
import time
import types

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fm.errors import UserError
from fm.study import cells
from fm.study.cells import parallel_map

CELL = cells.Cell("digits", "in_domain", 20, {"l2": 0.1}, [], np.array([[1, 2, 3]]), 5.0, 0.5)


@pytest.fixture
def path(tmp_path):
    """A cell that was kept."""
    path = tmp_path / "digits-self-20.json"
    cells._write(path, CELL)
    return path


def test_a_cell_comes_back(path):
    back = cells._read(path)
    np.testing.assert_array_equal(back.predictions, CELL.predictions)
    plain = [dataclasses.asdict(each) | {"predictions": None} for each in (back, CELL)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"value": {"x": 1}}'])
def test_a_damaged_cell_is_told_by_its_name(content, path):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"digits-self-20.json is damaged; delete it"):
        cells._read(path)


def test_a_cell_with_another_answer_is_damaged(path):
    path.write_bytes(path.read_bytes().replace(b"[1, 2, 3]", b"[1, 2, 2]"))
    with pytest.raises(UserError, match=r"digits-self-20.json is damaged; delete it"):
        cells._read(path)


def test_results_come_in_the_order_of_the_items():
    assert parallel_map(lambda n: (time.sleep(0.02 * (3 - n)), n)[1], range(4)) == [0, 1, 2, 3]


class FirstCompiles:
    """An arm whose first fit, of all tasks' and budgets', takes a second more."""

    def __init__(self):
        self.fitted = []

    def grid(self):
        return [{"method": "full"}]

    def fit_predict(self, train_idx, labels, seed, hparams):
        if not self.fitted:
            time.sleep(0.4)
        self.fitted.append(seed)
        time.sleep(0.02)
        return np.zeros(2)

    def fit_flops(self, num_labels, hparams):
        return 1.0


def test_seconds_do_not_depend_on_who_came_first(tmp_path):
    idx = np.arange(8)
    task = types.SimpleNamespace(
        name="fruit", strata=idx % 2, train_idx=(idx, idx), pool_rows=lambda rows: rows
    )
    arm = FirstCompiles()
    found = [cells.run_cell(task, "scratch", arm, n, 1, tmp_path) for n in (4, 8)]
    assert all(0.02 <= cell.seconds < 0.3 for cell in found)
    arm.fit_seconds = lambda num_labels, hparams: 7.0
    assert cells.run_cell(task, "scratch", arm, 4, 1, tmp_path).seconds == 7.0


def test_overlapping_limits_of_blas_threads_leave_the_process_as_it_was():
    np.ones((2, 2)) @ np.ones((2, 2))

    def num_threads():
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    begun = [threading.Event() for _ in range(2)]

    def limited(n):  # the first to begin is the first to end
        with contextlib.ExitStack() as stack:
            if n:
                begun[0].wait(10)
            stack.enter_context(threadpool_limits(1))
            begun[n].set()
            begun[1].wait(10)
            if n:
                time.sleep(0.05)
        return num_threads()

    with threadpool_limits(2):
        before = num_threads()
        inside = parallel_map(limited, range(2), blas_threads=1)
        assert num_threads() == before and inside == [[1] * len(before)] * 2


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
