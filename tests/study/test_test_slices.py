"""Slices of test items: which are scored, what a development part leaves alone, and the ledger."""

import dataclasses
import json

import numpy as np
import pytest

from fm.errors import UserError
from fm.study import runner
from fm.study import test_slices as slices
from fm.study.config import StudyConfig
from fm.study.runner import run_compare
from fm.study.task_registry import TASKS
from fm.study.tasks import prepare_task
from tests.study.helpers_study import config, dataset, loads, split, texts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FM_CACHE", str(folder))
    return folder


@pytest.fixture
def task(monkeypatch):
    """`task(**changes)` prepares a task of 60 test items."""
    loads(monkeypatch, dataset(train=200, test=60))
    return lambda **changes: prepare_task(config(**changes), ("in_domain",), 1)


def test_slices_that_follow_each_other_are_disjoint(task):
    parts = [task(max_test_items=20, test_slice=start).test for start in (0, 20, 40)]
    whole = task(max_test_items=60).test
    assert sorted(each for part in parts for each in part.ids) == sorted(whole.ids)
    assert len(set(whole.ids)) == 60 and [len(part) for part in parts] == [20, 20, 20]
    assert len(task(max_test_items=20, test_slice=50).test) == 10
    with pytest.raises(UserError, match="--test_slice=59: fruit has 60 test items; takes 0 to 58"):
        task(test_slice=59)


def test_a_development_part_leaves_the_test_split_alone(monkeypatch):
    words, labels = texts(200, 0)
    data = dataset(train=200, test=60)
    data = dataclasses.replace(data, train=split([*words, words[3] + "!"], [*labels, labels[3]]))
    loads(monkeypatch, data)
    whole = prepare_task(config(), ("in_domain",), 1)
    own = prepare_task(config(split="development", test_slice=30), ("in_domain",), 2)
    test_ids, parts = set(data.test.ids), (own.test, own.dataset.train, own.corpora["in_domain"])
    for part in parts:
        assert len(part) and not test_ids & set(part.ids) and set(part.ids) <= set(data.train.ids)
    assert not set(own.test.ids) & set(own.dataset.train.ids)
    assert len(own.test) == 40 and set(own.test.labels) == {0, 1}
    assert set(whole.test.ids) <= test_ids
    # Near-duplicates are searched for among the development items, not the test items.
    assert own.decontamination["in_domain"].num_checked == 40
    near = {data.train.ids[3], data.train.ids[200]}
    assert len(near & set(own.test.ids)) + len(near & set(own.dataset.train.ids)) <= 2
    assert not (near & set(own.test.ids) and near & set(own.dataset.train.ids))


def test_every_other_configuration_of_a_slice_counts_once(task):
    first, second = task(max_test_items=20), task(max_test_items=20, test_slice=20)
    overlapping = task(max_test_items=20, test_slice=10)
    assert slices.record(first, "a") == {
        "name": "items 0 to 19 of 60",
        "items": 20,
        "scored_before": 0,
        "sealed": True,
    }
    rows = [slices.record(first, each) for each in ("b", "a", "c", "b")]
    assert [row["scored_before"] for row in rows] == [1, 0, 2, 1]
    assert [row["sealed"] for row in rows] == [False, True, False, False]
    assert slices.record(second, "d")["scored_before"] == 0
    assert slices.record(overlapping, "e")["scored_before"] == 4
    whole = slices.record(task(), "f")
    assert whole["scored_before"] == 5 and whole["name"] == "all test items"
    development = slices.record(task(split="development"), "g")
    assert development["scored_before"] is None and development["name"] == "development"
    assert slices.record(second, "h")["scored_before"] == 3  # d, e and f


def test_the_same_name_of_other_test_items_does_not_count(task, monkeypatch):
    slices.record(task(), "a")
    loads(monkeypatch, dataset(train=200, test=61))
    assert slices.record(prepare_task(config(), (), 1), "b")["scored_before"] == 0


