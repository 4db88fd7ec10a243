"""A grid: members end as separate runs, nobody minds another, and resumed is unbroken."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import (
    BitsPerByte,
    BitsPerDimension,
    Interrupted,
    Objective,
    OptimizerConfig,
    RunConfig,
    grid,
    load_params,
    log,
    loop,
    members,
    optimizer,
    params_digest,
    roster,
    state,
)
from fm.training.roster import Member
from tests.training.problems import IMAGE, TEXT, VOCAB, batches, images, params

STEPS = 7
MUON = OptimizerConfig("muon", learning_rate=0.01, adam_learning_rate=0.02)
ADAM = OptimizerConfig("adamw", learning_rate=0.01)
BAG = Objective(next=0.25, masked=0.0, bag=0.75)
MASKED = Objective(masked=1.0)
WEIGHTS = jnp.linspace(0.5, 2.0, VOCAB)
PACE = ("tokens_per_second", "share_of_peak")
RUN = RunConfig(STEPS, checkpoint_every=3, log_every=2, validate_every=4)


class Stream:
    """Batches of a seed, with something that happens when number `at` is taken."""

    def __init__(self, seed=0, *, pictures=False, at=None, happens=None):
        self._seed, self._pictures, self._at, self._happens = seed, pictures, at, happens
        self._text, self.taken = batches(seed), 0

    def __next__(self):
        self.taken += 1
        text = next(self._text)
        batch = images(seed=100 * self._seed + self.taken) if self._pictures else text
        return self._happens(batch) if self._happens and self.taken == self._at else batch

    def get_state(self):
        return {"text": self._text.get_state(), "taken": self.taken}

    def set_state(self, state):
        self._text.set_state(state["text"])
        self.taken = state["taken"]


class PowerCut(Exception):
    pass


def power_cut(_):
    raise PowerCut


def poison(batch):
    return batch | {"tokens": batch["tokens"] + 10**6}


def terminate(batch):
    os.kill(os.getpid(), signal.SIGTERM)
    return batch


def text_member(seed=0, rule=ADAM, weights=None, start=None, **options):
    run = dataclasses.replace(RUN, seed=seed, steps=options.pop("steps", STEPS))
    stream = {name: options.pop(name) for name in ("at", "happens") if name in options}
    return Member(
        params(TEXT, seed if start is None else start),
        Stream(seed, **stream),
        rule,
        run,
        BitsPerByte(2.0 + seed),
        token_weights=None if weights is None else WEIGHTS**seed,
        validation=[next(batches(seed=50 + seed))],
        label=f"seed {seed}",
        **options,
    )


def image_member(seed=0, rule=ADAM):
    stream = Stream(seed, pictures=True)
    run = dataclasses.replace(RUN, seed=seed)
    return Member(params(IMAGE, seed), stream, rule, run, BitsPerDimension())


def faster(rule, factor):
    rates = {"learning_rate": rule.learning_rate * factor, "adam_learning_rate": 0.001 * factor}
    return dataclasses.replace(rule, **rates)


def separate(one, model, objective, out=None):
    return loop.train(
        one.params, one.batches, model, objective, one.rule, one.run,
        out=out, unit=one.unit, token_weights=one.token_weights,
        validation=one.validation, label=one.label, identity=one.identity,
    )  # fmt: skip


def close(a, b, rtol=2e-3, atol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


PROBLEMS = {
    "text, bag, muon": (TEXT, BAG, lambda s, f: text_member(s, faster(MUON, f), weights=True)),
    "text, masked, adamw": (TEXT, MASKED, lambda s, f: text_member(s, faster(ADAM, f))),
    "images, muon": (
        IMAGE,
        Objective(next=0.5, masked=0.5),
        lambda s, f: image_member(s, faster(MUON, f)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", members.WAYS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_members_are_separate_runs(name, way):
    model, objective, make = PROBLEMS[name]
    asked = (0, 1.0), (1, 1.0), (1, 0.3)
    got = grid.train([make(*each) for each in asked], model, objective, out=None, way=way)
    want = [separate(make(*each), model, objective) for each in asked]
    assert got.way == way and got.stopped == [None] * 3
    for mine, other in zip(got.trained, want, strict=True):
        close(mine.params, other.params)
        assert mine.curve.keys() == other.curve.keys()
        close(mine.curve, other.curve)
        assert (mine.steps, mine.tokens, mine.flops) == (other.steps, other.tokens, other.flops)
    # What the tolerance is for: rates and seeds make a difference far above it.
    for a, b in ((0, 1), (1, 2)):
        with pytest.raises(AssertionError):
            close(got.trained[a].params, got.trained[b].params)


def three(tmp=None, **options):
    asked = (0, 1.0), (1, 1.0), (1, 0.3)
    return [
        text_member(
            seed, faster(ADAM, factor), out=tmp and tmp / f"member-{r}",
            **(options if r == 1 else {}),
        )
        for r, (seed, factor) in enumerate(asked)
    ]  # fmt: skip


def go(grid_of, out=None, way="vmap"):
    return grid.train(grid_of, TEXT, MASKED, out=out, way=way, label="toy")


def digests(got):
    return [params_digest(each.params) for each in got.trained]


def test_the_order_of_members_does_not_matter():
    forth, back = go(three()), go(three()[::-1])
    for a, b in zip(forth.trained, back.trained[::-1], strict=True):
        close(a.params, b.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", members.WAYS)
def test_a_member_whose_loss_is_not_finite_stays_and_the_others_do_not_notice(way):
    whole, hurt = go(three(), way=way), go(three(at=4, happens=poison), way=way)
    assert digests(hurt)[0] == digests(whole)[0] and digests(hurt)[2] == digests(whole)[2]
    assert hurt.trained[0].curve == whole.trained[0].curve
    assert hurt.stopped[0] is hurt.stopped[2] is None
    assert "seed 1: loss nan" in hurt.stopped[1] and "at step 4 must be finite" in hurt.stopped[1]
    assert [each.steps for each in hurt.trained] == [STEPS, 3, STEPS]
    # Where it stays is where three steps had brought it.
    short = go(three(at=5, happens=poison), way=way)
    assert short.trained[1].steps == 4 and digests(short)[1] != digests(hurt)[1]
    do_step = members.members_step(TEXT, MASKED, members.shared(ADAM), 1, way)
    states = after_three_steps(do_step)
    assert params_digest(members.member(states["params"], 1)) == digests(hurt)[1]


def after_three_steps(do_step):
    team = three()
    states = members.stack(
        [state.init(one.params, optimizer.build(one.rule, STEPS)) for one in team]
    )
    for n in range(3):
        states, _ = do_step(states, np.full(3, n), *data(team, n))
    return states


def data(team, n):
    seeds_R, weights, rates_SR2 = roster.constants(team)
    return members.stack([next(one.batches) for one in team]), seeds_R, rates_SR2[n], weights


@pytest.mark.parametrize("way", members.WAYS)
def test_one_that_rests_keeps_its_whole_state(way):
    do_step = members.members_step(TEXT, MASKED, members.shared(ADAM), 1, way)
    states = after_three_steps(do_step)
    before = jax.device_get(states)
    states, _ = do_step(states, np.array([3, -1, 3]), *data(three(), 3))
    unmoved = [
        params_digest(members.member(before, r)) == params_digest(members.member(states, r))
        for r in range(3)
    ]
    assert unmoved == [False, True, False]


@pytest.mark.parametrize("way", members.WAYS)
def test_a_member_with_fewer_steps_ends_as_alone(way):
    got = go(three(steps=4), way=way)
    alone = separate(three(steps=4)[1], TEXT, MASKED)
    assert [each.steps for each in got.trained] == [STEPS, 4, STEPS]
    assert got.stopped == [None] * 3
    close(got.trained[1].params, alone.params)
    close(got.trained[1].curve, alone.curve)
    assert digests(got)[::2] == digests(go(three(), way=way))[::2]


def test_a_member_that_ended_takes_no_more_data():
    team = three(steps=4)
    go(team)
    assert [one.batches.taken for one in team] == [STEPS, 4, STEPS]


def lines(folder):
    return [
        {name: figure for name, figure in record.items() if name not in PACE}
        for record in log.read(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("way", members.WAYS)
@pytest.mark.parametrize("at", [2, 5, 7])
def test_resumed_is_unbroken(tmp_path, at, way):
    want = go(three(tmp_path / "a"), tmp_path / "a", way)
    with pytest.raises(PowerCut):
        go(three(tmp_path / "b", at=at, happens=power_cut), tmp_path / "b", way)
    got = go(three(tmp_path / "b"), tmp_path / "b", way=None if at > 3 else way)
    assert got.way == way
    assert digests(got) == digests(want)
    for r, (mine, other) in enumerate(zip(got.trained, want.trained, strict=True)):
        assert mine.curve == other.curve and mine.tokens == other.tokens
        assert lines(tmp_path / "a" / f"member-{r}") == lines(tmp_path / "b" / f"member-{r}")


def test_the_way_once_chosen_stays_though_nothing_was_saved(tmp_path, monkeypatch):
    def timed(faster):
        return lambda programs, *_: {way: float(way != faster) for way in programs}

    for faster in members.WAYS:
        out = tmp_path / faster
        monkeypatch.setattr(members, "seconds_per_step", timed(faster))
        with pytest.raises(PowerCut):
            go(three(at=2, happens=power_cut), out, way=None)
        (other,) = set(members.WAYS) - {faster}
        monkeypatch.setattr(members, "seconds_per_step", timed(other))
        got = go(three(), out, way=None)
        assert got.way == faster
        assert digests(got) == digests(go(three(), way=faster))


def test_the_batch_a_member_broke_on_is_kept(tmp_path):
    got = go(three(tmp_path, at=4, happens=poison))
    path = tmp_path / "member-1" / "not-finite-step-4.npz"
    assert str(path) in got.stopped[1]
    stream = Stream(1)
    wanted = poison([next(stream) for _ in range(4)][-1])
    with np.load(path, allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["tokens"], wanted["tokens"])
        assert kept.keys() == wanted.keys()


def test_a_members_damaged_checkpoint_is_written_again(tmp_path):
    want = digests(go(three(tmp_path), tmp_path))
    (tmp_path / "member-1" / "checkpoints" / str(STEPS) / "digests.json").unlink()
    go(three(tmp_path), tmp_path)
    params, _ = load_params(tmp_path / "member-1" / "checkpoints")
    assert params_digest(params) == want[1]


def test_a_stopped_member_stays_stopped_when_resumed(tmp_path):
    want = go(three(at=2, happens=poison))
    team = three(at=2, happens=poison)
    team[0] = text_member(0, faster(ADAM, 1.0), at=5, happens=power_cut)
    with pytest.raises(PowerCut):
        go(team, tmp_path)
    got = go(three(), tmp_path)
    assert got.stopped == want.stopped and digests(got) == digests(want)


def test_a_validation_that_is_not_finite_stops_a_member():
    team = three()
    team[1] = dataclasses.replace(team[1], validation=[poison(next(batches()))])
    got = go(team)
    assert [each.steps for each in got.trained] == [STEPS, 4, STEPS]
    assert "seed 1: loss nan at step 4 must be finite" in got.stopped[1]
    assert params_digest(got.trained[1].params) == digests(go(three(at=5, happens=poison)))[1]
    with pytest.raises(UserError, match="seed 1: loss nan at step 4 must be finite; there is no"):
        separate(dataclasses.replace(team[1], batches=Stream(1)), TEXT, MASKED)


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    with pytest.raises(Interrupted, match="toy: stopped by SIGTERM, step 2 of 7 is saved"):
        go(three(at=2, happens=terminate), tmp_path)
    assert digests(go(three(), tmp_path)) == digests(go(three()))


def test_finished_says_so_and_takes_no_batch(tmp_path, capsys):
    want = go(three(tmp_path), tmp_path)
    capsys.readouterr()
    again = go(three(tmp_path, at=STEPS + 1, happens=power_cut), tmp_path)
    assert "toy: already finished at step 7 of 7" in capsys.readouterr().err
    assert digests(again) == digests(want)
    assert [each.seconds for each in again.trained] == pytest.approx(
        [each.seconds for each in want.trained], rel=0.5
    )


def test_a_members_folder_is_that_of_a_separate_run(tmp_path, capsys):
    got = go(three(tmp_path), tmp_path)
    for r, one in enumerate(three(tmp_path)):
        folder = tmp_path / f"member-{r}"
        read, config = load_params(folder / "checkpoints")
        assert params_digest(read) == digests(got)[r]
        assert ModelConfig.from_plain(config["model"]) == TEXT
        separately = separate(one, TEXT, MASKED, out=folder)
        assert f"seed {one.run.seed}: already finished at step 7" in capsys.readouterr().err
        assert params_digest(separately.params) == digests(got)[r]
        assert separately.curve == got.trained[r].curve


def test_the_way_is_measured_and_kept(tmp_path):
    with pytest.raises(PowerCut):
        go(three(at=5, happens=power_cut), tmp_path, way=None)
    got = go(three(), tmp_path, way=None)
    assert set(got.seconds_per_step) == set(members.WAYS)
    assert got.seconds_per_step[got.way] == min(got.seconds_per_step.values())
    # Measuring took no step of the run's own.
    assert digests(got) == digests(go(three(), way=got.way))
    other = next(way for way in members.WAYS if way != got.way)
    with pytest.raises(UserError, match=f"a grid run by '{got.way}', not '{other}'"):
        go(three(), tmp_path, way=other)


def test_another_grid_is_refused_by_name(tmp_path):
    go(three(), tmp_path)
    other = three()
    other[2] = text_member(1, faster(ADAM, 0.5))
    with pytest.raises(UserError, match=r"2\.optimizer\.learning_rate=0\.003 \(now 0\.005\)"):
        go(other, tmp_path)


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
    do_step = members.members_step(TEXT, MASKED, members.shared(ADAM), 1, "vmap")
    programs = do_step._cache_size()  # pyright: ignore
    rule = OptimizerConfig("adamw", schedule="cosine", warmup=0.2)
    other = [text_member(seed, faster(rule, 1 / seed)) for seed in (4, 5, 6)]
    go(other)
    assert members.members_step(TEXT, MASKED, members.shared(other[0].rule), 1, "vmap") is do_step
    assert do_step._cache_size() == programs  # pyright: ignore
