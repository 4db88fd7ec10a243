"""A grid that is cut off and called again: resumed is unbroken."""

import pytest

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import Interrupted, load_params, params_digest, sweep
from tests.training.problems import TEXT
from tests.training.team import (
    ADAM,
    MASKED,
    STEPS,
    digests,
    faster,
    go,
    separate,
    text_member,
    three,
)
from tests.training.toy import PowerCut, lines, poison, power_cut, terminate


@pytest.mark.parametrize("way", sweep.BATCHING_MODES)
@pytest.mark.parametrize("at", [2, 5, 7])
def test_resumed_is_unbroken(tmp_path, at, way):
    want = go(three(tmp_path / "a"), tmp_path / "a", way)
    with pytest.raises(PowerCut):
        go(three(tmp_path / "b", at=at, happens=power_cut), tmp_path / "b", way)
    got = go(three(tmp_path / "b"), tmp_path / "b", way=None if at > 3 else way)
    assert got.batching == way
    assert digests(got) == digests(want)
    for r, (mine, other) in enumerate(zip(got.results, want.results, strict=True)):
        assert mine.curve == other.curve and mine.tokens == other.tokens
        assert lines(tmp_path / "a" / f"member-{r}") == lines(tmp_path / "b" / f"member-{r}")


def test_the_way_once_chosen_stays_though_nothing_was_saved(tmp_path, monkeypatch):
    def timed(quick):
        return lambda programs, *_: {way: float(way != quick) for way in programs}

    for quick in sweep.BATCHING_MODES:
        out = tmp_path / quick
        monkeypatch.setattr(sweep, "seconds_per_step", timed(quick))
        with pytest.raises(PowerCut):
            go(three(at=2, happens=power_cut), out, way=None)
        (other,) = set(sweep.BATCHING_MODES) - {quick}
        monkeypatch.setattr(sweep, "seconds_per_step", timed(other))
        got = go(three(), out, way=None)
        assert got.batching == quick
        assert digests(got) == digests(go(three(), way=quick))


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
    assert got.stop_reasons == want.stop_reasons and digests(got) == digests(want)


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
    assert [each.seconds for each in again.results] == pytest.approx(
        [each.seconds for each in want.results], rel=0.5
    )


def test_a_members_folder_is_that_of_a_separate_run(tmp_path, capsys):
    got = go(three(tmp_path), tmp_path)
    for r, one in enumerate(three(tmp_path)):
        folder = tmp_path / f"member-{r}"
        read, config = load_params(folder / "checkpoints")
        assert params_digest(read) == digests(got)[r]
        assert ModelConfig.from_dict(config["model"]) == TEXT
        separately = separate(one, TEXT, MASKED, out=folder)
        assert (
            f"seed {one.train_config.seed}: already finished at step 7" in capsys.readouterr().err
        )
        assert params_digest(separately.params) == digests(got)[r]
        assert separately.curve == got.results[r].curve


def test_the_way_is_measured_and_kept(tmp_path):
    with pytest.raises(PowerCut):
        go(three(at=5, happens=power_cut), tmp_path, way=None)
    got = go(three(), tmp_path, way=None)
    assert set(got.seconds_per_step) == set(sweep.BATCHING_MODES)
    assert got.seconds_per_step[got.batching] == min(got.seconds_per_step.values())
    # Measuring took no step of the run's own.
    assert digests(got) == digests(go(three(), way=got.batching))
    other = next(way for way in sweep.BATCHING_MODES if way != got.batching)
    with pytest.raises(UserError, match=f"a grid run by '{got.batching}', not '{other}'"):
        go(three(), tmp_path, way=other)


def test_another_grid_is_refused_by_name(tmp_path):
    go(three(), tmp_path)
    other = three()
    other[2] = text_member(1, faster(ADAM, 0.5))
    with pytest.raises(UserError, match=r"2\.optimizer\.learning_rate=0\.003 \(now 0\.005\)"):
        go(other, tmp_path)
