"""experiments.search on a small file, and --recipe, --split and --pretrain_minutes of a study."""

import dataclasses
import json

import pytest
from absl import flags as absl_flags

from experiments import compare

FLAGS = ["--label_budgets=10", "--seeds=2", "--profile=quick", "--adapt=probe"]


@pytest.mark.slow
def test_the_best_recipe_of_a_search_is_compared(call, tmp_path, reviews, tiny, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))  # the ledger of scored slices is new
    data = f"--dataset={reviews(reviews.rows)}"
    out = tmp_path / "search"
    flags = [data, *FLAGS, f"--out={out}", "--field=objective.mask_ratio=0.25,0.75"]
    done = call("search", *flags, "--trials=1")
    assert done.code == 0 and "trial 2 of 2" in done.out, done.err
    assert "best recipe: " in done.out and (out / "search.png").exists()
    search = json.loads((out / "search.json").read_text())
    assert search["split"] == "development" and len(search["trials"]) == 2
    assert call("search", *flags, "--trials=1").code == 0  # nothing is left to do
    study = tmp_path / "study"
    done = call(
        "compare", data, *FLAGS, f"--recipe={out / 'best_recipe.json'}", f"--out={study}",
        "--arms=in_domain,classical", "--pretrain_minutes=0.05",
    )  # fmt: skip
    assert done.code == 0, done.err
    results = json.loads((study / "results.json").read_text())
    (task,) = results["config"]["tasks"].values()
    best = json.loads((out / "best_recipe.json").read_text())["recipe"]
    assert task["recipe"] | {"early_stopping_patience": None, "max_pretrain_minutes": None} == best
    assert results["pretrained"][0]["stopped_because"] in ("flat", "time")
    (row,) = results["tasks"]
    assert row["test_slice"]["sealed"] and row["test_slice"]["scored_before"] == 0
    own = tmp_path / "development"
    done = call("compare", data, *FLAGS, "--split=development", f"--out={own}",
                "--arms=scratch,classical")  # fmt: skip
    assert done.code == 0, done.err
    (row,) = json.loads((own / "results.json").read_text())["tasks"]
    assert row["test_slice"] | {"items": 0} == {
        "name": "development", "items": 0, "scored_before": None, "sealed": False,
    }  # fmt: skip
    assert row["split"].startswith("development part of the training split")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--split=test"], "--split=test: a search never scores test items"),
        (["--test_slice=5"], "--test_slice=5: a search never scores test items"),
        (["--arms=scratch,in_domain"], "a search takes one: --arm=NAME"),
        (["--arm=classical"], "--arm=classical: has no recipe to search"),
        (["--arm=published"], "--arm=published: has no recipe to search"),
        (["--arm=unheard"], "'unheard' is not an arm"),
        (["--field=split=test"], "a search sets fields of the recipe"),
        (["--field="], "--field=: takes a field and different values"),
        (["--trials=0"], "--trials=0: takes"),
        (["--pretrain_minutes=-1"], "--pretrain_minutes=-1: takes a number above 0"),
        (["--recipe=/nowhere.json"], "cannot read /nowhere.json"),
        (["--tasks=digits,film_reviews"], "takes one task"),
        (["--more_recipes=large_patches"], "--more_recipes=large_patches: a search changes one"),
    ],
)
def test_what_a_search_does_not_take_is_refused(call, tmp_path, reviews, flags, says):
    data = [] if "--tasks" in flags[0] else [f"--dataset={reviews(reviews.rows)}"]
    given = [*data, "--field=steps=1,2", *flags, f"--out={tmp_path / 'out'}"]
    done = call("search", *given)
    assert done.code == 2 and says in done.error
    assert not (tmp_path / "out").exists()


def test_a_search_needs_a_field(call, tmp_path):
    done = call("search", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and "--field: takes a field and its values" in done.error


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("pretrain", ["--recipe=RECIPE"], "is for image, not for text"),
        ("compare", ["--recipe=WRONG"], "wrong.json: recipe: unknown fields step"),
        (
            "compare",
            ["--more_recipes=small"],
            "--more_recipes=small: takes files with a recipe",
        ),
        ("compare", ["--test_slice=24"], "--test_slice=24: reviews has 25 test items"),
        ("compare", ["--split=development", "--test_slice=3"], "is for --split=test"),
    ],
)
def test_flags_that_do_not_fit_are_refused(call, tmp_path, reviews, name, flags, says):
    files = {"RECIPE": tmp_path / "own.json", "WRONG": tmp_path / "wrong.json"}
    files["RECIPE"].write_text('{"modality": "image", "recipe": {}}')
    files["WRONG"].write_text('{"step": 3}')
    for word, path in files.items():
        flags = [flag.replace(word, str(path)) for flag in flags]
    own = FLAGS if name == "compare" else []
    arms = ["--arms=scratch,in_domain"] if name == "compare" else []
    data = f"--dataset={reviews(reviews.rows)}"
    done = call(name, data, *own, *arms, *flags, f"--out={tmp_path / 'out'}")
    assert done.code == 2 and says in done.error, done.error


def test_more_recipes_are_those_for_the_data(tmp_path, reviews, capsys):
    path = tmp_path / "few_steps.json"
    path.write_text('{"steps": 3}')
    values = absl_flags.FlagValues()
    compare.define(values)
    more = f"--more_recipes=token_objectives,large_patches,{path}"
    values(["compare", f"--dataset={reviews(reviews.rows)}", *FLAGS, more])
    config = compare.configure(values)
    (task,) = config.tasks
    assert "--more_recipes=large_patches is not for text, not used" in capsys.readouterr().err
    assert [recipe.name for recipe in task.other_recipes] == ["token_objectives", "few_steps"]
    first, second = task.other_recipes
    assert first.objective.bag_of_words == 0.0 and second.steps == 3
    assert dataclasses.replace(second, name="", steps=task.recipe.steps) == task.recipe
