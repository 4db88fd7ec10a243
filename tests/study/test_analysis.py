import csv
import dataclasses
import types

import numpy as np
import pandas as pd
import pytest

from fm.errors import UserError
from fm.evaluation.design import Design
from fm.evaluation.statistics import table_difference
from fm.study import analysis, comparisons
from fm.study.analysis import merge_studies, read_scores, write_predictions
from fm.study.arms import comparison_pairs
from fm.study.cells import Cell
from fm.study.head_task_types import Classification
from fm.study.task_types import TASK_TYPES
from fm.study.tasks import prepare_task
from tests.study import helpers_study
from tests.study.helpers_study import config, dataset, guessed, loads, split

ARMS = ("scratch", "in_domain", "classical")
TASKS = [{"name": "fruit", "task_type": "classification"}]
SKILLS = {"scratch": 0.6, "in_domain": 0.9, "classical": 0.7}


def multipliers(cells, task):
    return comparisons.label_multiplier_rows(analysis.task_scores(cells, task, {}), {})


def test_seeds_are_shared_out_over_checkpoints(task):
    cells = guessed(task, SKILLS, seeds=4)
    runs = {"in_domain": [object()] * 2, "scratch": [object()]}
    scores = analysis.task_scores(cells, task, runs)
    assert scores.checkpoints == {"in_domain": [0, 1, 0, 1]}


@pytest.fixture
def task(monkeypatch):
    loads(monkeypatch, dataset(test=60))
    return prepare_task(config(), ARMS, 3)


@pytest.fixture
def predictions(task, tmp_path):
    cells = guessed(task, SKILLS)
    write_predictions(
        [(task, cells, analysis.task_scores(cells, task, {}))], tmp_path / "predictions.csv"
    )
    return cells, tmp_path / "predictions.csv"


def test_anyone_can_recompute_the_figures(task, predictions):
    cells, path = predictions
    table = pd.read_csv(path)
    assert len(table) == 3 * 2 * 3 * len(task.test)
    table["right"] = (table.truth == table.prediction).astype(float)
    by_cell = table.groupby(["task", "arm", "num_labels", "seed"]).right.mean()
    rows = analysis.cell_rows(cells, task, {})
    assert len(rows) == len(by_cell)
    for row in rows:
        place = row["task"], row["arm"], row["num_labels"], row["seed"]
        assert row["value"] == pytest.approx(by_cell[place], abs=1e-12)
    scores = analysis.task_scores(cells, task, {})
    assert scores.rivals == ("scratch", "classical")
    found = comparisons.comparison_rows([scores], {"fruit": comparison_pairs(ARMS)})
    pairs = {(row["arm"], row["baseline"]) for row in found if row["num_labels"]}
    assert pairs == {("in_domain", "scratch"), ("classical", "scratch"), ("in_domain", "classical")}
    for row in found:
        if row["num_labels"] is None:
            continue
        arm = by_cell[row["task"], row["arm"], row["num_labels"]]
        base = by_cell[row["task"], row["baseline"], row["num_labels"]]
        differences = (arm - base).to_numpy()
        assert row["difference"] == pytest.approx(differences.mean(), abs=1e-12)
        assert (row["seeds"], row["items"]) == (3, len(task.test))
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["p_adjusted"] >= row["p"]


def test_predictions_name_items_by_content(task, predictions):
    with predictions[1].open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["item"] == task.test.ids[0][:12]
    assert int(first["truth"]) == task.test.labels[0]


def test_scores_are_read_back_as_they_were(task, predictions):
    cells, path = predictions
    results = {"tasks": TASKS, "cells": analysis.cell_rows(cells, task, {})}
    scores = read_scores(path, results)
    assert len(scores) == len(cells)
    for cell in cells:
        expected = analysis.cell_scores(cell, task)
        assert np.array_equal(scores[cell.task, cell.arm, cell.num_labels], expected)
    results["cells"][3]["value"] += 0.01
    with pytest.raises(UserError, match=r"predictions.csv does not give the accuracy of scratch"):
        read_scores(path, results)


class Near(Classification):
    """Classes that are numbers; a near miss counts for something."""

    name = "near"

    def scores(self, predictions, split):
        return 1.0 - np.abs(predictions - np.asarray(split.labels)) / 3


