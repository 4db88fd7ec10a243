"""Scores by group of test items, against figures counted by hand."""

import dataclasses

import numpy as np
import pytest

from fm.study import group_scores
from fm.study.cells import Cell
from fm.study.group_scores import group_score_rows, pooled_groups
from fm.study.runner import interval_groups
from fm.study.tasks import prepare_task
from tests.study.helpers_study import config, dataset, loads


@pytest.fixture
def task(monkeypatch):
    made = dataset("fruit", test=12)
    names = np.array(["imdb"] * 8 + ["rotten"] * 4)
    test = dataclasses.replace(
        made.test, columns={"groups": lambda rows: [str(names[n]) for n in rows]}
    )
    loads(monkeypatch, dataclasses.replace(made, test=test))
    monkeypatch.setattr(group_scores, "MIN_ITEMS", 3)
    return prepare_task(config("fruit"), (), 2)


def cell(task, predictions):
    seeds = len(predictions)
    empty = [{}] * seeds
    return Cell("fruit", "in_domain", 8, empty, [[]] * seeds, predictions, None, [1.0], 0, 0, 0)


def test_every_group_is_scored_alone(task):
    truth = np.asarray(task.test.labels)
    right = np.stack([truth, truth])
    right[0, :2] = 1 - right[0, :2]  # two of eight of imdb
    right[1, 8:] = 1 - right[1, 8:]  # all of rotten
    imdb, rotten = group_score_rows([cell(task, right)], task)
    assert (imdb["group"], imdb["items"], imdb["value"]) == ("imdb", 8, 14 / 16)
    assert (rotten["group"], rotten["items"], rotten["value"]) == ("rotten", 4, 4 / 8)
    assert imdb["low"] < 14 / 16 < imdb["high"]
    (alone, _) = group_score_rows([cell(task, right[:1])], task)
    assert alone["value"] == 6 / 8 and alone["low"] is alone["high"] is None


def test_small_groups_are_one():
    groups = np.array(["a"] * group_scores.MIN_ITEMS + ["b", "c", "c"])
    assert set(pooled_groups(groups)) == {"a", "2 smaller groups"}


def test_no_groups_or_one_have_no_rows(task, monkeypatch):
    truth = np.asarray(task.test.labels)[None]
    one = dataclasses.replace(task)
    one.__dict__["item_groups"] = np.array(["all"] * 12)
    assert group_score_rows([cell(task, truth)], one) == []
    one.__dict__["item_groups"] = None
    assert group_score_rows([cell(task, truth)], one) == []


@pytest.mark.parametrize("column", ["", "writer"])
def test_the_flag_is_named_only_where_it_was_given(task, capsys, column):
    few = dataclasses.replace(task, config=dataclasses.replace(task.config, item_group=column))
    few.__dict__["item_groups"] = np.array(["a", "b"] * 6)
    assert interval_groups(few, 8) is None
    said = capsys.readouterr().err
    assert "the test items fall into 2 groups, and intervals over so few do not hold" in said
    assert ("--item_group" in said) == ("takes a column" in said) == bool(column)
