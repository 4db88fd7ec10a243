"""The arms of a task of named entities, and the recipe they share with the study of one model."""

import numpy as np
import pytest

from fm.study import arms, kinds, recipes
from fm.study.config import METHODS
from fm.study.tasks import prepare
from fm.study.unify import recipes as of_one_model
from fm.transfer.features import Reading
from tests.study.problems import config, loads
from tests.study.unify.problems import datasets


@pytest.fixture
def task(monkeypatch):
    loads(monkeypatch, *datasets())
    return prepare(config("names", budgets=(8,)), (), 1)


@pytest.mark.parametrize("adapt", [("probe", "full"), ("full",), METHODS])
def test_every_arm_tries_as_many_settings(task, tmp_path, adapt):
    fed = arms.networks(task, ("scratch", "classical"), 1, tmp_path, adapt)
    assert list(fed) == ["scratch"]
    grids = [fed["scratch"].arm.grid(), arms.classical(task, adapt).grid()]
    assert len(grids[0]) == len(grids[1]) == arms.trials(task, adapt)


def test_a_network_answers_with_the_counts_of_each_sentence(task, tmp_path):
    fed = arms.networks(task, ("scratch",), 1, tmp_path)["scratch"]
    assert fed.network.classes == 3 and fed.network.recipe.finetune.reading.pool == "each"
    assert fed.network.test_from == len(task.touched) == 8
    drawn = task.drawn[0]
    rows, strata = task.rows_of(drawn), task.strata[drawn]
    for setting in fed.arm.grid():
        answers = fed.arm.fit_predict(rows, strata, 0, setting)
        assert answers.shape == (len(task.test), 3)
        np.testing.assert_array_equal(answers[:, 2], np.ones(len(task.test)))
        assert np.all(answers[:, 0] <= answers[:, 1:].min(axis=1))
    assert fed.runs == []


def test_as_many_labels_as_kinds(task):
    fruit, _, names, _ = datasets()
    assert kinds.fewest(fruit, "class") == 2
    assert kinds.fewest(names, "entities") == len(np.unique(task.strata)) == 1


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
def test_classes_take_the_recipe_of_their_format(modality):
    for profile in recipes.PROFILES:
        own = recipes.for_format(modality, profile)
        assert recipes.for_task(modality, "class", profile) == own


@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_entities_are_tuned_alike_in_both_studies(profile):
    made = recipes.for_task("text", "entities", profile)
    joint = recipes.joint(profile)
    other = of_one_model.adapting("text", "entities", joint, profile)
    assert made.finetune.keep == other.finetune.keep == 0
    assert made.finetune.reading == other.finetune.reading == Reading()
    assert (made.length, made.learning_rates) == (other.length, other.learning_rates)
    assert (made.length, made.learning_rates) == (64, (5e-3,))
    assert other.model == joint.model and made.model == recipes.text().model
    if profile != "quick":
        assert made.finetune == other.finetune
        assert (made.finetune.steps, made.finetune.epochs) == (100, 8.0)
    else:
        assert made.finetune.steps > other.finetune.steps == 10 and not made.finetune.epochs
