"""Studies of numbers, sets of classes, and pairs of texts, from data to recomputed figures."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from fm.errors import UserError
from fm.report import pages
from fm.study import analysis, run_dir
from fm.study.config import StudyConfig
from fm.study.multitask import run_multitask
from fm.study.runner import run_compare
from fm.study.task_registry import TASKS, TaskSpec
from fm.study.task_types import TASK_TYPES, task_type_of
from fm.study.tasks import prepare_task
from tests.independent.recompute import recompute
from tests.study import helpers_multitask
from tests.study.helpers_study import config, loads, recipe
from tests.study.helpers_targets import COLORS, brightness, colors, pairs, stars

ARMS = ("scratch", "random_features", "in_domain", "classical", "classical_unlabeled")


def study(*tasks, arms=(*ARMS, "in_domain_with_classical"), methods=("full", "probe")):
    return StudyConfig(tasks=tasks, arms=arms, methods=methods, seeds=2)


def test_the_kind_is_what_the_columns_hold():
    found = [task_type_of(each).name for each in (stars(), brightness(), colors(), pairs())]
    assert found == ["regression", "regression", "multi_label", "classification"]
    assert task_type_of(pairs(labels=False)).name == "regression"


def test_numbers_and_sets_are_answers_to_instructions(monkeypatch):
    data = [stars(), colors()]
    loads(monkeypatch, *data)
    numbers, sets = (prepare_task(config(each.name), (), 1) for each in data)
    answers = numbers.task_type.answers(numbers, None)
    read = numbers.task_type.parse(numbers, answers, np.arange(len(answers)))
    np.testing.assert_allclose(read, numbers.task_type.task_truths(numbers), rtol=5e-3)
    mean = numbers.task_type.task_truths(numbers)[: len(numbers.labeled_pool)].mean()
    found = numbers.task_type.parse(numbers, ["about -3.5 or 4", "many"], np.arange(2))
    assert found.tolist() == [-3.5, pytest.approx(mean)]
    answers = sets.task_type.answers(sets, None)
    assert "none" in answers and any("; " in answer for answer in answers)
    read = sets.task_type.parse(sets, answers, np.arange(len(answers)))
    np.testing.assert_array_equal(read, sets.task_type.task_truths(sets))
    found = sets.task_type.parse(sets, ["Blue;  red\nmauve", "none"], np.arange(2))
    assert found.tolist() == [[True, False, True], [False] * 3]


def test_unlabeled_examples_are_never_drawn(monkeypatch):
    data = [stars(), colors()]
    loads(monkeypatch, *data)
    for dataset in data:
        task = prepare_task(config(dataset.name), ("in_domain",), 4)
        labeled = len(dataset.train) - 10
        assert task.task_type.max_labels(task.dataset) == labeled
        assert task.labeled_pool.max() < labeled and len(task.corpora["in_domain"]) > labeled
        truths = task.task_type.task_truths(task)
        assert len(truths) == len(task.labeled_pool) + len(task.test)
        assert np.isfinite(truths.astype(float)).all()
    with pytest.raises(UserError, match="must be between 5 and 50 for stars, which has 5 fifths"):
        prepare_task(config("stars", label_budgets=(4,)), (), 1)


def test_numbers_are_drawn_from_every_fifth_and_sets_with_every_class():
    dataset = stars()
    task_type = task_type_of(dataset)
    strata = task_type.strata(dataset.train)
    assert np.bincount(strata[strata >= 0]).tolist() == [10] * 5 and (strata < 0).sum() == 10
    for seed in range(5):
        assert set(strata[task_type.draw(dataset.train, 5, seed)]) == set(range(5))
    dataset = colors()
    task_type = task_type_of(dataset)
    assert task_type.min_labels(dataset) == 4
    sets = dataset.train.columns["label_sets"](dataset.train.source_idx)
    for seed in range(5):
        drawn = [sets[n] for n in task_type.draw(dataset.train, 4, seed)]
        assert set().union(*drawn) == {0, 1, 2} and () in drawn


CASES = {
    "stars": (stars, lambda: recipe("text"), "regression"),
    "brightness": (brightness, lambda: recipe("image"), "regression"),
    "colors": (colors, lambda: recipe("text"), "multi_label"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_whole_study_runs_and_is_recomputed(monkeypatch, tmp_path, name):
    make, make_recipe, kind = CASES[name]
    dataset = make()
    loads(monkeypatch, dataset)
    own = dataclasses.replace(make_recipe(), steps=30)
    results = run_compare(study(config(name, recipe=own)), tmp_path)
    (row,) = results["tasks"]
    assert row["task_type"] == kind and row["metric"] == TASK_TYPES[kind].metric
    cells = results["cells"]
    assert {cell["arm"] for cell in cells} == {*ARMS, "in_domain_with_classical"}
    best = max(cell["value"] for cell in cells if cell["arm"] == "classical")
    assert best > 0.5
    if kind == "regression":
        assert all(cell["mean_absolute_error"] > 0 for cell in cells)
        assert all(cell["macro_f1"] is None for cell in cells)
    else:
        assert all(0 <= cell["macro_f1"] <= 1 for cell in cells)
    assert "target" in row and row["majority_rate"] is None
    mistakes = results["mistakes"]
    assert mistakes and all(each["arm"] == "in_domain" for each in mistakes)
    if kind == "multi_label":
        assert all(each["truth"] != each["prediction"] for each in mistakes)
    run_dir.write_results(results | {"headline": ""}, tmp_path)
    problems, summary = recompute(tmp_path, 2000)
    assert problems == [], summary
    scores = analysis.read_scores(tmp_path / "predictions.csv", results)
    assert scores.keys() == {(name, cell["arm"], cell["num_labels"]) for cell in cells}
    page = pages.write(results, tmp_path).read_text()
    assert TASK_TYPES[kind].metric in page
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    if kind == "regression":
        seed = [each for each in rows if each["arm"] == "classical" and each["num_labels"] == "16"]
        seed = [each for each in seed if each["seed"] == "0"]
        truth, own = (
            np.array([float(each[key]) for each in seed]) for key in ("truth", "prediction")
        )
        (cell,) = [
            each
            for each in cells
            if (each["arm"], each["num_labels"], each["seed"]) == ("classical", 16, 0)
        ]
        assert spearmanr(truth, own).statistic == pytest.approx(cell["value"], abs=1e-9)
        assert np.abs(truth - own).mean() == pytest.approx(cell["mean_absolute_error"])
    else:
        named = {each for line in rows for each in line["prediction"].split(";")}
        assert named - {""} <= set(COLORS)


@pytest.mark.slow
def test_pairs_have_their_own_classical_models(monkeypatch, tmp_path):
    dataset = pairs()
    loads(monkeypatch, dataset)
    one = config("pairs", label_budgets=(24,), recipe=recipe("text"))
    results = run_compare(study(one, arms=("scratch", "classical"), methods=("full",)), tmp_path)
    cells = [cell for cell in results["cells"] if cell["arm"] == "classical"]
    assert min(cell["value"] for cell in cells) > 0.9
    members = {trial["config"]["member"] for cell in cells for trial in cell["trials"]}
    assert any(name.startswith("similarities") for name in members)
    assert results["tasks"][0]["metric"] == "accuracy"


@pytest.mark.slow
def test_one_model_writes_numbers_and_sets_as_instructed(monkeypatch, tmp_path):
    loads(monkeypatch, stars(), colors())
    for name in ("stars", "colors"):
        phrasings = ("what is it?", "say what it is.", "name it.")
        monkeypatch.setitem(TASKS, name, TaskSpec(name, phrasings=phrasings))
    own = recipe("text", model=helpers_multitask.JOINT.model)
    tasks = tuple(config(name, label_budgets=(8,), recipe=own) for name in ("stars", "colors"))
    joint = dataclasses.replace(
        helpers_multitask.JOINT, objectives=helpers_multitask.JOINT.objectives[:1]
    )
    results = run_multitask(helpers_multitask.study(tasks=tasks, weights=(), joint=joint), tmp_path)
    cells = {(cell["task"], cell["arm"]) for cell in results["cells"]}
    arms = {"scratch", "in_domain", "joint", "instruction_tuned", "classical"}
    assert cells == {(task, arm) for task in ("stars", "colors") for arm in arms}
    run_dir.write_results(results | {"headline": ""}, tmp_path)
    problems, summary = recompute(tmp_path, 2000)
    assert problems == [], summary
