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
from fm.study.adaptation import Predictions
from fm.study.cells import parallel_map

CELL = cells.Cell(
    *("digits", "in_domain", 20, [{"l2": 0.1}], [[]], np.array([[1, 2, 3]])),
    *(np.full((1, 3, 2), 0.25), [5.0], 0.5, None, 0.0),
)


@pytest.fixture
def path(tmp_path):
    """A cell that was kept."""
    path = tmp_path / "digits-self-20.json"
    cells._write(path, CELL)
    return path


def test_a_cell_comes_back(path):
    back = cells._read(path)
    np.testing.assert_array_equal(back.predictions, CELL.predictions)
    np.testing.assert_array_equal(back.confidences, CELL.confidences)
    arrays = {"predictions": None, "confidences": None}
    plain = [dataclasses.asdict(each) | arrays for each in (back, CELL)]
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


class Guesser:
    """An arm that is busy for a while once, and whose best setting differs from seed to seed."""

    def __init__(self, busy=0.3):
        self.busy, self.searched = busy, []

    def prepare(self, seeds):
        return 1.5

    def search(self, train_idx, labels, seed):
        self.searched.append((seed, tuple(train_idx)))
        values = [0.5, 0.7] if seed % 2 else [0.7, 0.7]
        return [
            {"config": {"method": n}, "validation": value, "last_gain": 0.03 * n, "flops": 12.0}
            for n, value in enumerate(values)
        ]

    def fit_predict(self, train_idx, labels, seed, hparams):
        begun, busy = time.process_time(), 0.02 + self.busy
        self.busy = 0.0
        while time.process_time() < begun + busy:
            pass
        probabilities = np.array([[0.25, 0.75], [0.9, 0.1]], np.float32)
        return Predictions(np.array([1, 0]), probabilities)

    def fit_flops(self, num_labels, hparams):
        return float(num_labels)


@pytest.fixture
def task():
    """A task of eight labels and two test items."""
    idx = np.arange(8)
    return types.SimpleNamespace(
        name="fruit",
        strata=idx % 2,
        train_idx=(idx, idx[::-1], idx),
        pool_rows=lambda rows: rows,
        test=types.SimpleNamespace(labels=np.array([0, 0])),
        task_type=types.SimpleNamespace(predicts_classes=True),
    )


def test_each_seed_chooses_on_its_own_labels(task, tmp_path):
    arm = Guesser()
    cell = cells.run_cell(task, "scratch", arm, 4, tmp_path)
    assert [hparams["method"] for hparams in cell.hparams] == [0, 1, 0]
    assert dict(arm.searched) == {0: (0, 1, 2, 3), 1: (7, 6, 5, 4), 2: (0, 1, 2, 3)}
    assert cell.train_flops == [4 + 2 * 12.0] * 3  # the fit and two trials
    np.testing.assert_array_equal(cell.confidences, [[[0.75, 0.25], [0.9, 0.9]]] * 3)
    assert not cell.still_improving  # a gain of 0.03 in one seed of three
    assert dataclasses.replace(cell, hparams=[{"method": 1}] * 3).still_improving


@pytest.mark.parametrize("validation", [0.7, None])
def test_a_single_setting_is_a_trial_if_it_was_scored(task, tmp_path, validation):
    arm = Guesser()
    trial = {"config": {"method": 1}, "validation": validation, "last_gain": 0.03}
    arm.search = lambda *_: [trial]
    cell = cells.run_cell(task, "scratch", arm, 4, tmp_path)
    assert cell.trials == [[trial] if validation else []] * 3
    assert cell.still_improving == bool(validation)


def test_an_arm_with_nothing_to_choose_is_not_searched(task, tmp_path):
    arm = Guesser(busy=0.0)
    arm.only_setting = lambda num_labels: {"method": num_labels}
    cell = cells.run_cell(task, "guesser", arm, 2, tmp_path)
    assert arm.searched == [] and cell.hparams == [{"method": 2}] * len(cell.hparams)
    assert not any(cell.trials)
    arm.only_setting = lambda num_labels: None
    assert cells.run_cell(task, "guesser", arm, 2, tmp_path).trials[0] and arm.searched


def test_cpu_seconds_leave_out_what_is_paid_once(task, tmp_path):
    found = [cells.run_cell(task, "scratch", Guesser(busy), 4, tmp_path) for busy in (0.0, 0.3)]
    assert all(cell.cpu_seconds < 0.2 for cell in found)
    assert found[1].once_cpu_seconds > 0.2 and found[1].feature_cpu_seconds == 1.5
    shared = Guesser()
    shared.share_cpu_seconds = lambda num_labels, cpu_seconds: 7.0
    assert cells.run_cell(task, "scratch", shared, 4, tmp_path).cpu_seconds == 7.0


def test_one_seed_has_all_of_it_in_its_seconds(task, tmp_path):
    task.train_idx = task.train_idx[:1]
    cell = cells.run_cell(task, "scratch", Guesser(), 4, tmp_path)
    assert cell.cpu_seconds > 0.3 and cell.once_cpu_seconds is None


def test_later_cells_of_an_arm_have_nothing_computed_once(task, tmp_path):
    cell = cells.run_cell(task, "scratch", Guesser(), 4, tmp_path, is_first=False)
    assert cell.once_cpu_seconds == 0.0 and len(cell.predictions) == len(task.train_idx)


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
        inside = parallel_map(limited, range(2))
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
