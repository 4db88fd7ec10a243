"""A run that is cut off and called again: as if it had never stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fm.errors import UserError
from fm.training import (
    BitsPerByte,
    Interrupted,
    OptimizerConfig,
    TrainConfig,
    params_digest,
    train,
    train_step,
)
from tests.training.helpers_models import ADAM, TEXT, params
from tests.training.helpers_runs import (
    MASKED,
    RUN,
    STEPS,
    Pipeline,
    PowerCut,
    assert_as_unbroken,
    go,
    lines,
    power_cut,
    terminate,
)


@pytest.mark.parametrize("at", [1, 6, 8, 22])
def test_cut_off_and_resumed_is_unbroken(tmp_path, unbroken, at):
    with pytest.raises(PowerCut):
        go(tmp_path, Pipeline(at, power_cut))
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_resuming_compiles_nothing(tmp_path):
    rule = OptimizerConfig("adamw", learning_rate=0.0321)
    with pytest.raises(PowerCut):
        go(tmp_path, Pipeline(8, power_cut), rule=rule)
    go(tmp_path, rule=rule)
    program = train_step.make_train_step(TEXT, MASKED, rule, STEPS, 1)
    assert program._cache_size() == 1  # pyright: ignore


def test_cut_off_twice(tmp_path, unbroken):
    for at in (8, 14):
        with pytest.raises(PowerCut):
            go(tmp_path, Pipeline(at, power_cut))
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_a_signal_saves_at_once_and_says_how_to_go_on(tmp_path, unbroken):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        go(tmp_path, Pipeline(7, terminate))
    assert str(caught.value) == (
        "toy: stopped by SIGTERM, step 7 of 23 is saved; the same command resumes"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / "7").is_dir()
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)


def test_a_signal_without_a_folder():
    with pytest.raises(Interrupted, match="nothing was saved"):
        go(None, Pipeline(3, terminate))


def test_finished_says_so_and_takes_no_batch(tmp_path, unbroken, capsys):
    first = go(tmp_path)
    capsys.readouterr()
    again = go(tmp_path, Pipeline(24, power_cut))
    assert_as_unbroken(again, tmp_path, unbroken)
    assert "toy: already finished at step 23 of 23" in capsys.readouterr().err
    assert 0 < again.seconds <= first.seconds


def test_other_settings_are_refused_by_name(tmp_path):
    go(tmp_path)
    before = lines(tmp_path)
    rule = OptimizerConfig("adamw", learning_rate=0.5)
    with pytest.raises(UserError) as caught:
        go(tmp_path, rule=rule, identity={"data": "others"})
    message = str(caught.value)
    assert "optimizer.learning_rate=0.02 (now 0.5)" in message
    assert "data='absent' (now 'others')" in message
    assert "model" not in message and "\n" not in message
    assert lines(tmp_path) == before


def test_other_start_parameters_are_refused(tmp_path):
    go(tmp_path)
    with pytest.raises(UserError, match="start="):
        train(
            params(TEXT, seed=5), Pipeline(), TEXT, MASKED, ADAM, RUN,
            out_dir=tmp_path, metric_unit=BitsPerByte(2.0),
        )  # fmt: skip


def test_cadence_may_change_on_the_way(tmp_path, unbroken):
    with pytest.raises(PowerCut):
        go(tmp_path, Pipeline(12, power_cut))
    got = go(tmp_path, run=TrainConfig(steps=STEPS, checkpoint_every=100, log_every=2))
    assert params_digest(got.params) == params_digest(unbroken[0].params)


KILLED = """
import pathlib, sys
from tests.training.helpers_runs import go
print("ready", flush=True)
go(pathlib.Path(sys.argv[1]))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_is_unbroken(tmp_path, unbroken):
    rng = np.random.default_rng()
    root = Path(__file__).parents[2]
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        # From before the first checkpoint to around the last.
        while not (tmp_path / "checkpoints").exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3))
        child.kill()
        child.wait()
    assert_as_unbroken(go(tmp_path), tmp_path, unbroken)
