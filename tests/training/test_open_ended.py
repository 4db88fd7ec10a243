"""Runs that go on until the validation loss is flat or the time is over."""

import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.training import BitsPerByte, params_digest, progress
from fm.training.optimizer import OptimizerConfig, learning_rate_schedule, open_ended_learning_rates
from tests.training.helpers_models import ADAM
from tests.training.helpers_runs import (
    RUN,
    PowerCut,
    ToyBatches,
    log_records,
    power_cut,
    run_toy,
)

OPEN = dataclasses.replace(
    RUN, steps=60, warmup_steps=3, log_every=1, validate_every=4, checkpoint_every=3
)
STILL = dataclasses.replace(ADAM, learning_rate=1e-12)


def rates(folder):
    return [row["learning_rate"] for row in log_records(folder) if row["kind"] == "train"]


@pytest.mark.slow
def test_the_rate_falls_to_zero_once_the_loss_is_flat(tmp_path):
    run = dataclasses.replace(OPEN, early_stopping_patience=3)
    whole = run_toy(tmp_path / "whole", run=run, optimizer=STILL)
    assert (whole.stopped_because, whole.steps) == ("flat", 20)  # 4 x 4 steps, and a fifth of all
    shares = np.array(rates(tmp_path / "whole")) / STILL.learning_rate
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, *[1] * 14, 3 / 4, 1 / 2, 1 / 4])
    # Cut off before the end is decided, and after.
    for at in (11, 19):
        folder = tmp_path / str(at)
        with pytest.raises(PowerCut):
            run_toy(folder, ToyBatches(at, power_cut), run=run, optimizer=STILL)
        cut = run_toy(folder, run=run, optimizer=STILL)
        assert log_records(folder) == log_records(tmp_path / "whole")
        assert params_digest(cut.params) == params_digest(whole.params)
        assert (cut.stopped_because, cut.steps) == ("flat", 20)
    again = run_toy(tmp_path / "11", ToyBatches(1, power_cut), run=run, optimizer=STILL)
    assert again.stopped_because == "flat" and params_digest(again.params) == params_digest(
        whole.params
    )


def test_a_small_fall_of_the_loss_is_none():
    run = dataclasses.replace(OPEN, early_stopping_patience=2, min_improvement=0.01)
    tracker = progress.ProgressTracker(
        run,
        BitsPerByte(1.0),
        progress=progress.ProgressCounters(step=8),
        gemm_flops_per_second=None,
        out_dir=None,
    )
    for loss, since in ((2.0, 0), (1.97, 0), (1.96, 1), (1.95, 0), (1.949, 1), (1.948, 2)):
        assert not tracker.progress.stopped_because
        tracker.add_validation({"loss": loss})
        assert tracker.progress.validations_since_best == since
        tracker.decide_end(1.0)
    assert tracker.progress.stopped_because == "flat" and tracker.total_steps == 10
    negative = progress.ProgressCounters(best_loss=-1.0)  # of a density
    tracker.progress = negative
    for loss, since in ((-1.005, 1), (-1.02, 0)):
        tracker.add_validation({"loss": loss})
        assert negative.validations_since_best == since


@pytest.mark.slow
def test_a_run_that_never_gets_flat_takes_all_steps(tmp_path):
    result = run_toy(tmp_path, run=OPEN, optimizer=STILL)
    assert (result.steps, result.stopped_because) == (60, "steps")
    schedule = learning_rate_schedule(
        OptimizerConfig("adamw", learning_rate=1e-12, warmup=3 / 60), 1e-12, 60
    )
    assert rates(tmp_path) == pytest.approx([float(schedule(n)) for n in range(60)])


@pytest.mark.parametrize(("warmup_steps", "steps"), [(3, 20), (None, 20)])
def test_a_run_ends_by_time(monkeypatch, warmup_steps, steps):
    monkeypatch.setattr("fm.training.train_loop.Trainer._seconds", lambda self: [(self.step, 0.0)])
    run = dataclasses.replace(OPEN, warmup_steps=warmup_steps, max_seconds=20.0, log_every=2)
    result = run_toy(None, run=run)
    assert (result.steps, result.stopped_because) == (steps, "time")


def test_rates_at_the_ends():
    adam = OptimizerConfig(learning_rate=2.0, adam_learning_rate=1.0)

    def at(step, cooldown_from=None, total_steps=100):
        return open_ended_learning_rates(
            adam, step, warmup_steps=4, cooldown_from=cooldown_from, total_steps=total_steps
        ).tolist()

    assert at(0) == [0, 0] and at(2) == [1, 0.5] and at(99) == [2, 1]
    assert at(99, 80) == pytest.approx([0.1, 0.05]) and at(80, 80) == [2, 1]
    assert at(120, 80) == [0, 0]


@pytest.mark.parametrize(
    "changes", [{"max_seconds": 0.0}, {"min_improvement": -0.1}, {"warmup_steps": 0}]
)
def test_limits_that_make_no_sense_are_refused(changes):
    with pytest.raises(UserError, match="must be"):
        dataclasses.replace(RUN, **changes)


def test_checkpoints_from_before_there_were_such_runs_are_read():
    old = dataclasses.asdict(progress.ProgressCounters(step=3))
    del old["stopped_because"], old["cooldown_from"]
    assert progress.ProgressCounters(**old).cooldown_from is None
