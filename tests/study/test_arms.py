"""The arms of a task of named entities, and the recipe they share with the study of one model."""

import numpy as np
import pytest

from fm.adaptation.features import FeatureConfig
from fm.study import arms, presets, task_types
from fm.study import presets as of_one_model
from fm.study.config import METHODS
from fm.study.tasks import prepare_task
from tests.study.problems import config, loads
from tests.study.unify.problems import datasets


@pytest.fixture
def task(monkeypatch):
    loads(monkeypatch, *datasets())
    return prepare_task(config("names", budgets=(8,)), (), 1)


@pytest.mark.parametrize("adapt", [("probe", "full"), ("full",), METHODS])
def test_every_arm_tries_as_many_settings(task, tmp_path, adapt):
    fed = arms.build_network_arms(task, ("scratch", "classical"), 1, tmp_path, adapt)
    assert list(fed) == ["scratch"]
    grids = [fed["scratch"].arm.grid(), arms.build_classical_arm(task, adapt).grid()]
    assert len(grids[0]) == len(grids[1]) == arms.num_trials(task, adapt)


def test_a_network_answers_with_the_counts_of_each_sentence(task, tmp_path):
    fed = arms.build_network_arms(task, ("scratch",), 1, tmp_path)["scratch"]
    assert (
        fed.network.num_classes == 3
        and fed.network.recipe.finetune.feature_config.pooling == "each"
    )
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
    assert task_types.min_labels(fruit, "class") == 2
    assert task_types.min_labels(names, "entities") == len(np.unique(task.strata)) == 1


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
def test_classes_take_the_recipe_of_their_format(modality):
    for profile in presets.PROFILES:
        own = presets.modality_recipe(modality, profile)
        assert presets.task_recipe(modality, "class", profile) == own


@pytest.mark.parametrize("profile", presets.PROFILES)
def test_entities_are_tuned_alike_in_both_studies(profile):
    made = presets.task_recipe("text", "entities", profile)
    joint = presets.joint_recipe(profile)
    other = of_one_model.multitask_recipe("text", "entities", joint, profile)
    assert made.finetune.tokens_kept == other.finetune.tokens_kept == 0
    assert made.finetune.feature_config == other.finetune.feature_config == FeatureConfig()
    assert (made.seq_len, made.learning_rates) == (other.seq_len, other.learning_rates)
    assert (made.seq_len, made.learning_rates) == (64, (5e-3,))
    assert other.model == joint.model and made.model == presets.text_recipe().model
    if profile != "quick":
        assert made.finetune == other.finetune
        assert (made.finetune.min_steps, made.finetune.min_epochs) == (100, 8.0)
    else:
        assert (
            made.finetune.min_steps > other.finetune.min_steps == 10
            and not made.finetune.min_epochs
        )
