"""The loop: it learns, tells, and stops well."""

import dataclasses
import errno
import os

import numpy as np
import pytest

from fm.errors import UserError
from fm.training import (
    BitsPerDimension,
    Objective,
    OptimizerConfig,
    TrainConfig,
    params_digest,
    train,
)
from tests.training.helpers_models import ADAM, IMAGE, NEXT, batches, images, params
from tests.training.helpers_runs import (
    RUN,
    STEPS,
    Pipeline,
    PowerCut,
    assert_as_unbroken,
    go,
    lines,
    poison,
    power_cut,
    run_dry,
)


def test_learns(tmp_path):
    got = go(None, run=TrainConfig(steps=150, log_every=50), objective=NEXT, validation=None)
    assert got.curve["value"][-1] < 0.3 * got.curve["value"][0]
    assert got.curve["validation"] == []


def test_learns_images():
    class Images(Pipeline):
        def __next__(self):
            return images()

    got = train(
        params(IMAGE, zeros=True),
        Images(),
        IMAGE,
        Objective(causal_lm=0.5, masked_lm=0.5),
        OptimizerConfig("adamw", learning_rate=0.01),
        TrainConfig(steps=60, log_every=20),
        out_dir=None,
        metric_unit=BitsPerDimension(),
    )
    assert got.curve["value"][-1] < got.curve["value"][0]


def test_the_record_of_a_run(unbroken):
    result, records = unbroken
    assert [r["step"] for r in records if r["kind"] == "train"] == [4, 8, 12, 16, 20, 23]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [10, 20, 23]
    first = records[0]
    assert set(first) == {
        "kind", "step", "tokens", "loss", "masked_nats", "bits_per_byte",
        "grad_norm", "learning_rate",
    }  # fmt: skip
    assert first["bits_per_byte"] == pytest.approx(first["loss"] / 2 / np.log(2))
    assert result.curve["tokens"][-1] == result.tokens == result.curve["validation_tokens"][-1]
    stream = batches()
    assert result.tokens == sum(np.count_nonzero(next(stream)["segments"]) for _ in range(STEPS))
    assert result.seconds > result.compile_seconds > 0
    assert result.flops > 0 and result.steps == STEPS


def test_without_a_folder_nothing_is_written_and_the_result_is_the_same(
    tmp_path, unbroken, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    got = go(None)
    assert params_digest(got.params) == params_digest(unbroken[0].params)
    assert got.curve == unbroken[0].curve
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_halts_and_keeps_the_last_good_one(tmp_path):
    with pytest.raises(UserError, match=r"nan .* at step 7 .* step 5 is kept") as caught:
        go(tmp_path, Pipeline(7, poison))
    assert "\n" not in str(caught.value)
    kept = tmp_path / "checkpoints"
    assert [each.name for each in kept.iterdir() if each.name.isdigit()] == ["5"]
    assert max(record["step"] for record in lines(tmp_path)) == 4
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
    with pytest.raises(UserError, match=r"at step 7 .*could not be kept \(No space left"):
        go(tmp_path, Pipeline(7, poison))


@pytest.mark.parametrize("damage", [lambda text: text.replace('"step"', '"stop"', 1), lambda _: ""])
def test_a_log_that_is_damaged_is_told(tmp_path, damage):
    with pytest.raises(PowerCut):
        go(tmp_path, Pipeline(12, power_cut))
    path = tmp_path / "metrics.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: .*checkpoint of step 10"):
        go(tmp_path)


def test_a_folder_that_is_removed_is_missed(tmp_path):
    def remove(batch):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        return batch

    # Of before the first checkpoint, so that none is being written.
    with pytest.raises(OSError) as caught:
        go(tmp_path / "run", Pipeline(3, remove))
    assert caught.value.filename == str(tmp_path / "run" / "metrics.jsonl")
    assert "was removed" in str(caught.value.strerror)


def test_a_permission_that_is_lost_is_told(tmp_path, unbroken):
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
            go(out, Pipeline(8, refuse))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            (out / "checkpoints").chmod(0o700)
    assert_as_unbroken(go(out), out, unbroken)


def test_not_finite_right_at_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"at step 5 .* there is no checkpoint yet"):
        go(tmp_path, Pipeline(5, poison))
    assert not (tmp_path / "checkpoints" / "5").exists()


def test_data_that_ends():
    with pytest.raises(UserError, match="the data ends after 2 batches; steps=23 needs more"):
        go(None, Pipeline(3, run_dry))


def test_a_second_run_compiles_nothing():
    rule = OptimizerConfig("adamw", learning_rate=0.0123)
    first, second = (go(None, run=TrainConfig(steps=5, seed=s), rule=rule) for s in (0, 1))
    assert second.compile_seconds < 0.2 * first.compile_seconds
    assert second.curve != first.curve


def test_stops_early_and_so_it_does_when_cut_off(tmp_path, capsys):
    # It learns nothing, so that no validation is better than the first.
    rule = dataclasses.replace(ADAM, learning_rate=1e-12)
    run = dataclasses.replace(RUN, validate_every=4, early_stopping_patience=2)
    whole = go(tmp_path / "whole", run=run, rule=rule)
    assert whole.steps == 12 and (tmp_path / "whole/checkpoints/12").is_dir()
    with pytest.raises(PowerCut):
        go(tmp_path / "cut", Pipeline(11, power_cut), run=run, rule=rule)
    cut = go(tmp_path / "cut", run=run, rule=rule)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert params_digest(cut.params) == params_digest(whole.params)
    capsys.readouterr()
    again = go(tmp_path / "cut", Pipeline(1, power_cut), run=run, rule=rule)
    assert again.steps == 12 and "already finished at step 12 of 23" in capsys.readouterr().err
    # Of one that learns the lowest loss counts, not the one before.
    run = dataclasses.replace(RUN, validate_every=2, early_stopping_patience=5)
    losses = go(None, run=dataclasses.replace(run, early_stopping_patience=None)).curve[
        "validation"
    ]
    assert losses[5] < losses[4] > min(losses[:4])
    assert go(None, run=run).steps == 2 * (np.argmin(losses[:8]) + 1) + 10


@pytest.mark.parametrize(
    "field", ["steps", "log_every", "checkpoint_every", "accumulate", "early_stop"]
)
def test_a_cadence_below_one(field):
    with pytest.raises(UserError, match="1 or more"):
        TrainConfig(**{"steps": 5, field: 0})
