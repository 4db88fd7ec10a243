"""A grid: members end as separate runs, and nobody minds another."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.training import Objective, OptimizerConfig, optimizer, params_digest, sweep, train_state
from tests.training.problems import IMAGE, TEXT, batches
from tests.training.team import (
    ADAM,
    BAG,
    MASKED,
    MUON,
    STEPS,
    Stream,
    close,
    digests,
    faster,
    go,
    image_member,
    separate,
    text_member,
    three,
)
from tests.training.toy import poison

PROBLEMS = {
    "text, bag, muon": (TEXT, BAG, lambda s, f: text_member(s, faster(MUON, f), weights=True)),
    "text, masked, adamw": (TEXT, MASKED, lambda s, f: text_member(s, faster(ADAM, f))),
    "images, muon": (
        IMAGE,
        Objective(causal_lm=0.5, masked_lm=0.5),
        lambda s, f: image_member(s, faster(MUON, f)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", sweep.BATCHING_MODES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_members_are_separate_runs(name, way):
    model, objective, make = PROBLEMS[name]
    asked = (0, 1.0), (1, 1.0), (1, 0.3)
    got = sweep.sweep([make(*each) for each in asked], model, objective, out_dir=None, batching=way)
    want = [separate(make(*each), model, objective) for each in asked]
    assert got.batching == way and got.stop_reasons == [None] * 3
    for mine, other in zip(got.results, want, strict=True):
        close(mine.params, other.params)
        assert mine.curve.keys() == other.curve.keys()
        close(mine.curve, other.curve)
        assert (mine.steps, mine.tokens, mine.flops) == (other.steps, other.tokens, other.flops)
    # What the tolerance is for: rates and seeds make a difference far above it.
    for a, b in ((0, 1), (1, 2)):
        with pytest.raises(AssertionError):
            close(got.results[a].params, got.results[b].params)


def test_the_order_of_members_does_not_matter():
    forth, back = go(three()), go(three()[::-1])
    for a, b in zip(forth.results, back.results[::-1], strict=True):
        close(a.params, b.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", sweep.BATCHING_MODES)
def test_a_member_whose_loss_is_not_finite_stays_and_the_others_do_not_notice(way):
    whole, hurt = go(three(), way=way), go(three(at=4, happens=poison), way=way)
    assert digests(hurt)[0] == digests(whole)[0] and digests(hurt)[2] == digests(whole)[2]
    assert hurt.results[0].curve == whole.results[0].curve
    assert hurt.stop_reasons[0] is hurt.stop_reasons[2] is None
    assert (
        "seed 1: loss nan" in hurt.stop_reasons[1]
        and "at step 4 must be finite" in hurt.stop_reasons[1]
    )
    assert [each.steps for each in hurt.results] == [STEPS, 3, STEPS]
    # Where it stays is where three steps had brought it.
    short = go(three(at=5, happens=poison), way=way)
    assert short.results[1].steps == 4 and digests(short)[1] != digests(hurt)[1]
    do_step = sweep.make_sweep_step(TEXT, MASKED, sweep.shared_optimizer_config(ADAM), 1, way)
    states = after_three_steps(do_step)
    assert params_digest(sweep.index_tree(states["params"], 1)) == digests(hurt)[1]


def after_three_steps(do_step):
    team = three()
    states = sweep.stack_trees(
        [
            train_state.init_train_state(one.params, optimizer.build(one.optimizer_config, STEPS))
            for one in team
        ]
    )
    for n in range(3):
        states, _ = do_step(states, np.full(3, n), *data(team, n))
    return states


def data(team, n):
    seeds_R, weights, rates_SR2 = sweep.trial_constants(team)
    return sweep.stack_trees([next(one.batches) for one in team]), seeds_R, rates_SR2[n], weights


@pytest.mark.parametrize("way", sweep.BATCHING_MODES)
def test_one_that_rests_keeps_its_whole_state(way):
    do_step = sweep.make_sweep_step(TEXT, MASKED, sweep.shared_optimizer_config(ADAM), 1, way)
    states = after_three_steps(do_step)
    before = jax.device_get(states)
    states, _ = do_step(states, np.array([3, -1, 3]), *data(three(), 3))
    unmoved = [
        params_digest(sweep.index_tree(before, r)) == params_digest(sweep.index_tree(states, r))
        for r in range(3)
    ]
    assert unmoved == [False, True, False]


@pytest.mark.parametrize("way", sweep.BATCHING_MODES)
def test_a_member_with_fewer_steps_ends_as_alone(way):
    got = go(three(steps=4), way=way)
    alone = separate(three(steps=4)[1], TEXT, MASKED)
    assert [each.steps for each in got.results] == [STEPS, 4, STEPS]
    assert got.stop_reasons == [None] * 3
    close(got.results[1].params, alone.params)
    close(got.results[1].curve, alone.curve)
    assert digests(got)[::2] == digests(go(three(), way=way))[::2]


def test_a_member_that_ended_takes_no_more_data():
    team = three(steps=4)
    go(team)
    assert [one.batches.taken for one in team] == [STEPS, 4, STEPS]


def test_the_batch_a_member_broke_on_is_kept(tmp_path):
    got = go(three(tmp_path, at=4, happens=poison))
    path = tmp_path / "member-1" / "not-finite-step-4.npz"
    assert str(path) in got.stop_reasons[1]
    stream = Stream(1)
    wanted = poison([next(stream) for _ in range(4)][-1])
    with np.load(path, allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["tokens"], wanted["tokens"])
        assert kept.keys() == wanted.keys()


def test_a_validation_that_is_not_finite_stops_a_member():
    team = three()
    team[1] = dataclasses.replace(team[1], validation=[poison(next(batches()))])
    got = go(team)
    assert [each.steps for each in got.results] == [STEPS, 4, STEPS]
    assert "seed 1: loss nan at step 4 must be finite" in got.stop_reasons[1]
    assert params_digest(got.results[1].params) == digests(go(three(at=5, happens=poison)))[1]
    with pytest.raises(UserError, match="seed 1: loss nan at step 4 must be finite; there is no"):
        separate(dataclasses.replace(team[1], batches=Stream(1)), TEXT, MASKED)


@pytest.mark.parametrize(
    ("team", "way", "reason"),
    [
        ([], None, "at least one member"),
        ([text_member(), text_member(1, MUON)], None, "not in 2 kinds of optimiser"),
        ([text_member(), text_member(1, weights=True)], None, "use of token weights"),
        ([text_member()], "pmap", "'pmap' is not known; accepted are vmap, map"),
    ],
)  # fmt: skip
def test_refused(team, way, reason):
    with pytest.raises(UserError, match=reason):
        go(team, way=way)


def test_rates_and_seeds_share_a_program():
    go(three())
    do_step = sweep.make_sweep_step(TEXT, MASKED, sweep.shared_optimizer_config(ADAM), 1, "vmap")
    programs = do_step._cache_size()  # pyright: ignore
    rule = OptimizerConfig("adamw", schedule="cosine", warmup=0.2)
    other = [text_member(seed, faster(rule, 1 / seed)) for seed in (4, 5, 6)]
    go(other)
    assert (
        sweep.make_sweep_step(
            TEXT, MASKED, sweep.shared_optimizer_config(other[0].optimizer_config), 1, "vmap"
        )
        is do_step
    )
    assert do_step._cache_size() == programs  # pyright: ignore