@pytest.mark.parametrize("damage", ["not json", '{"sha256": "", "value": []}', '"locked"', None])
def test_a_ledger_that_cannot_be_used_is_said_in_one_line(task, cache, capsys, damage):
    slices.record(task(), "a")
    path = cache / slices.LEDGER_FILE
    if damage is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_text(damage)
    prepared = task()
    capsys.readouterr()
    row = slices.record(prepared, "b")
    assert row["scored_before"] == "unknown" and not row["sealed"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{path}: how often the test items of fruit" in lines[0]


def test_what_had_been_scored_before_this_version_counts():
    history = [each for each in slices.history() if each.dataset == "film_reviews"]
    film, quick, kept, full, again, extended, third, claim = history
    start = TASKS["film_reviews"].test_slice
    assert (kept.start, kept.stop) == (start, start + 1000) and len(kept.configs) == 1
    assert (film.stop, quick.start, quick.stop) == (1000, 1000, start) and film.others > 0
    assert all(each.others or each.configs for each in slices.history())

    def before(start, stop, dataset="film_reviews", own="x"):
        wanted = slices.TestSlice(dataset, "", start, stop)
        return slices.scored_before(wanted, own, slices.history())

    assert before(0, 200) == film.others and before(999, 1999) == film.others + 3
    assert (full.start, full.stop, again.start) == (kept.stop, kept.stop + 3000, start)
    assert before(1000, 1100) == 1 and before(start, 2200) == 3 and before(6700, 6800) == 0
    assert before(5200, 6000) == len(claim.configs) == 5
    assert third.start == start
    assert before(start, 2200, own=kept.configs[0]) == 2  # the kept result may be made again
    assert (extended.start, extended.stop) == (full.start, full.stop)
    assert before(2200, 5200) == len(full.configs) + 1 + 5
    assert before(0, 10, "unheard_of") == 0
    assert before(300, 394, "digits") > 0
    listed = dataclasses.replace(film, start=1000, stop=2000, configs=("x", "y"), others=0)
    wanted = slices.TestSlice("film_reviews", "", 1000, 2000)
    assert slices.scored_before(wanted, "x", [listed, listed]) == 1
    assert slices.scored_before(wanted, "z", [listed, listed]) == 2


def test_a_study_stopped_before_it_scores_is_not_recorded(monkeypatch, cache, tmp_path):
    loads(monkeypatch, dataset())

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "build_arms", stopped)
    study = StudyConfig(tasks=(config(),), arms=("scratch", "classical"), seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run_compare(study, tmp_path / "out")
    assert not (cache / slices.LEDGER_FILE).exists()


def test_the_ledger_is_plain_json(task, cache):
    slices.record(task(), "a")
    (entry,) = json.loads((cache / slices.LEDGER_FILE).read_text())["value"]
    assert entry["configs"] == ["a"] and entry["dataset"] == "fruit" and entry["stop"] == 60
    assert not list(cache.glob(".*"))


def test_groups_of_the_test_items_scored(monkeypatch):
    data = dataset(test=12)
    parts = [
        dataclasses.replace(
            part, columns={"groups": lambda idx, own=own: [own[n % len(own)] for n in idx]}
        )
        for part, own in ((data.train, "abcde"), (data.test, "xyz"))
    ]
    info = data.info | {"item_group": "voice", "split": "by voice"}
    loads(monkeypatch, dataclasses.replace(data, train=parts[0], test=parts[1], info=info))
    task = prepare_task(config(max_test_items=5), (), 1)
    assert task.item_groups.tolist() == ["xyz"[n % 3] for n in task.test.source_idx]
    loads(monkeypatch, dataset())
    assert prepare_task(config(), (), 1).item_groups is None
    # Voices that differ between the splits differ between training and development, too.
    loads(monkeypatch, dataclasses.replace(data, train=parts[0], test=parts[1], info=info))
    own = prepare_task(config(split="development"), (), 1)
    voices = [set(each.groups(range(len(each)))) for each in (own.test, own.dataset.train)]
    assert len(voices[0]) == 1 and not voices[0] & voices[1]
    assert own.dataset.info["split"] == "development part of the training split, by voice"
    assert isinstance(own.item_groups, np.ndarray)


def test_items_at_another_image_size_are_the_same_items(task, monkeypatch):
    small, other = task(), dataset(train=200, test=60)
    ids = tuple(f"{each} at another size" for each in other.test.ids)
    test = dataclasses.replace(other.test, ids=ids)
    loads(monkeypatch, dataclasses.replace(other, test=test))
    large = task(image_size=64)
    slices.record(small, "first")
    assert slices.record(large, "second")["scored_before"] == 1
    assert slices.record(small, "third")["scored_before"] == 2
