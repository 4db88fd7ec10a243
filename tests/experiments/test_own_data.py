"""docs/own_data.md is executed: from a user's files of every kind to predictions, which are right.

Training is cut short; data, commands and files are those of the page.
"""

import csv
import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy.stats import spearmanr

from fm.study import presets
from tests.experiments.helpers_own_data import write_all

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
COMMANDS = [
    shlex.split(line) for line in re.findall(r"^    fm (.*)$", PAGE.read_text(), re.MULTILINE)
]
# Of the items that a small model trained for seconds has to answer rightly.
REQUIRED = 0.8
STEPS = 60
QUICK = ("--profile=quick", "--seeds=2", "--label_budgets=20")


def out_of(command):
    return next(flag.removeprefix("--out=") for flag in command if flag.startswith("--out="))


def dataset_of(command):
    return next(flag.removeprefix("--dataset=") for flag in command if "--dataset=" in flag)


def roads():
    """Returns the commands that lead to each file of predictions, in order."""
    made = {out_of(command): command for command in COMMANDS}
    for command in COMMANDS:
        if command[0] != "predict":
            continue
        road = [command]
        while source := [flag for flag in road[0] if flag.startswith("--model=")]:
            folder = source[0].removeprefix("--model=").removesuffix("/model")
            road.insert(0, made[folder])
        yield pytest.param(road, id=out_of(command).removeprefix("runs/"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The user's folder and the answers to each file of new items."""
    folder = tmp_path_factory.mktemp("own_data")
    answers = write_all(folder)
    with (folder / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "reviews.parquet")
    return folder, answers, rows


@pytest.fixture
def user(files, monkeypatch):
    """Works in the user's folder, with short training."""
    folder, answers, rows = files
    monkeypatch.chdir(folder)
    recipe_of = presets.modality_recipe

    def short(modality, profile="default"):
        recipe = recipe_of(modality, profile)
        finetune = dataclasses.replace(recipe.finetune, max_epochs=8)
        return dataclasses.replace(
            recipe,
            steps=STEPS,
            finetune=finetune,
            learning_rates=recipe.learning_rates[:2],
            regularizers=recipe.regularizers[:2],
        )

    monkeypatch.setattr(presets, "modality_recipe", short)
    return folder, answers, rows


def score(found, answers):
    """Returns the share of right answers; of numbers their rank correlation."""
    if re.fullmatch(r"[\d.]+", answers[0]):
        return spearmanr(np.array(found, float), np.array(answers, float)).statistic
    if " " in answers[0]:
        pairs = [
            pair
            for own, right in zip(found, answers, strict=True)
            for pair in zip(own.split(), right.split(), strict=True)
        ]
    else:
        pairs = list(zip(found, answers, strict=True))
    return np.mean([own == right for own, right in pairs])


@pytest.mark.slow
@pytest.mark.parametrize("road", roads())
def test_predictions_are_right(call, user, road):
    folder, answers, rows = user
    if "reviews_on_disk" in map(dataset_of, road):
        datasets = pytest.importorskip("datasets")
        if not (folder / "reviews_on_disk").exists():
            datasets.Dataset.from_list(rows).save_to_disk(folder / "reviews_on_disk")
    for name, *flags in road:
        if name == "pretrain" and (folder / out_of(flags) / "summary.json").exists():
            continue
        done = call(name, *flags)
        assert done.code == 0, done.err
        if name in ("pretrain", "adapt"):  # the next step is printed
            following = "predict" if name == "adapt" else "adapt"
            assert f"fm {following}" in done.out or f"experiments.{following}" in done.out
    right = answers[dataset_of(road[-1])]
    path = folder / out_of(road[-1]) / "predictions.csv"
    with path.open(newline="", encoding="utf-8") as file:
        predicted = list(csv.DictReader(file))
    assert len(predicted) == len(right)
    assert len({row["id"] for row in predicted}) == len(right)
    assert score([row["prediction"] for row in predicted], right) >= REQUIRED
    for row in predicted:
        probabilities = [float(value) for key, value in row.items() if key.startswith("p_")]
        assert all(0 <= value <= 1 for value in probabilities)


@pytest.mark.slow
def test_the_decision_is_reached(call, user):
    folder, *_ = user
    name, *flags = COMMANDS[0]
    done = call(name, *flags, *QUICK, "--keep_best")
    assert done.code == 0, done.err
    assert (folder / "runs/decision/report.html").stat().st_size > 0
    done = call(
        "predict", "--model=runs/decision/best", "--dataset=new_reviews.csv", "--out=runs/by_best"
    )
    assert done.code == 0, done.err


def test_readme_begins_with_this_walk():
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS[:4]:
        assert shlex.join(command) in readme
