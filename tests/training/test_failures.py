"""A step that fails for lack of data or memory loses nothing of those before it."""

import dataclasses
import errno

import jax
import pytest

from fm.errors import UserError
from fm.training import train_step
from tests.training.helpers_models import batches
from tests.training.helpers_runs import (
    RUN,
    ToyBatches,
    assert_same_run,
    log_records,
    run_dry,
    run_toy,
    stall,
)
from tests.training.helpers_sweep import digests, run_sweep, three_trials

HASTY = dataclasses.replace(RUN, batch_timeout_seconds=1.0)


def saved(out):
    return sorted(int(each.name) for each in (out / "checkpoints").iterdir())


def test_data_that_stalls(tmp_path, uninterrupted):
    with pytest.raises(UserError) as caught:
        run_toy(tmp_path, ToyBatches(13, stall), run=HASTY)
    assert str(caught.value) == (
        "toy: the data stalls, no batch in 1 s after 12 of them; "
        "step 12 is saved, and the same command resumes from there"
    )
    # What was taken of the batch that never came is taken again.
    assert saved(tmp_path) == [10, 12]
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_data_that_stall_in_the_middle_of_several_formats(tmp_path):
    whole = run_toy(tmp_path / "whole", Pair())
    with pytest.raises(UserError, match="step 7 is saved"):
        run_toy(
            tmp_path / "cut",
            Pair(8, stall),
            run=HASTY,
        )
    assert_same_run(
        run_toy(tmp_path / "cut", Pair()),
        tmp_path / "cut",
        (whole, log_records(tmp_path / "whole")),
    )


class Pair(ToyBatches):
    """Each batch comes of two streams, the second of which stalls when the first has moved on."""

    def __init__(self, *event):
        super().__init__(*event)
        self._first = batches(seed=4)

    def __next__(self):
        return next(self._first) | super().__next__()

    def get_state(self):
        return super().get_state() | {"first": self._first.get_state()}

    def set_state(self, state):
        super().set_state(state)
        self._first.set_state(state["first"])


def gone(_):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "data/a.png")


def exhausted(_):
    raise MemoryError("Unable to allocate 74.5 GiB")


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (gone, "no batch for step 13 (data/a.png: No such file or directory)"),
        (run_dry, "the data ends after 12 batches; steps=23 needs more epochs"),
        (exhausted, "out of memory at step 13 (Unable to allocate 74.5 GiB)"),
    ],
)
def test_data_that_cannot_be_read_lose_nothing(tmp_path, uninterrupted, happens, told):
    with pytest.raises(UserError) as caught:
        run_toy(tmp_path, ToyBatches(13, happens))
    message = str(caught.value)
    assert message.startswith(f"toy: {told}; step 12 is saved, and the same command resumes")
    assert ("batch_size" in message) == (happens is exhausted)
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_what_cannot_be_saved_then_is_told_too(tmp_path, uninterrupted, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(_):
        monkeypatch.setattr("fm.training.train_loop.CheckpointStore.save", full)
        raise MemoryError

    with pytest.raises(UserError, match=r"out of memory at step 13 .*step 12 could not be saved"):
        run_toy(tmp_path, ToyBatches(13, fill))
    monkeypatch.undo()
    assert saved(tmp_path) == [5, 10]
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


OOM = "RESOURCE_EXHAUSTED: Out of memory allocating 16004000000 bytes.\nmore"


def failing(monkeypatch, at, *, donates):
    """The `at`-th step runs out of memory, before or after it has taken the state for its own."""
    honest, calls = train_step.make_train_step, []

    def make_train_step(*arguments):
        step = honest(*arguments)

        def counted(state, *rest):
            calls.append(None)
            if len(calls) == at:
                if donates:
                    step(state, *rest)
                raise jax.errors.JaxRuntimeError(OOM)
            return step(state, *rest)

        return counted

    monkeypatch.setattr("fm.training.train_loop.train_step.make_train_step", make_train_step)


@pytest.mark.parametrize(
    ("at", "donates", "kept", "steps"),
    [
        (13, False, "step 12 is saved, and the same command resumes from there", [10, 12]),
        (13, True, "the checkpoint of step 10 is kept", [5, 10]),
        (1, False, "there is no checkpoint yet", []),
    ],
)
def test_a_step_out_of_memory(tmp_path, uninterrupted, monkeypatch, at, donates, kept, steps):
    failing(monkeypatch, at, donates=donates)
    with pytest.raises(UserError) as caught:
        run_toy(tmp_path)
    assert str(caught.value) == (
        f"toy: out of memory at step {at} (RESOURCE_EXHAUSTED: Out of memory allocating "
        f"16004000000 bytes.); {kept}; make batch_size or the model smaller, or use a machine "
        "with more memory"
    )
    monkeypatch.undo()
    assert saved(tmp_path) == steps
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_out_of_memory_told_late_or_in_validation(tmp_path, uninterrupted, monkeypatch):
    # On a CPU a step that finds no memory is told of where its metrics are read.
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(OOM)

    monkeypatch.setattr("fm.training.train_loop.validate", refuse)
    with pytest.raises(UserError, match=r"toy: out of memory .*step 5 is kept; make batch_size"):
        run_toy(tmp_path)
    monkeypatch.undo()
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_another_failure_of_the_machine_is_not_hidden(tmp_path, monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr("fm.training.train_loop.train_step.make_train_step", lambda *_: refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        run_toy(tmp_path)


@pytest.mark.slow
def test_a_trial_of_a_vmapped_sweep_that_stalls(tmp_path):
    want = digests(run_sweep(three_trials()))
    trials = three_trials(tmp_path, at=6, event=stall, run={"batch_timeout_seconds": 1.0})
    with pytest.raises(UserError) as caught:
        run_sweep(trials, tmp_path)
    assert str(caught.value) == (
        "toy: seed 1: the data stalls, no batch in 1 s after 5 of them; "
        "step 5 is saved, and the same command resumes from there"
    )
    # The trial before it had taken its batch already.
    assert digests(run_sweep(three_trials(tmp_path), tmp_path)) == want


@pytest.mark.slow
def test_a_vmapped_sweep_out_of_memory(tmp_path, monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(OOM)

    monkeypatch.setattr("fm.training.sweep.make_sweep_step", lambda *_: refuse)
    with pytest.raises(UserError, match=r"toy: out of memory at step 1 .*no checkpoint yet; make"):
        run_sweep(three_trials(tmp_path), tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"out of memory at step 5 .*; step 4 is saved"):
        run_sweep(three_trials(tmp_path, at=5, event=exhausted), tmp_path)
    found = run_sweep(three_trials(tmp_path), tmp_path)
    assert digests(found) == digests(run_sweep(three_trials()))
