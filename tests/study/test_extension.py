"""A finished pretraining run continued to more steps, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.study import run_dir
from fm.study.extension import extended_config
from fm.study.pretraining import pretrain, pretrain_config
from fm.study.processing import build_processor
from fm.training import optimizer, train_step
from fm.training.checkpoint import load_params
from fm.training.config import check_same_config
from fm.training.train_state import params_digest
from tests.study.helpers_study import images, recipe, split


@pytest.fixture
def corpus():
    return split(images(48, 0)[0], None)


def run(corpus, folder, steps, **cadence):
    own = recipe("image", steps=steps)
    processor = build_processor(corpus, "image", own, folder)
    return pretrain(
        corpus, "image", own, processor, seed=0, out_dir=folder, run_name="run", **cadence
    )


def rates(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: r["learning_rate"] for r in records if r["kind"] == "train"}


@pytest.mark.slow
def test_an_extended_run_goes_on_by_the_schedule_of_its_new_length(corpus, tmp_path):
    """The batches, parameters and optimizer state go on; only the schedule is another."""
    short = run(corpus, tmp_path, 10)
    extended = run(corpus, tmp_path, 20, extended_from=(10,))
    assert extended.steps == 20 and extended.tokens == 2 * short.tokens
    own = recipe("image").optimizer
    schedule = optimizer.learning_rate_schedule(own, own.learning_rate, 20)
    found = rates(tmp_path)
    assert list(found) == list(range(1, 21))
    expected = [float(schedule(n)) for n in range(10, 20)]
    np.testing.assert_allclose([found[n] for n in range(11, 21)], expected, 1e-6)
    # The peak again, though it had fallen.
    assert found[10] < found[11] == pytest.approx(own.learning_rate)
    whole = run(corpus, tmp_path / "whole", 20)
    assert params_digest(whole.params) != params_digest(extended.params)
    again = run(corpus, tmp_path, 20, extended_from=(10,))
    assert params_digest(again.params) == params_digest(extended.params)


@pytest.mark.slow
def test_an_interrupted_extension_ends_as_if_it_had_not_been(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "a", 4)
    whole = run(corpus, tmp_path / "a", 9, extended_from=(4,))
    run(corpus, tmp_path / "b", 4)
    make, calls = train_step.make_train_step, []

    def failing(*arguments):
        step = make(*arguments)

        def stopping(*given):
            calls.append(0)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(*given)

        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(train_step, "make_train_step", failing)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "b", 9, extended_from=(4,), checkpoint_every=2)
    resumed = run(corpus, tmp_path / "b", 9, extended_from=(4,), checkpoint_every=2)
    assert params_digest(resumed.params) == params_digest(whole.params)
    _, config = load_params(tmp_path / "b" / "checkpoints")
    assert config["run"]["extended_from"] == [4] and config["run"]["steps"] == 9
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed.params, whole.params))


def test_only_an_extension_may_have_another_length(tmp_path):
    saved = {"run": {"steps": 4, "seed": 0}}
    longer = {"run": {"steps": 9, "seed": 0}}
    with pytest.raises(UserError, match=r"run\.steps=4"):
        check_same_config(tmp_path, saved, longer)
    check_same_config(tmp_path, saved, {"run": longer["run"] | {"extended_from": [4]}})
    for wrong in ([5], [4, 9], []):
        with pytest.raises(UserError):
            check_same_config(tmp_path, saved, {"run": longer["run"] | {"extended_from": wrong}})
    with pytest.raises(UserError, match=r"run\.seed=0"):
        other = {"steps": 9, "seed": 1, "extended_from": [4]}
        check_same_config(tmp_path, saved, {"run": other})


def test_the_length_before_is_no_part_of_other_runs():
    assert pretrain_config(9, 0).extended_from == ()


def folder_of(path, steps, finished=True, **more):
    path.mkdir()
    config = {"experiment": "pretrain", "recipe": {"steps": steps, **more}, "seed": 0}
    (path / "config.json").write_text(json.dumps(config))
    if finished:
        (path / "summary.json").write_text(json.dumps({"steps": steps}))
    return config


def asked(config, steps):
    return config | {"recipe": config["recipe"] | {"steps": steps}}


def test_a_finished_run_is_extended_again_and_again(tmp_path, capsys):
    out = tmp_path / "out"
    config = folder_of(out, 4)
    found = extended_config(asked(config, 9), out)
    assert found["extended_from"] == [4] and run_dir.check_existing_run(found, out)
    assert "the result is not that of 9 steps in one go" in capsys.readouterr().err
    # The same command resumes the extension.
    assert extended_config(asked(config, 9), out) == found
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"the run of 9 steps in .* is not finished"):
        extended_config(asked(config, 12), out)
    (out / "summary.json").write_text(json.dumps({"steps": 9}))
    assert extended_config(asked(config, 12), out)["extended_from"] == [4, 9]
    with pytest.raises(UserError, match=r"--steps=9: .* holds a run of 12 steps, which cannot be"):
        extended_config(asked(config, 9), out)


@pytest.mark.parametrize("limit", ["early_stopping_patience", "max_pretrain_minutes"])
def test_a_run_that_ends_by_its_loss_or_by_time_is_not_extended(tmp_path, limit):
    config = folder_of(tmp_path / "out", 4, **{limit: 3})
    before = (tmp_path / "out" / "config.json").read_text()
    with pytest.raises(UserError, match="which cannot be extended"):
        extended_config(asked(config, 9), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == before


def test_an_unfinished_run_is_finished_first(tmp_path):
    config = folder_of(tmp_path / "out", 4, finished=False)
    with pytest.raises(UserError, match="finish it with --steps=4 before it is extended"):
        extended_config(asked(config, 9), tmp_path / "out")


def test_other_runs_are_left_to_the_usual_refusal(tmp_path):
    config = folder_of(tmp_path / "out", 4)
    other = asked(config, 9) | {"seed": 1}
    assert extended_config(other, tmp_path / "out") == other
    assert extended_config(config, tmp_path / "new") == config
    assert extended_config(config, tmp_path / "out") == config