@pytest.mark.parametrize(
    ("name", "predictions"),
    [
        ("classification", [[0, 3, 2, 1], [1, 1, 1, 1]]),
        ("near", [[0, 3, 2, 1], [1, 1, 1, 1]]),
        ("ner", [[[1, 2, 1], [0, 0, 2], [3, 3, 3], [0, 1, 0]], [[0, 0, 1], [1, 1, 2]] * 2]),
        ("text_generation", [[0.25, 0.5, 1.0, 0.0], [0.125, 0.75, 0.3, 0.7]]),
    ],
)
def test_every_task_type_reads_its_own_rows(monkeypatch, tmp_path, task, name, predictions):
    monkeypatch.setitem(TASK_TYPES, "near", Near())
    own = dataclasses.replace(
        task,
        dataset=dataclasses.replace(task.dataset, classes=("k", "l", "m", "n")),
        test=split(["a", "b", "c", "d"], [0, 1, 2, 3]),
        task_type=TASK_TYPES[name],
    )
    cells = [
        Cell(
            *(task.name, "scratch", 8, [{}] * 2, [[]] * 2, np.array(each), None),
            *([1.0] * 2, 1.0, None, 0.0),
        )
        for each in (predictions, [*predictions[::-1]])
    ]
    scores = []
    for n, cell in enumerate(cells):
        scored = analysis.task_scores([cell], own, {})
        write_predictions([(own, [cell], scored)], tmp_path / f"{n}.csv")
        results = {
            "tasks": [{"name": task.name, "task_type": name}],
            "cells": analysis.cell_rows([cell], own, {}),
        }
        found = read_scores(tmp_path / f"{n}.csv", results)[task.name, "scratch", 8]
        np.testing.assert_allclose(found, analysis.cell_scores(cell, own), atol=1e-6)
        scores.append(found)
    assert scores[0].any() and np.array_equal(scores[0], scores[1][::-1])


def test_one_seed_gives_no_interval(task):
    cells = guessed(task, SKILLS, seeds=1)
    scores = analysis.task_scores(cells, task, {})
    assert comparisons.comparison_rows([scores], {"fruit": comparison_pairs(ARMS)}) == []
    rows = analysis.compute_cost_rows(cells, task, {}, [])
    assert [row["break_even_tasks"] for row in rows] == [None] * 3


def test_pretraining_is_charged_once_however_many_seeds_repeat_it(task):
    cells = guessed(task, SKILLS)
    cells = [dataclasses.replace(cell, train_flops=[1e6 * cell.num_labels] * 3) for cell in cells]
    clear = {"label_multiplier": 2.0, "low": 1.5, "censored": None}
    efficiency = [row | clear for row in multipliers(cells, task)]
    found = []
    for seeds in (1, 3):
        runs = [types.SimpleNamespace(flops=6e7, cpu_seconds=4.0)] * seeds
        rows = analysis.compute_cost_rows(cells, task, {"in_domain": runs}, efficiency)
        found.append(next(row for row in rows if row["arm"] == "in_domain"))
    assert found[0] == found[1]
    assert (found[0]["pretrain_flops"], found[0]["break_even_tasks"]) == (6e7, 8)


@pytest.fixture
def side_by_side(task, tmp_path):
    """Results and folders of two studies, which differ in the in_domain arm."""
    studies, folders = {}, {}
    for before, (value, skill) in enumerate((("0.5", 0.6), ("0.75", 0.95))):
        test_slice = {"name": "all test items", "items": 60, "scored_before": before}
        cells = guessed(task, {"scratch": 0.55, "in_domain": skill})
        folders[value] = tmp_path / value
        folders[value].mkdir()
        write_predictions(
            [(task, cells, analysis.task_scores(cells, task, {}))],
            folders[value] / "predictions.csv",
        )
        studies[value] = {
            "schema": 2,
            "seconds": 1.0,
            "config": {"hide": value},
            "tasks": [TASKS[0] | {"test_slice": test_slice | {"sealed": not before}}],
            "cells": analysis.cell_rows(cells, task, {}),
            "label_efficiency": multipliers(cells, task),
            "arms": [{"name": name} for name in ("scratch", "in_domain")],
            "pretrained": [{"name": "fruit/in_domain/0", "steps": 4, "params_digest": value}],
            **{key: [] for key in ("compute_cost", "curves", "samples", "mistakes")},
        }
    return studies, folders


