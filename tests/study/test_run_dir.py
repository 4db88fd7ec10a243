"""A run's folder: one config, one process, results and a summary that no clock changes."""

import dataclasses
import hashlib
import json

import pytest

from fm.errors import UserError
from fm.study import run_dir
from tests.study.helpers_study import config, recipe
from tests.study.test_config import study

RESULTS = {
    "config": {"seeds": 2},
    "seconds": 3.5,
    "device": {"cores": 2},
    "cells": [
        {"task": "fruit", "arm": "in_domain", "num_labels": 20, "value": 0.5, "seconds": 1.0},
        {"task": "fruit", "arm": "in_domain", "num_labels": 20, "value": 1.0, "seconds": 2.0},
        {"task": "fruit", "arm": "scratch", "num_labels": 20, "value": 0.25, "seconds": 2.0},
    ],
    "compute_cost": [{"arm": "in_domain", "pretrain_seconds": 9.0, "pretrain_flops": 4.0}],
    "pretrained": [
        {"name": "fruit/in_domain/1", "steps": 5, "params_digest": "b" * 64},
        {"name": "fruit/in_domain/0", "steps": 7, "params_digest": "a" * 64},
    ],
}


def changed(**changes):
    return json.loads(json.dumps(RESULTS)) | changes


def test_summary_of_a_study(tmp_path):
    (tmp_path / "predictions.csv").write_text("a,b\n")
    path = run_dir.write_study_summary_json(RESULTS, tmp_path)
    summary = json.loads(path.read_text())
    assert summary["metrics"] == {"fruit/in_domain/20": 0.75, "fruit/scratch/20": 0.25}
    assert summary["cells"] == 3 and summary["seconds"] == 3.5
    assert summary["config"] == {"seeds": 2}
    assert summary["predictions_digest"] == hashlib.sha256(b"a,b\n").hexdigest()
    assert {"jax", "fm", "python"} <= summary["versions"].keys()
    assert summary["steps"] == 12


def test_params_digest_covers_every_model_by_name(tmp_path):
    def of(name, *rows):
        path = run_dir.write_study_summary_json(changed(pretrained=rows), tmp_path / name)
        return json.loads(path.read_text())["params_digest"]

    first, second = RESULTS["pretrained"]
    assert of("a", first, second) == of("b", second, first)
    others = of("c"), of("d", first), of("e", first | {"name": "x"}, second)
    assert len({of("a", first, second), *others}) == 4


def test_summary_of_a_text_quality_study(tmp_path):
    models = [{"arm": "A", "stage": "end", "domain": "B", "step": 9, "value": 2.5}]
    results = {"config": {}, "seconds": 1.0, "models": models, "samples": [{}, {}]}
    summary = json.loads(run_dir.write_study_summary_json(results, tmp_path).read_text())
    assert summary["metrics"] == {"A/end/B": 2.5} and summary["samples"] == 2


def test_results_digest_ignores_timings():
    digest = run_dir.results_digest(RESULTS)
    slower = [row | {"seconds": 99.0} for row in RESULTS["cells"]]
    assert run_dir.results_digest(changed(seconds=1.0, cells=slower, device={})) == digest
    dearer = [{"arm": "in_domain", "pretrain_seconds": 1.0, "pretrain_flops": 4.0}]
    assert run_dir.results_digest(changed(compute_cost=dearer)) == digest
    # From how many tasks on something pays in seconds, if it ever does, is the clock's to say.
    bills = [
        [{"flops": 2, "flops_until": None, "seconds": at, "seconds_until": until}]
        for at, until in ((None, None), (3, 17))
    ]
    one, other = (run_dir.results_digest(changed(break_even=bill)) for bill in bills)
    assert one == other != digest
    better = [row | {"value": 1.0} for row in RESULTS["cells"]]
    assert run_dir.results_digest(changed(cells=better)) != digest


def test_summary_of_equal_results_is_kept(tmp_path):
    run_dir.write_study_summary_json(RESULTS, tmp_path)
    run_dir.write_study_summary_json(changed(seconds=0.01), tmp_path)
    assert json.loads((tmp_path / run_dir.SUMMARY_FILE).read_text())["seconds"] == 3.5
    run_dir.write_study_summary_json(changed(seconds=0.01, cells=RESULTS["cells"][:2]), tmp_path)
    assert json.loads((tmp_path / run_dir.SUMMARY_FILE).read_text())["cells"] == 2


def test_locked_folder_is_refused(tmp_path, monkeypatch):
    def refuse(_):
        raise UserError("is in use by process 7")

    monkeypatch.setattr("fm.lock.acquire", refuse)
    with pytest.raises(UserError, match="in use by process 7"):
        run_dir.init(study().to_dict(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_partial_files_of_killed_runs_are_removed(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".a.json.12.partial").write_text("{")
    run_dir.init(study().to_dict(), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("mark", [".lock", "config.json"])
@pytest.mark.parametrize("place", ["x", "deep/x"])
def test_partial_files_of_other_runs_stay(tmp_path, mark, place):
    other = tmp_path / place
    (other / "cells").mkdir(parents=True)
    (other / mark).write_text("{}")
    theirs = other / "cells" / ".a.json.12.partial", other / ".results.json.12.partial"
    own = tmp_path / "deep" / ".a.json.12.partial"
    own.parent.mkdir(exist_ok=True)
    for path in (*theirs, own):
        path.write_text("{")
    run_dir.init(study().to_dict(), tmp_path)
    assert all(path.exists() for path in theirs) and not own.exists()


def test_folder_holds_one_config(tmp_path):
    out = tmp_path / "deep" / "run"
    mine = study().to_dict()
    assert not run_dir.check_existing_run(mine, out)
    assert not out.parent.exists()
    run_dir.init(mine, out)
    assert run_dir.check_existing_run(mine, out)
    run_dir.init(mine, out)
    task = dataclasses.replace(config(), recipe=recipe("text", steps=5))
    other = study(seeds=3, tasks=(task,)).to_dict()
    with pytest.raises(UserError) as raised:
        run_dir.init(other, out)
    message = str(raised.value)
    assert "seeds: 2 -> 3" in message and "tasks.fruit.recipe.steps: 4 -> 5" in message
    assert str(out) in message and "\n" not in message
    assert json.loads((out / "config.json").read_text()) == mine


def test_long_list_of_differences_is_shortened(tmp_path):
    run_dir.init({str(n): n for n in range(9)}, tmp_path)
    with pytest.raises(UserError, match="and 5 more"):
        run_dir.init({str(n): n + 1 for n in range(9)}, tmp_path)


def test_a_check_writes_nothing(tmp_path):
    assert not run_dir.check_existing_run({"a": 1}, tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file is there"):
        run_dir.check_existing_run({"a": 1}, tmp_path / "file")


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be used \(Not a directory\)"):
        run_dir.check_existing_run({}, tmp_path / "file" / "run")


def test_broken_config_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be used"):
        run_dir.check_existing_run({}, tmp_path)


def test_config_of_an_earlier_version_names_the_new_field(tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "test", "adapt": ["probe"]}')
    with pytest.raises(UserError, match="its config says 'adapt', which is now 'methods'"):
        run_dir.init(study().to_dict(), tmp_path)
