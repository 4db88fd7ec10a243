"""The training loop: it learns, logs, stops well, and resumes as if uninterrupted."""

import dataclasses
import errno
import os
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
    BitsPerDimension,
    Interrupted,
    OptimizerConfig,
    PretrainingObjective,
    TrainConfig,
    params_digest,
    train,
    train_loop,
    train_step,
)
from tests.training.helpers_models import ADAM, IMAGE, NEXT, TEXT, batches, images, params
from tests.training.helpers_runs import (
    MASKED,
    RUN,
    STEPS,
    PowerCut,
    ToyBatches,
    assert_same_run,
    log_records,
    poison,
    power_cut,
    run_dry,
    run_toy,
    terminate,
)


def test_learns(tmp_path):
    got = run_toy(None, run=TrainConfig(steps=150, log_every=50), objective=NEXT, validation=None)
    assert got.curve["value"][-1] < 0.3 * got.curve["value"][0]
    assert got.curve["validation"] == []


def test_learns_images():
    class Images(ToyBatches):
        def __next__(self):
            return images()

    got = train(
        params(IMAGE, zeros=True),
        Images(),
        IMAGE,
        PretrainingObjective(causal_lm=0.5, masked_lm=0.5),
        OptimizerConfig("adamw", learning_rate=0.01),
        TrainConfig(steps=60, log_every=20),
        out_dir=None,
        metric_unit=BitsPerDimension(),
    )
    assert got.curve["value"][-1] < got.curve["value"][0]


def test_the_record_of_a_run(uninterrupted):
    result, records = uninterrupted
    assert [r["step"] for r in records if r["kind"] == "train"] == [4, 8, 12, 16, 20, 23]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [10, 20, 23]
    first = records[0]
    assert set(first) == {
        "kind", "step", "tokens", "loss", "masked_lm_nats", "bits_per_byte",
        "grad_norm", "learning_rate",
    }  # fmt: skip
    assert first["bits_per_byte"] == pytest.approx(first["loss"] / 2 / np.log(2))
    assert result.curve["tokens"][-1] == result.tokens == result.curve["validation_tokens"][-1]
    stream = batches()
    assert result.tokens == sum(np.count_nonzero(next(stream)["segments"]) for _ in range(STEPS))
    assert result.seconds > result.compile_seconds > 0
    assert result.flops > 0 and result.steps == STEPS


def test_without_a_folder_nothing_is_written_and_the_result_is_the_same(
    tmp_path, uninterrupted, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    got = run_toy(None)
    assert params_digest(got.params) == params_digest(uninterrupted[0].params)
    assert got.curve == uninterrupted[0].curve
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_halts_and_keeps_the_last_good_one(tmp_path):
    with pytest.raises(UserError, match=r"nan .* at step 7 .* step 5 is kept") as caught:
        run_toy(tmp_path, ToyBatches(7, poison))
    assert "\n" not in str(caught.value)
    kept = tmp_path / "checkpoints"
    assert [each.name for each in kept.iterdir() if each.name.isdigit()] == ["5"]
    assert max(record["step"] for record in log_records(tmp_path)) == 4
    path = tmp_path / "not-finite-step-7.npz"
    assert str(path) in str(caught.value)
    stream = batches()
    for _ in range(7):
        wanted = poison(next(stream)) if _ == 6 else next(stream)
    with np.load(path, allow_pickle=False) as kept:
        assert kept.keys() == wanted.keys()
        for name in kept:
            np.testing.assert_array_equal(kept[name], wanted[name])


def test_a_batch_that_cannot_be_kept_hides_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fm.training.failures.np.savez", full)
    with pytest.raises(UserError, match=r"at step 7 .*could not be saved \(No space left"):
        run_toy(tmp_path, ToyBatches(7, poison))


@pytest.mark.parametrize("damage", [lambda text: text.replace('"step"', '"stop"', 1), lambda _: ""])
def test_a_log_that_is_damaged_is_told(tmp_path, damage):
    with pytest.raises(PowerCut):
        run_toy(tmp_path, ToyBatches(12, power_cut))
    path = tmp_path / "metrics.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: .*checkpoint of step 10"):
        run_toy(tmp_path)


