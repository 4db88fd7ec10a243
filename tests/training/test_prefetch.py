"""Batches that are read ahead: the same run to the bit, with the same errors and signals."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.parallel.mesh import MeshConfig
from fm.training import Interrupted, params_digest, train_loop
from fm.training.prefetch import AHEAD, Prefetcher
from tests.training.helpers_models import batches
from tests.training.helpers_runs import (
    MASKED,
    RUN,
    PowerCut,
    ToyBatches,
    assert_same_run,
    power_cut,
    run_dry,
    run_toy,
    stall,
    terminate,
)


class FromDisk(ToyBatches):
    """Toy batches that the loop reads ahead, on a CPU too."""

    from_disk = True


def gone(_):
    raise FileNotFoundError(2, "No such file or directory", "rows-3")


def take(prefetcher):
    return prefetcher.take(10.0, "stalled")


def test_a_run_that_reads_ahead_equals_one_that_does_not(tmp_path, uninterrupted):
    stream = FromDisk()
    assert_same_run(run_toy(tmp_path, stream), tmp_path, uninterrupted)
    # What was read ahead of the last step is given back.
    reference = ToyBatches()
    for _ in range(RUN.steps):
        next(reference)
    assert stream.get_state() == reference.get_state()


@pytest.mark.parametrize("at", [6, 13, 14])
def test_resumed_is_uninterrupted(tmp_path, uninterrupted, at):
    with pytest.raises(PowerCut):
        run_toy(tmp_path, FromDisk(at, power_cut))
    assert_same_run(run_toy(tmp_path, FromDisk()), tmp_path, uninterrupted)


def test_a_signal_saves_the_position_of_the_batches_taken(tmp_path, uninterrupted):
    with pytest.raises(Interrupted, match=r"toy: stopped by SIGTERM, step \d+ of 23 is saved"):
        run_toy(tmp_path, FromDisk(10, terminate))
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (stall, "the data stalls, no batch in 1 s after 12 of them; step 12 is saved"),
        (run_dry, "the data ends after 12 batches; steps=23 needs more epochs; step 12 is saved"),
        (gone, r"no batch for step 13 \(rows-3: No such file or directory\); step 12 is saved"),
    ],
)
def test_errors_of_the_data_come_with_their_step(tmp_path, uninterrupted, event, message):
    hasty = dataclasses.replace(RUN, batch_timeout_seconds=1.0)
    with pytest.raises(UserError, match=f"toy: {message}, and the same command resumes"):
        run_toy(tmp_path, FromDisk(13, event), run=hasty)
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_on_a_mesh(tmp_path, uninterrupted):
    class Sharded(FromDisk):
        def shard(self, index, count):
            assert (index, count) == (0, 1)
            return self

    class InMemory(Sharded):
        from_disk = False

    mesh = MeshConfig().build()
    ahead, reference = (run_toy(None, each(), mesh=mesh) for each in (Sharded, InMemory))
    assert params_digest(ahead.params) == params_digest(reference.params)


def test_reads_ahead_so_many_and_no_more():
    stream, placed = ToyBatches(), []
    prefetcher = Prefetcher(stream, ahead=AHEAD, place=lambda batch: placed.append(batch) or batch)
    reference = batches()
    for n in range(4):
        batch, own = take(prefetcher)
        assert own is batch
        np.testing.assert_array_equal(batch["tokens"], next(reference)["tokens"])
        assert prefetcher.get_state()["taken"] == n + 1
    deadline = time.monotonic() + 10
    while stream.get_state()["taken"] < 4 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert stream.get_state()["taken"] == len(placed) == 4 + AHEAD
    prefetcher.close()
    assert stream.get_state()["taken"] == 4
    np.testing.assert_array_equal(next(stream)["tokens"], next(reference)["tokens"])


@pytest.mark.parametrize("ahead", [0, AHEAD])
def test_tells_the_time_waited(ahead):
    def slow(batch):
        time.sleep(0.2)
        return batch

    prefetcher = Prefetcher(ToyBatches(1, slow), ahead=ahead)
    take(prefetcher)
    assert prefetcher.seconds_waited >= 0.1
    prefetcher.close()


def test_no_thread_is_left(tmp_path):
    before = set(threading.enumerate())  # data that stalled elsewhere may still hold a thread
    run_toy(tmp_path, FromDisk())
    assert not [each for each in set(threading.enumerate()) - before if each.name == "prefetch"]


def test_in_memory_on_a_cpu_nothing_is_read_ahead(monkeypatch):
    made = []

    def record(*arguments, **options):
        made.append(options.get("ahead", 0))
        return Prefetcher(*arguments, **options)

    monkeypatch.setattr(train_loop, "Prefetcher", record)
    run_toy(None, ToyBatches(), run=dataclasses.replace(RUN, steps=2), objective=MASKED)
    run_toy(None, FromDisk(), run=dataclasses.replace(RUN, steps=2), objective=MASKED)
    assert made == [0, AHEAD] and jax.default_backend() == "cpu"
