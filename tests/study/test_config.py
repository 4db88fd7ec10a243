import dataclasses
import json

import pytest

from fm.errors import UserError
from fm.study.config import StudyConfig, config_hash, to_dict
from fm.study.run_dir import init, matches_config
from tests.study.problems import config, recipe


def study(**changes):
    return StudyConfig(**{"experiment": "test", "tasks": (config(),), "seeds": 2} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("scratch", "magic")}, "arm 'magic' is not known; accepted are scratch, self"),
        ({"arms": ("scratch",)}, "takes at least two"),
        ({"arms": ("scratch", "in_domain", "in_domain")}, "none of them twice"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"pretrain_seeds": 3}, "pretrain_seeds=3 can be at most seeds=2"),
    ],
)
def test_a_bad_study_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        study(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"batch_size": 0}, {"learning_rates": ()}, {"penalties": (float("nan"),)}],
    ids=str,
)
def test_a_bad_recipe_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        recipe(**changes)


def test_a_study_is_plain_json_and_its_digest_covers_every_field():
    assert json.loads(json.dumps(to_dict(study()))) == to_dict(study())
    assert config_hash(study()) == config_hash(study())
    changed = dataclasses.replace(config(), fingerprint="other")
    others = [study(seeds=3), study(experiment="x"), study(tasks=(changed,))]
    assert len({config_hash(each) for each in [study(), *others]}) == 4


def test_a_folder_at_work_is_refused(tmp_path, monkeypatch):
    def refuse(_):
        raise UserError("is in use by process 7")

    monkeypatch.setattr("fm.lock.acquire", refuse)
    with pytest.raises(UserError, match="in use by process 7"):
        init(to_dict(study()), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_what_a_killed_run_left_is_swept(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".a.json.12.partial").write_text("{")
    init(to_dict(study()), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_claim_keeps_a_folder_for_one_config(tmp_path):
    out = tmp_path / "deep" / "run"
    mine = to_dict(study())
    assert not matches_config(mine, out)
    assert list(out.iterdir()) == []
    init(mine, out)
    assert matches_config(mine, out)
    init(mine, out)
    task = dataclasses.replace(config(), recipe=recipe("text", steps=5))
    other = to_dict(study(seeds=3, tasks=(task,)))
    with pytest.raises(UserError) as raised:
        init(other, out)
    message = str(raised.value)
    assert "seeds: 2 -> 3" in message and "tasks.fruit.recipe.steps: 4 -> 5" in message
    assert str(out) in message and "\n" not in message
    assert json.loads((out / "config.json").read_text()) == mine


def test_many_differences_are_counted(tmp_path):
    init({str(n): n for n in range(9)}, tmp_path)
    with pytest.raises(UserError, match="and 5 more"):
        init({str(n): n + 1 for n in range(9)}, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be used \(Not a directory\)"):
        matches_config({}, tmp_path / "file" / "run")


def test_a_broken_config_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be used"):
        matches_config({}, tmp_path)