def test_side_by_side_holds_each_value_against_the_first(side_by_side):
    studies, folders = side_by_side
    merged = merge_studies("objective.hide", studies, folders)
    assert {row["arm"] for row in merged["cells"]} == {
        "scratch",
        "in_domain, hide=0.5",
        "in_domain, hide=0.75",
    }
    assert len(merged["cells"]) == 3 * 2 * 3
    scores = {
        value: read_scores(folders[value] / "predictions.csv", studies[value]) for value in folders
    }
    assert [(row["arm"], row["baseline"], row["num_labels"]) for row in merged["comparisons"]] == [
        ("in_domain, hide=0.75", "in_domain, hide=0.5", 8),
        ("in_domain, hide=0.75", "in_domain, hide=0.5", 16),
    ]
    for row in merged["comparisons"]:
        place = "fruit", "in_domain", row["num_labels"]
        expected = scores["0.75"][place].mean() - scores["0.5"][place].mean()
        assert row["difference"] == pytest.approx(expected)
        assert 0 <= row["p"] <= row["p_adjusted"] <= 1
    assert merged["experiment"] == "ablate objective.hide"
    assert [(row["name"], row["params_digest"]) for row in merged["pretrained"]] == [
        ("hide=0.5/fruit/in_domain/0", "0.5"),
        ("hide=0.75/fruit/in_domain/0", "0.75"),
    ]
    assert merged["config"] == {"0.5": {"hide": "0.5"}, "0.75": {"hide": "0.75"}}
    assert [row["arm"] for row in studies["0.5"]["cells"][:1]] == ["scratch"]


def test_side_by_side_takes_groups_of_items_as_units(task, side_by_side):
    studies, folders = side_by_side
    alone = merge_studies("objective.hide", studies, folders)["comparisons"]
    before = [read_scores(folders[value] / "predictions.csv", studies[value]) for value in folders]
    gap_N = np.mean(before[1]["fruit", "in_domain", 8] - before[0]["fruit", "in_domain", 8], axis=0)
    # Voices whose items gain alike.
    groups = [f"voice {rank // 6}" for rank in np.argsort(np.argsort(gap_N, kind="stable"))]
    for value, skill in (("0.5", 0.6), ("0.75", 0.95)):
        cells = guessed(task, {"scratch": 0.55, "in_domain": skill})
        grouped = analysis.task_scores(cells, task, {}, groups=groups)
        write_predictions([(task, cells, grouped)], folders[value] / "predictions.csv")
    assert analysis.read_item_groups(folders["0.5"] / "predictions.csv") == {"fruit": groups}
    found = merge_studies("objective.hide", studies, folders)["comparisons"]
    scores = {
        value: read_scores(folders[value] / "predictions.csv", studies[value]) for value in folders
    }
    for row, other in zip(found, alone, strict=True):
        place = "fruit", "in_domain", row["num_labels"]
        gap = scores["0.75"][place] - scores["0.5"][place]
        expected = table_difference(gap, design=Design(groups=groups))
        assert (row["difference"], row["low"]) == pytest.approx((other["difference"], expected.low))
        assert row["low"] != pytest.approx(other["low"])


def test_side_by_side_keeps_what_each_study_says_of_the_test_items(side_by_side):
    studies, folders = side_by_side
    for value, results in studies.items():
        results["tasks"][0]["in_domain"] = {"model": value}
    (task,) = merge_studies("objective.hide", studies, folders)["tasks"]
    slices = {value: results["tasks"][0]["test_slice"] for value, results in studies.items()}
    assert task["variant_test_slices"] == slices and slices["0.75"]["scored_before"] == 1
    assert task["test_slice"] == slices["0.5"] | {"sealed": False}
    # An arm's own field of a task is renamed with the arm.
    assert {name: each for name, each in task.items() if name.startswith("in_domain, ")} == {
        f"in_domain, hide={value}": {"model": value} for value in studies
    }
    for results in studies.values():
        del results["tasks"][0]["test_slice"]
    (task,) = merge_studies("objective.hide", studies, folders)["tasks"]
    assert not {"test_slice", "variant_test_slices"} & task.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda study: study["tasks"][0]["test_slice"].update(items=61), "the test items of fruit"),
        (
            lambda study: study["tasks"][0]["test_slice"].update(name="items 0 to 59 of 90"),
            "the test items of fruit",
        ),
    ],
)
def test_studies_of_other_test_items_are_not_set_side_by_side(side_by_side, change, words):
    studies, folders = side_by_side
    change(studies["0.75"])
    with pytest.raises(UserError, match=f"hide=0.75 and hide=0.5 differ in {words}, so they can"):
        merge_studies("objective.hide", studies, folders)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"seeds": 2}, "their numbers of seeds"),
        ({"arms": ("scratch",)}, "tasks, arms or label budgets"),
        ({"items": 50}, "their test items"),
    ],
)
def test_studies_that_cannot_be_paired_are_refused(task, side_by_side, made, words):
    studies, folders = side_by_side
    if "items" in made:
        test = helpers_study.split(*helpers_study.texts(made["items"], 1))
        task = dataclasses.replace(task, test=test)
    skills = {arm: 0.7 for arm in made.get("arms", ("scratch", "in_domain"))}
    cells = guessed(task, skills, seeds=made.get("seeds", 3))
    scored = analysis.task_scores(cells, task, {})
    write_predictions([(task, cells, scored)], folders["0.75"] / "predictions.csv")
    studies["0.75"]["cells"] = analysis.cell_rows(cells, task, {})
    with pytest.raises(UserError, match=f"hide=0.75 and hide=0.5 differ in {words}, so they can"):
        merge_studies("objective.hide", studies, folders)


