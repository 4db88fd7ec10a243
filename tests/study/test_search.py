"""Searches of recipes: what is tried, how it is scored and resumed, and recipes as files."""

import dataclasses
import json

import pytest

from fm.errors import UserError
from fm.report.search import search_figure, search_table
from fm.report.style import to_png
from fm.study import search
from fm.study.config import Recipe
from fm.study.pretraining import MAX_LENGTHENING, open_ended_config
from fm.study.recipe_files import read_recipe_file, write_recipe_file
from fm.study.search import SearchConfig, parse_field, run_search, search_trials
from fm.training.failures import NotFiniteError
from tests.study.helpers_study import config, dataset, images, loads, recipe


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    loads(monkeypatch, dataset("halves", images, train=100))
    return tmp_path / "cache"


def searched(*fields, **changes):
    given = {"split": "development", "label_budgets": (8, 16), "recipe": recipe("image")}
    tasks = (config("halves", **given),)
    base = {"tasks": tasks, "arms": ("scratch",), "seeds": 2}
    return SearchConfig(**base | {"fields": tuple(map(parse_field, fields))} | changes)


def test_the_recipe_as_it_is_comes_first_then_every_combination():
    asked = searched("steps=4,5", "recipe.objective.mask_ratio=0.5,0.75", "learning_rates=[0.1]")
    trials = search_trials(asked)
    assert trials[0].values == {} and trials[0].recipe == asked.tasks[0].recipe
    assert [(each.recipe.steps, each.recipe.objective.mask_ratio) for each in trials[1:]] == [
        *((4, 0.5), (4, 0.75), (5, 0.5), (5, 0.75))
    ]
    assert {each.recipe.learning_rates for each in trials[1:]} == {(0.1,)}
    assert len({each.config_hash for each in trials}) == 5
    drawn = search_trials(dataclasses.replace(asked, num_trials=2))
    assert len(drawn) == 3 and {each.config_hash for each in drawn} < {
        each.config_hash for each in trials
    }
    # A value that is the default already is no trial of its own.
    same = f"steps={asked.tasks[0].recipe.steps},9"
    assert len(search_trials(searched(same))) == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (["steps"], "--field=steps: takes a field and different values"),
        (["steps=1,,2"], "--field=steps=1,,2: takes a field and different values"),
        (["steps=1,1"], "different values"),
        (["split=test"], "--field=split=test: a search sets fields of the recipe, one of model"),
        (["max_test_items=9"], "a search sets fields of the recipe"),
        (["steps=1", "steps=2"], "--field: takes each field once, not steps, steps"),
        (["steps=many"], "--field=steps=many: 'many' is not a value of steps"),
        (["steps=0"], "steps=0: must be at least 1"),
        (["model.wide=3"], "no 'wide' here"),
        (["vocab=9"], "'vocab' is now called 'vocab_size'"),
    ],
)
def test_fields_that_cannot_be_searched_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        search_trials(searched(*fields))


def test_test_items_are_never_searched_on():
    tasks = (config("halves", recipe=recipe("image")),)
    with pytest.raises(UserError, match="--split=test: a search scores the development part"):
        searched("steps=4,5", tasks=tasks)
    with pytest.raises(UserError, match="one task and one arm"):
        searched("steps=4,5", arms=("scratch", "in_domain"))


@pytest.fixture
def scored(monkeypatch):
    """Trials whose score is the mask ratio; `scored` lists those that were run."""
    runs = []

    def run(trial, out_dir):
        runs.append(trial.values)
        ratio = trial.recipe.objective.mask_ratio
        row = {"values": trial.values, "config_hash": trial.config_hash, "seconds": 1.0}
        failed = {"score": None, "low": None, "high": None, "error": "not finite"}
        good = {"score": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "error": None}
        return row | (failed if ratio > 0.9 else good)

    monkeypatch.setattr(search, "_run_trial", run)
    return runs


