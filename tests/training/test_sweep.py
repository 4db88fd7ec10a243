"""Sweeps: trials end as single runs, do not affect each other, and resume bitwise."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import (
    Interrupted,
    OptimizerConfig,
    PretrainingObjective,
    load_params,
    optimizer,
    params_digest,
)
from fm.training.sweep import (
    BATCHING_MODES,
    index_tree,
    make_sweep_step,
    shared_optimizer_config,
    stack_trees,
    stack_trial_inputs,
    sweep,
)
from fm.training.train_state import init_train_state
from tests.training.helpers_models import IMAGE, TEXT, batches
from tests.training.helpers_runs import PowerCut, log_records, poison, power_cut, terminate
from tests.training.helpers_sweep import (
    ADAM,
    BAG,
    MASKED,
    MUON,
    STEPS,
    Stream,
    assert_close,
    digests,
    image_trial,
    run_sweep,
    scaled,
    text_trial,
    three_trials,
    train_alone,
)

PROBLEMS = {
    "text, bag, muon": (TEXT, BAG, lambda s, f: text_trial(s, scaled(MUON, f), weights=True)),
    "text, masked, adamw": (TEXT, MASKED, lambda s, f: text_trial(s, scaled(ADAM, f))),
    "images, muon": (
        IMAGE,
        PretrainingObjective(causal_lm=0.5, masked_lm=0.5),
        lambda s, f: image_trial(s, scaled(MUON, f)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_trials_are_single_runs(name):
    model_config, objective, make = PROBLEMS[name]
    settings = (0, 1.0), (1, 1.0), (1, 0.3)
    vmapped, sequential = (
        sweep(
            [make(*each) for each in settings],
            model_config,
            objective,
            out_dir=None,
            batching=batching,
        )
        for batching in BATCHING_MODES
    )
    want = [train_alone(make(*each), model_config, objective) for each in settings]
    assert [vmapped.batching, sequential.batching] == list(BATCHING_MODES)
    assert vmapped.stop_reasons == sequential.stop_reasons == [None] * 3
    for mine, exact, single in zip(vmapped.results, sequential.results, want, strict=True):
        assert params_digest(exact.params) == params_digest(single.params)
        assert exact.curve == single.curve
        assert_close(mine.params, single.params)
        assert mine.curve.keys() == single.curve.keys()
        assert_close(mine.curve, single.curve)
        counts = (single.steps, single.tokens, single.flops)
        assert (mine.steps, mine.tokens, mine.flops) == counts
    # Rates and seeds make a difference far above the tolerance.
    for a, b in ((0, 1), (1, 2)):
        with pytest.raises(AssertionError):
            assert_close(vmapped.results[a].params, vmapped.results[b].params)


@pytest.mark.slow
def test_sequential_trials_are_single_runs_to_the_bit(tmp_path, capsys):
    found = run_sweep(three_trials(), tmp_path, "sequential")
    assert "toy: 3 trials, one after another" in capsys.readouterr().err
    for r, trial in enumerate(three_trials()):
        single = train_alone(trial, out_dir=tmp_path / "alone" / str(r))
        assert digests(found)[r] == params_digest(single.params)
        assert found.results[r].curve == single.curve
        alone = log_records(tmp_path / "alone" / str(r))
        assert log_records(tmp_path / f"trial-{r}") == alone


@pytest.mark.slow
def test_the_order_of_trials_does_not_matter():
    forth, back = run_sweep(three_trials()), run_sweep(three_trials()[::-1])
    for a, b in zip(forth.results, back.results[::-1], strict=True):
        assert_close(a.params, b.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batching", BATCHING_MODES)
def test_a_trial_that_is_not_finite_stops_and_the_others_go_on(batching, tmp_path):
    whole = run_sweep(three_trials(), batching=batching)
    hurt = run_sweep(three_trials(tmp_path, at=4, event=poison), batching=batching)
    assert digests(hurt) == [digests(whole)[0], None, digests(whole)[2]]
    assert hurt.results[0].curve == whole.results[0].curve
    assert hurt.stop_reasons[0] is hurt.stop_reasons[2] is None
    message = hurt.stop_reasons[1]
    assert "seed 1: loss nan" in message and "at step 4 must be finite" in message
    path = tmp_path / "trial-1" / "not-finite-step-4.npz"
    assert str(path) in message
    stream = Stream(1)
    wanted = poison([next(stream) for _ in range(4)][-1])
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["tokens"], wanted["tokens"])
        assert saved.keys() == wanted.keys()


def step_arguments(trials, n):
    seeds_R, weights, rates_SR2 = stack_trial_inputs(trials)
    return stack_trees([next(trial.batches) for trial in trials]), seeds_R, rates_SR2[n], weights


def test_one_that_rests_or_is_not_finite_keeps_its_whole_state():
    step = make_sweep_step(TEXT, MASKED, shared_optimizer_config(ADAM))
    trials = three_trials(at=5, event=poison)
    state = stack_trees(
        [
            init_train_state(trial.params, optimizer.build(trial.optimizer_config, STEPS))
            for trial in trials
        ]
    )
    for n_R, moves in (([0, 0, 0], [True] * 3), ([1, -1, 1], [True, False, True])):
        before = jax.device_get(state)
        state, _ = step(state, np.array(n_R), *step_arguments(trials, max(n_R)))
        assert changed(before, state) == moves
    # The second trial is one step behind, and its fifth batch is poisoned.
    for n_R, moves in (([2, 1, 2], [True] * 3), ([3, 2, 3], [True] * 3)):
        before = jax.device_get(state)
        state, _ = step(state, np.array(n_R), *step_arguments(trials, max(n_R)))
        assert changed(before, state) == moves
    before = jax.device_get(state)
    state, metrics = step(state, np.array([4, 3, 4]), *step_arguments(trials, 4))
    assert changed(before, state) == [True, False, True]
    assert np.isnan(metrics["loss"][1])


def changed(before, after):
    return [
        params_digest(index_tree(before, r)) != params_digest(index_tree(after, r))
        for r in range(3)
    ]


@pytest.mark.parametrize("batching", BATCHING_MODES)
def test_a_trial_with_fewer_steps_ends_as_alone(batching):
    trials = three_trials(run={"steps": 4})
    found = run_sweep(trials, batching=batching)
    alone = train_alone(three_trials(run={"steps": 4})[1])
    assert [each.steps for each in found.results] == [STEPS, 4, STEPS]
    assert [trial.batches.taken for trial in trials] == [STEPS, 4, STEPS]
    assert_close(found.results[1].params, alone.params)
    assert_close(found.results[1].curve, alone.curve)
    assert digests(found)[::2] == digests(run_sweep(three_trials(), batching=batching))[::2]


@pytest.mark.parametrize("batching", BATCHING_MODES)
def test_a_trial_stops_early(batching, tmp_path):
    # It learns nothing, so no validation improves on the first.
    early = {"validate_every": 1, "early_stopping_patience": 2}
    trials = three_trials(tmp_path)
    trials[1] = text_trial(1, scaled(ADAM, 1e-12), run=early, out_dir=tmp_path / "trial-1")
    found = run_sweep(trials, tmp_path, batching)
    assert [each.steps for each in found.results] == [STEPS, 3, STEPS]
    assert trials[1].batches.taken == 3
    assert load_params(tmp_path / "trial-1" / "checkpoints", 3)


@pytest.mark.parametrize("batching", BATCHING_MODES)
def test_a_validation_that_is_not_finite_stops_a_trial(batching):
    trials = three_trials()
    trials[1] = dataclasses.replace(trials[1], validation=[poison(next(batches()))])
    found = run_sweep(trials, batching=batching)
    assert found.results[1] is None
    assert "seed 1: loss nan at step 4 must be finite" in found.stop_reasons[1]
    with pytest.raises(UserError, match="seed 1: loss nan at step 4 must be finite; there is no"):
        train_alone(dataclasses.replace(trials[1], batches=Stream(1)))


@pytest.mark.parametrize(
    ("trials", "batching", "reason"),
    [
        ([], None, "at least one trial"),
        ([text_trial(), text_trial(1, MUON)], None, "not in optimizer, .*2 kinds given"),
        ([text_trial(), text_trial(1, weights=True)], None, "use of token weights"),
        ([text_trial()], "pmap", "'pmap' is not known; accepted are vmap, sequential"),
    ],
)
def test_refused(trials, batching, reason):
    with pytest.raises(UserError, match=reason):
        run_sweep(trials, batching=batching)


def test_rates_and_seeds_share_a_program():
    run_sweep(three_trials())
    step = make_sweep_step(TEXT, MASKED, shared_optimizer_config(ADAM), 1)
    programs = step._cache_size()  # pyright: ignore
    config = OptimizerConfig("adamw", schedule="cosine", warmup=0.2)
    others = [text_trial(seed, scaled(config, 1 / seed)) for seed in (4, 5, 6)]
    run_sweep(others)
    shared = shared_optimizer_config(others[0].optimizer_config)
    assert make_sweep_step(TEXT, MASKED, shared, 1) is step
    assert step._cache_size() == programs  # pyright: ignore


@pytest.mark.parametrize("batching", BATCHING_MODES)
@pytest.mark.parametrize("at", [2, 5, 7])
def test_resumed_is_uninterrupted(tmp_path, at, batching):
    want = run_sweep(three_trials(tmp_path / "a"), tmp_path / "a", batching)
    with pytest.raises(PowerCut):
        run_sweep(three_trials(tmp_path / "b", at=at, event=power_cut), tmp_path / "b", batching)
    # Resumed with the batching it was started with, whatever the device.
    found = run_sweep(three_trials(tmp_path / "b"), tmp_path / "b", None)
    assert found.batching == batching
    assert digests(found) == digests(want)
    for r, (mine, other) in enumerate(zip(found.results, want.results, strict=True)):
        assert mine.curve == other.curve and mine.tokens == other.tokens
        assert log_records(tmp_path / "a" / f"trial-{r}") == (
            log_records(tmp_path / "b" / f"trial-{r}")
        )


def test_another_batching_is_refused(tmp_path):
    for batching, other in (BATCHING_MODES, BATCHING_MODES[::-1]):
        run_sweep(three_trials(), tmp_path / batching, batching)
        with pytest.raises(UserError, match=f"batching '{batching}', not '{other}'"):
            run_sweep(three_trials(), tmp_path / batching, other)


def test_a_trials_damaged_checkpoint_is_written_again(tmp_path):
    want = digests(run_sweep(three_trials(tmp_path), tmp_path))
    (tmp_path / "trial-1" / "checkpoints" / str(STEPS) / "digests.json").unlink()
    run_sweep(three_trials(tmp_path), tmp_path)
    params, _ = load_params(tmp_path / "trial-1" / "checkpoints")
    assert params_digest(params) == want[1]


def test_a_stopped_trial_stays_stopped_when_resumed(tmp_path):
    want = run_sweep(three_trials(at=2, event=poison))
    trials = three_trials(at=2, event=poison)
    trials[0] = text_trial(0, scaled(ADAM, 1.0), at=5, event=power_cut)
    with pytest.raises(PowerCut):
        run_sweep(trials, tmp_path)
    found = run_sweep(three_trials(), tmp_path)
    assert found.stop_reasons[1].startswith("seed 1: loss nan")
    assert digests(found) == digests(want)


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ("vmap", "toy: stopped by SIGTERM, step 2 of 7 is saved"),
        ("sequential", "seed 1: stopped by SIGTERM, step 2 of 7 is saved"),
    ],
)
def test_a_signal_saves_and_says_how_to_resume(tmp_path, batching, message):
    with pytest.raises(Interrupted, match=message):
        run_sweep(three_trials(at=2, event=terminate), tmp_path, batching)
    found = run_sweep(three_trials(), tmp_path, batching)
    assert digests(found) == digests(run_sweep(three_trials(), batching=batching))


@pytest.mark.parametrize("batching", BATCHING_MODES)
def test_finished_says_so_and_takes_no_batch(tmp_path, capsys, batching):
    want = run_sweep(three_trials(tmp_path), tmp_path, batching)
    capsys.readouterr()
    again = run_sweep(three_trials(tmp_path, at=STEPS + 1, event=power_cut), tmp_path, batching)
    name = "toy" if batching == "vmap" else "seed 1"
    assert f"{name}: already finished at step 7 of 7" in capsys.readouterr().err
    assert digests(again) == digests(want)
    for mine, other in zip(again.results, want.results, strict=True):
        assert 0 < mine.seconds <= other.seconds


@pytest.mark.parametrize("batching", BATCHING_MODES)
def test_a_trials_folder_is_that_of_a_single_run(tmp_path, capsys, batching):
    found = run_sweep(three_trials(tmp_path), tmp_path, batching)
    for r, trial in enumerate(three_trials(tmp_path)):
        folder = tmp_path / f"trial-{r}"
        params, config = load_params(folder / "checkpoints")
        assert params_digest(params) == digests(found)[r]
        assert ModelConfig.from_dict(config["model"]) == TEXT
        single = train_alone(trial, out_dir=folder)
        name = f"seed {trial.train_config.seed}"
        assert f"{name}: already finished at step 7" in capsys.readouterr().err
        assert params_digest(single.params) == digests(found)[r]
        assert single.curve == found.results[r].curve


@pytest.mark.parametrize(("batching", "prefix"), [("vmap", r"2\."), ("sequential", "")])
def test_another_sweep_is_refused_by_name(tmp_path, batching, prefix):
    run_sweep(three_trials(), tmp_path, batching)
    others = three_trials()
    others[2] = text_trial(1, scaled(ADAM, 0.5))
    wanted = rf"{prefix}optimizer\.learning_rate=0\.003 \(now 0\.005\)"
    with pytest.raises(UserError, match=wanted):
        run_sweep(others, tmp_path, batching)
