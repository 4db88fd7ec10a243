"""The grid of a model's arm, by the methods asked for."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation.lora import LoraConfig
from fm.adaptation.task_model import TaskModel
from fm.evaluation.model_selection import select_trial
from fm.study.adaptation import ModelArm, Predictions, RecipeChoiceArm
from fm.study.presets import text_recipe
from tests.adaptation.helpers_models import MODEL, params, separable

EXAMPLES, LABELS = separable(40)


def recipe():
    own = text_recipe("quick")
    finetune = dataclasses.replace(own.finetune, min_steps=4, tokens_kept=0)
    return dataclasses.replace(own, finetune=finetune, lora=LoraConfig(rank=2))


def model_arm(methods=("probe", "full", "lora")):
    model = TaskModel([params()], MODEL, recipe(), EXAMPLES, 30, 2, 20)
    return ModelArm(model, methods)


@pytest.mark.parametrize("methods", [("probe",), ("full",), ("lora",), ("lora", "probe", "full")])
def test_the_methods_asked_for_are_searched_the_cheapest_first(methods):
    arm = model_arm(methods)
    trials = arm.search(np.arange(16), LABELS[:16], 0)
    found = list(dict.fromkeys(trial["config"]["method"] for trial in trials))
    assert found == [name for name in ("probe", "full", "lora") if name in methods]
    assert all(0 <= trial["validation"] <= 1 for trial in trials)


def test_fit_predict_is_fit_then_predict():
    arm = model_arm(("full",))
    hparams = arm.search(np.arange(16), LABELS[:16], 0)[0]["config"]
    fitted = arm.fit(np.arange(16), LABELS[:16], 0, hparams)
    predictions = arm.fit_predict(np.arange(16), LABELS[:16], 0, hparams).values
    np.testing.assert_array_equal(arm.predict(fitted, hparams).values, predictions)
    assert predictions.shape == (10,)


def test_features_are_extracted_before_the_seeds_run():
    arm = model_arm(("probe",))
    assert arm.prepare(3) > 0 and model_arm(("full",)).prepare(3) == 0
    assert list(arm.model._features) == [0] and len(arm.model._features[0]) == 40


class Scored:
    """An arm whose only setting validates at a given score."""

    def __init__(self, score):
        self.score = score

    def prepare(self, seeds):
        return 1.0

    def search(self, train_idx, labels, seed):
        return [{"config": {"l2": 1.0}, "validation": self.score, "last_gain": 0.5}]

    def fit_predict(self, train_idx, labels, seed, hparams):
        assert hparams == {"l2": 1.0}
        return Predictions(np.full(3, self.score))

    def fit_flops(self, num_labels, hparams):
        return num_labels * self.score


def test_an_arm_of_several_recipes_fits_the_one_chosen():
    arm = RecipeChoiceArm({"": Scored(0.5), "wide": Scored(0.75)})
    trials = arm.search(np.arange(4), LABELS[:4], 0)
    assert [trial["config"]["recipe"] for trial in trials] == ["", "wide"]
    assert all(trial["last_gain"] == 0.5 for trial in trials) and arm.prepare(2) == 2.0
    best = select_trial(trials)["config"]
    found = arm.fit_predict(np.arange(4), LABELS[:4], 0, best)
    assert found.values.tolist() == [0.75] * 3 and arm.fit_flops(4, best) == 3.0