def test_a_search_goes_on_where_it_stopped_and_writes_the_best_recipe(tmp_path, scored):
    asked = searched("objective.mask_ratio=0.25,0.75,0.95,0.6")

    def stop(rows, count):
        assert count == 5
        if len(rows) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(asked, tmp_path / "out", stop)
    assert len(json.loads((tmp_path / "out/search.json").read_text())["trials"]) == 2
    results = run_search(asked, tmp_path / "out")
    assert [row.get("objective.mask_ratio") for row in scored] == [
        None,
        "0.25",
        "0.75",
        "0.95",
        "0.6",
    ]
    assert results == json.loads((tmp_path / "out/search.json").read_text())
    assert results["best"] == 2 and results["trials"][3]["error"] == "not finite"
    assert results["split"] == "development" and results["items"] == 20
    file = read_recipe_file(tmp_path / "out/best_recipe.json")
    assert file.applied(recipe("text")) == search_trials(asked)[2].recipe
    assert file.fits("image", "classification") and not file.fits("image", "ner")
    assert not file.fits("text")
    table = search_table(results).splitlines()
    assert "mask_ratio=0.75" in table[1] and "as it is" in "".join(table[2:])
    assert "failed" in table[-1] and to_png(search_figure(results))[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="holds a run with another config"):
        run_search(searched("objective.mask_ratio=0.25"), tmp_path / "out")


def test_a_search_in_which_nothing_can_be_trained(tmp_path, monkeypatch):
    def diverges(self, out_dir):
        raise NotFiniteError("the loss is NaN")

    monkeypatch.setattr(search._TrialStudy, "score", diverges)
    with pytest.raises(UserError, match="no recipe could be trained: the loss is NaN"):
        run_search(searched("steps=4"), tmp_path)


@pytest.mark.slow
def test_scores_are_those_of_the_development_part(tmp_path, cache):
    results = run_search(searched("learning_rates=[0.1]"), tmp_path / "out")
    for row in results["trials"]:
        assert row["low"] <= row["score"] <= row["high"] and set(row["by_budget"]) == {"8", "16"}
        assert row["score"] == pytest.approx(sum(row["by_budget"].values()) / 2)
    assert not (cache / "test_slices.json").exists()  # nobody looked at test items


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold an object with the fields of a recipe"),
        ('{"recipe": 3}', "recipe is not what a search writes there"),
        ('{"recipe": {}, "modality": 3}', "modality is not what a search writes there"),
        ('{"step": 3}', "recipe.json: .*unknown fields step"),
        ('{"steps": "many"}', "recipe.json: steps must be a whole number"),
        ('{"steps": 0}', "recipe.json: steps=0: must be at least 1"),
        ('{"model": {"num_heads": 1.5}}', "recipe.json: num_heads must be a whole number"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, says):
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(UserError, match=says):
        read_recipe_file(path).applied(recipe("text"))


def test_a_recipe_comes_back_from_its_file(tmp_path):
    own = recipe("image", steps=77, early_stopping_patience=2, max_pretrain_minutes=1.5)
    write_recipe_file(tmp_path / "r.json", own, modality="image", score=0.5)
    file = read_recipe_file(tmp_path / "r.json")
    assert file.applied(recipe("text")) == own and file.fits("image") and not file.fits("text")
    (tmp_path / "part.json").write_text('{"objective": {"mask_ratio": 0.1}, "steps": 5}')
    part = read_recipe_file(tmp_path / "part.json").applied(own)
    objective = dataclasses.replace(own.objective, mask_ratio=0.1)
    assert part == dataclasses.replace(own, steps=5, objective=objective)
    assert read_recipe_file(tmp_path / "part.json").fits("anything", "at all")


def test_pretraining_until_flat_lengthens_the_steps_of_the_recipe():
    own = recipe("image", steps=80, early_stopping_patience=2, max_pretrain_minutes=1.5)
    train = open_ended_config(own, 3)
    assert train.steps == 80 * MAX_LENGTHENING and train.validate_every == 10
    assert (train.early_stopping_patience, train.max_seconds, train.seed) == (2, 90.0, 3)
    assert train.warmup_steps == round(80 * own.optimizer.warmup)
    for name in ("early_stopping_patience", "max_pretrain_minutes"):
        with pytest.raises(UserError, match=f"{name}=-1: takes a number above 0"):
            dataclasses.replace(own, **{name: -1})
    fields = {each.name: each.default for each in dataclasses.fields(Recipe)}
    assert fields["early_stopping_patience"] is fields["max_pretrain_minutes"] is None
