"""A step that cannot be taken, for want of data or memory, loses nothing of those before it."""

import dataclasses
import errno

import jax
import pytest

from fm.errors import UserError
from fm.training import train_step as step
from tests.training import test_grid
from tests.training.helpers_models import batches
from tests.training.helpers_runs import (
    RUN,
    Pipeline,
    assert_as_unbroken,
    go,
    lines,
    run_dry,
    stall,
)


def saved(out):
    return sorted(int(each.name) for each in (out / "checkpoints").iterdir())


def test_data_that_stalls(tmp_path, unbroken):
    with pytest.raises(UserError) as caught:
        go(tmp_path, Pipeline(13, stall), run=dataclasses.replace(RUN, batch_timeout_seconds=1.0))
    assert str(caught.value) == (
        "toy: the data stalls, no batch in 1 s after 12 of them; "
        "step 12 is saved, and the same command goes on from there"
    )
    # What was taken of the batch that never came is taken again.
    assert saved(tmp_path) == [10, 12]
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_data_that_stall_in_the_middle_of_several_formats(tmp_path):
    whole = go(tmp_path / "whole", Pair())
    with pytest.raises(UserError, match="step 7 is saved"):
        go(
            tmp_path / "cut",
            Pair(8, stall),
            run=dataclasses.replace(RUN, batch_timeout_seconds=1.0),
        )
    assert_as_unbroken(
        go(tmp_path / "cut", Pair()), tmp_path / "cut", (whole, lines(tmp_path / "whole"))
    )


class Pair(Pipeline):
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
def test_data_that_cannot_be_read_lose_nothing(tmp_path, unbroken, happens, told):
    with pytest.raises(UserError) as caught:
        go(tmp_path, Pipeline(13, happens))
    message = str(caught.value)
    assert message.startswith(f"toy: {told}; step 12 is saved, and the same command goes on")
    assert ("batch_size" in message) == (happens is exhausted)
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_what_cannot_be_saved_then_is_told_too(tmp_path, unbroken, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(_):
        monkeypatch.setattr("fm.training.train_loop.Checkpoints.save", full)
        raise MemoryError

    with pytest.raises(UserError, match=r"out of memory at step 13 .*step 12 could not be saved"):
        go(tmp_path, Pipeline(13, fill))
    monkeypatch.undo()
    assert saved(tmp_path) == [5, 10]
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


OOM = "RESOURCE_EXHAUSTED: Out of memory allocating 16004000000 bytes.\nmore"


def failing(monkeypatch, at, *, donates):
    """The `at`-th step runs out of memory, before or after it has taken the state for its own."""
    honest, calls = step.make_train_step, []

    def train_step(*arguments):
        do_step = honest(*arguments)

        def counted(state, *rest):
            calls.append(None)
            if len(calls) == at:
                if donates:
                    do_step(state, *rest)
                raise jax.errors.JaxRuntimeError(OOM)
            return do_step(state, *rest)

        return counted

    monkeypatch.setattr("fm.training.train_loop.step.train_step", train_step)


@pytest.mark.parametrize(
    ("at", "donates", "kept", "steps"),
    [
        (13, False, "step 12 is saved, and the same command goes on from there", [10, 12]),
        (13, True, "the checkpoint of step 10 is kept", [5, 10]),
        (1, False, "there is no checkpoint yet", []),
    ],
)
def test_a_step_out_of_memory(tmp_path, unbroken, monkeypatch, at, donates, kept, steps):
    failing(monkeypatch, at, donates=donates)
    with pytest.raises(UserError) as caught:
        go(tmp_path)
    assert str(caught.value) == (
        f"toy: out of memory at step {at} (RESOURCE_EXHAUSTED: Out of memory allocating "
        f"16004000000 bytes.); {kept}; make batch_size or the model smaller, or take a machine "
        "with more"
    )
    monkeypatch.undo()
    assert saved(tmp_path) == steps
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_out_of_memory_told_late_or_in_validation(tmp_path, unbroken, monkeypatch):
    # On a CPU a step that finds no memory is told of where its metrics are read.
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(OOM)

    monkeypatch.setattr("fm.training.train_loop.validate", refuse)
    with pytest.raises(UserError, match=r"toy: out of memory .*step 5 is kept; make batch_size"):
        go(tmp_path)
    monkeypatch.undo()
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_another_failure_of_the_machine_is_not_hidden(tmp_path, monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr("fm.training.train_loop.step.train_step", lambda *_: refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        go(tmp_path)


def test_a_member_of_a_grid_that_stalls(tmp_path):
    want = test_grid.go(test_grid.three())
    team = test_grid.three(tmp_path, at=6, happens=stall)
    hasty = dataclasses.replace(team[1].train_config, batch_timeout_seconds=1.0)
    team[1] = dataclasses.replace(team[1], train_config=hasty)
    with pytest.raises(UserError) as caught:
        test_grid.go(team, tmp_path)
    assert str(caught.value) == (
        "toy: seed 1: the data stalls, no batch in 1 s after 5 of them; "
        "step 5 is saved, and the same command goes on from there"
    )
    # The member before it had taken its batch already.
    assert test_grid.digests(test_grid.go(test_grid.three(tmp_path), tmp_path)) == (
        test_grid.digests(want)
    )


def test_a_grid_out_of_memory(tmp_path, monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(OOM)

    monkeypatch.setattr("fm.training.sweep.members.members_step", lambda *_: refuse)
    with pytest.raises(UserError, match=r"toy: out of memory at step 1 .*no checkpoint yet; make"):
        test_grid.go(test_grid.three(tmp_path), tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"out of memory at step 5 .*; step 4 is saved"):
        test_grid.go(test_grid.three(tmp_path, at=5, happens=exhausted), tmp_path)
    got = test_grid.go(test_grid.three(tmp_path), tmp_path)
    assert test_grid.digests(got) == test_grid.digests(test_grid.go(test_grid.three()))