def test_a_folder_that_is_removed_is_missed(tmp_path):
    def remove(batch):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        return batch

    # Of before the first checkpoint, so that none is being written.
    with pytest.raises(OSError) as caught:
        run_toy(tmp_path / "run", ToyBatches(3, remove))
    assert caught.value.filename == str(tmp_path / "run" / "metrics.jsonl")
    assert "was removed" in str(caught.value.strerror)


def test_a_permission_that_is_lost_is_told(tmp_path, uninterrupted):
    out = tmp_path / "run"

    def refuse(batch):
        # Root may do anything: it becomes somebody else for a while.
        if os.geteuid() == 0:
            tmp_path.chmod(0o700)
            os.seteuid(65534)
        else:
            (out / "checkpoints").chmod(0)
        return batch

    try:
        with pytest.raises(UserError, match=r"step (5|10) could .*\(Permission denied\)"):
            run_toy(out, ToyBatches(8, refuse))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            (out / "checkpoints").chmod(0o700)
    assert_same_run(run_toy(out), out, uninterrupted)


def test_not_finite_right_at_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"at step 5 .* there is no checkpoint yet"):
        run_toy(tmp_path, ToyBatches(5, poison))
    assert not (tmp_path / "checkpoints" / "5").exists()


def test_data_that_ends():
    with pytest.raises(UserError, match="the data ends after 2 batches; steps=23 needs more"):
        run_toy(None, ToyBatches(3, run_dry))


def test_a_second_run_compiles_nothing():
    optimizer = OptimizerConfig("adamw", learning_rate=0.0123)
    first, second = (
        run_toy(None, run=TrainConfig(steps=5, seed=s), optimizer=optimizer) for s in (0, 1)
    )
    assert second.compile_seconds < 0.2 * first.compile_seconds
    assert second.curve != first.curve


def test_stops_early_and_so_it_does_when_cut_off(tmp_path, capsys):
    # It learns nothing, so that no validation is better than the first.
    optimizer = dataclasses.replace(ADAM, learning_rate=1e-12)
    run = dataclasses.replace(RUN, validate_every=4, early_stopping_patience=2)
    whole = run_toy(tmp_path / "whole", run=run, optimizer=optimizer)
    assert whole.steps == 12 and (tmp_path / "whole/checkpoints/12").is_dir()
    assert whole.stopped_because == "flat"
    with pytest.raises(PowerCut):
        run_toy(tmp_path / "cut", ToyBatches(11, power_cut), run=run, optimizer=optimizer)
    cut = run_toy(tmp_path / "cut", run=run, optimizer=optimizer)
    assert log_records(tmp_path / "cut") == log_records(tmp_path / "whole")
    assert params_digest(cut.params) == params_digest(whole.params)
    capsys.readouterr()
    again = run_toy(tmp_path / "cut", ToyBatches(1, power_cut), run=run, optimizer=optimizer)
    assert again.steps == 12 and "already finished at step 12 of 23" in capsys.readouterr().err
    # Of one that learns the lowest loss counts, not the one before.
    run = dataclasses.replace(RUN, validate_every=2, early_stopping_patience=5)
    losses = run_toy(None, run=dataclasses.replace(run, early_stopping_patience=None)).curve[
        "validation"
    ]
    assert losses[5] < losses[4] > min(losses[:4])
    assert run_toy(None, run=run).steps == 2 * (np.argmin(losses[:8]) + 1) + 10


@pytest.mark.parametrize(
    "field", ["steps", "log_every", "checkpoint_every", "grad_accum_steps", "keep_period"]
)
def test_a_cadence_below_one(field):
    with pytest.raises(UserError, match="1 or more"):
        TrainConfig(**{"steps": 5, field: 0})