def trained(task, arm, readings, *, method="full", num_labels=16):
    """A cell whose seeds chose "full" or another method; each seed's readings are of "full"."""
    seeds = len(readings)
    predictions = np.stack([np.asarray(task.test.labels)] * seeds)
    config = {"method": "full", "learning_rate": 0.003}
    trials = [
        [
            {"config": {"method": "probe"}, "validation": 0.4},
            {
                "config": config,
                "validation": max((score for _, score in each), default=None),
                "readings": each,
            },
        ]
        for each in readings
    ]
    hparams = [config if method == "full" else {"method": method}] * seeds
    return Cell(
        *(task.name, arm, num_labels, hparams, trials, predictions, None),
        *([1.0] * seeds, 1.0, None, 0.0),
    )


SCRATCH = [[[4, 0.5], [8, 0.7]], [[4, 0.6], [8, 0.5]], [[4, 0.75]]]
AHEAD = [[4, 0.8], [8, 0.9]]
LATER = [[4, 0.55], [8, 0.6], [16, 0.75]]
NEVER = [[4, 0.5], [8, 0.3]]


@pytest.mark.parametrize(
    ("readings", "epochs"),
    [
        ([AHEAD, AHEAD, AHEAD], 4),
        # Each seed has its own mark to reach: .7, .6 and .75.
        ([LATER, LATER, LATER], 16),
        ([AHEAD, LATER, NEVER], 8),
        ([AHEAD, NEVER, NEVER], None),
        ([NEVER, AHEAD, AHEAD], 4),
    ],
)
def test_steps_to_the_validation_score_of_scratch(task, readings, epochs):
    cells = [trained(task, "scratch", SCRATCH), trained(task, "in_domain", readings)]
    # 16 labels leave 12 to train on in each of four folds; batches are of 8.
    expected = None if epochs is None else {4: 6, 8: 12, 16: 24}[epochs]
    assert analysis.steps_to_scratch_quality(cells, task) == {("in_domain", 16): expected}


def test_steps_are_counted_of_an_even_number_of_seeds(monkeypatch):
    loads(monkeypatch, dataset(test=60))
    task = prepare_task(config(), ARMS, 4)
    scratch = trained(task, "scratch", [SCRATCH[0]] * 4)
    for count, expected in ((2, 6), (1, None)):
        own = trained(task, "in_domain", [AHEAD] * count + [NEVER] * (4 - count))
        found = analysis.steps_to_scratch_quality([scratch, own], task)
        assert found == {("in_domain", 16): expected}


def test_no_steps_without_training_or_without_scratch(task):
    scratch, ahead = trained(task, "scratch", SCRATCH), [AHEAD] * 3
    probe = trained(task, "in_domain", ahead, method="probe")
    assert analysis.steps_to_scratch_quality([scratch, probe], task) == {("in_domain", 16): None}
    own = trained(task, "in_domain", ahead)
    assert analysis.steps_to_scratch_quality([own], task) == {}
    other_budget = trained(task, "scratch", SCRATCH, num_labels=8)
    assert analysis.steps_to_scratch_quality([other_budget, own], task) == {}
    untried = dataclasses.replace(scratch, trials=[[]] * 3)
    assert analysis.steps_to_scratch_quality([untried, own], task) == {("in_domain", 16): None}
    rivals = [scratch, trained(task, "classical", ahead)]
    assert analysis.steps_to_scratch_quality(rivals, task) == {}


def test_steps_are_those_of_the_recipe_chosen(task):
    small, large = helpers_study.recipe("text"), helpers_study.recipe("text", name="large")
    finetune = dataclasses.replace(large.finetune, batch_size=24)
    recipes = {
        "recipe": small,
        "other_recipes": (dataclasses.replace(large, finetune=finetune),),
    }
    task = dataclasses.replace(task, config=dataclasses.replace(task.config, **recipes))
    scratch, own = trained(task, "scratch", SCRATCH), trained(task, "in_domain", [AHEAD] * 3)
    for name, expected in (("", 6), ("large", 2)):
        named = {"recipe": name, "method": "full", "learning_rate": 0.003}
        trials = [[each | {"config": named} for each in seed] for seed in own.trials]
        chosen = dataclasses.replace(own, hparams=[named] * 3, trials=[s[1:] for s in trials])
        found = analysis.steps_to_scratch_quality([scratch, chosen], task)
        assert found == {("in_domain", 16): expected}