@pytest.mark.parametrize("at", [1, 6, 8, 22])
def test_resumed_is_uninterrupted(tmp_path, uninterrupted, at):
    with pytest.raises(PowerCut):
        run_toy(tmp_path, ToyBatches(at, power_cut))
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_resuming_compiles_nothing(tmp_path):
    optimizer = OptimizerConfig("adamw", learning_rate=0.0321)
    with pytest.raises(PowerCut):
        run_toy(tmp_path, ToyBatches(8, power_cut), optimizer=optimizer)
    run_toy(tmp_path, optimizer=optimizer)
    program = train_step.make_train_step(TEXT, MASKED, optimizer, STEPS, 1)
    assert program._cache_size() == 1  # pyright: ignore


def test_resumed_twice(tmp_path, uninterrupted):
    for at in (8, 14):
        with pytest.raises(PowerCut):
            run_toy(tmp_path, ToyBatches(at, power_cut))
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_a_signal_saves_at_once_and_says_how_to_go_on(tmp_path, uninterrupted):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        run_toy(tmp_path, ToyBatches(7, terminate))
    assert str(caught.value) == (
        "toy: stopped by SIGTERM, step 7 of 23 is saved; the same command resumes"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / "7").is_dir()
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)


def test_a_signal_without_a_folder():
    with pytest.raises(Interrupted, match="nothing was saved"):
        run_toy(None, ToyBatches(3, terminate))


def test_a_run_says_what_it_trains_and_counts_steps_from_after_compilation(capsys, monkeypatch):
    shown = []
    show = train_loop.Trainer._show

    def spy(trainer, records):
        show(trainer, records)
        shown.append(trainer._phase.line())

    monkeypatch.setattr(train_loop.Trainer, "_show", spy)
    run_toy(None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("toy: ")]
    first = next(line for line in lines if "parameters" in line)
    assert first.startswith("toy: 23 steps of ") and first.endswith("; compiling …")
    for part in (
        " tokens (",
        " attention by xla_tiled (tiles of scores stay in cache), ",
        " parameters, float32, no mesh, cpu (",
    ):
        assert part in first
    compiled = next(line for line in lines if "compiled in " in line)
    assert lines.index(first) < lines.index(compiled)
    assert shown[0] == "toy: 1 of 23 steps"  # no rate yet: the first step was compiled
    assert "steps/s, about " in shown[2] or "s each, about " in shown[2]


def test_finished_says_so_and_takes_no_batch(tmp_path, uninterrupted, capsys):
    first = run_toy(tmp_path)
    capsys.readouterr()
    again = run_toy(tmp_path, ToyBatches(24, power_cut))
    assert_same_run(again, tmp_path, uninterrupted)
    assert "toy: already finished at step 23 of 23" in capsys.readouterr().err
    assert 0 < again.seconds <= first.seconds


def test_other_settings_are_refused_by_name(tmp_path):
    run_toy(tmp_path)
    before = log_records(tmp_path)
    optimizer = OptimizerConfig("adamw", learning_rate=0.5)
    with pytest.raises(UserError) as caught:
        run_toy(tmp_path, optimizer=optimizer, identity={"data": "others"})
    message = str(caught.value)
    assert "optimizer.learning_rate=0.02 (now 0.5)" in message
    assert "data='absent' (now 'others')" in message
    assert "model" not in message and "\n" not in message
    assert log_records(tmp_path) == before


def test_other_start_parameters_are_refused(tmp_path):
    run_toy(tmp_path)
    with pytest.raises(UserError, match="start="):
        train(
            params(TEXT, seed=5), ToyBatches(), TEXT, MASKED, ADAM, RUN,
            out_dir=tmp_path, metric_unit=BitsPerByte(2.0),
        )  # fmt: skip


def test_cadence_may_change_on_the_way(tmp_path, uninterrupted):
    with pytest.raises(PowerCut):
        run_toy(tmp_path, ToyBatches(12, power_cut))
    got = run_toy(tmp_path, run=TrainConfig(steps=STEPS, checkpoint_every=100, log_every=2))
    assert params_digest(got.params) == params_digest(uninterrupted[0].params)


KILLED = """
import pathlib, sys
from tests.training.helpers_runs import run_toy
print("ready", flush=True)
run_toy(pathlib.Path(sys.argv[1]))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_is_uninterrupted(tmp_path, uninterrupted):
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
    assert_same_run(run_toy(tmp_path), tmp_path, uninterrupted)
