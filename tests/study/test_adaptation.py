"""The grid of a model's arm, by the methods asked for."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation.lora import LoraConfig
from fm.adaptation.methods import num_trials
from fm.adaptation.task_model import TaskModel
from fm.study.adaptation import ClassicalArm, ModelArm
from fm.study.baseline_arms import ClassicalNerArm
from fm.study.presets import text_recipe
from tests.adaptation.helpers_models import MODEL, params, separable

EXAMPLES, LABELS = separable(40)


def recipe():
    own = text_recipe("quick")
    finetune = dataclasses.replace(own.finetune, min_steps=4, tokens_kept=0)
    return dataclasses.replace(own, finetune=finetune, lora=LoraConfig(rank=2))


def model_arm(methods=("probe", "full", "lora"), num_trials=0):
    model = TaskModel([params()], MODEL, recipe(), EXAMPLES, 30, 2, 20)
    return ModelArm(model, methods, num_trials)


@pytest.mark.parametrize("methods", [("probe",), ("full",), ("lora",), ("lora", "probe", "full")])
def test_the_grid_has_the_methods_asked_for(methods):
    arm = model_arm(methods)
    assert {hparams["method"] for hparams in arm.grid()} == set(methods)
    trials = arm.validate(np.arange(16), LABELS[:16], 0)
    assert [trial["config"] for trial in trials] == arm.grid()
    assert all(0 <= trial["validation"] <= 1 for trial in trials)


def test_cheap_methods_come_first():
    methods = [hparams["method"] for hparams in model_arm(("lora", "full", "probe")).grid()]
    assert methods == ["probe", "full", "lora"]


def test_a_model_that_follows_no_prompts_tries_more_of_its_first_method():
    arm = model_arm(("full", "prompt"), num_trials(recipe(), ("full", "prompt")))
    rates = [hparams["learning_rate"] for hparams in arm.grid()]
    assert len(rates) == 3 == len(set(rates)) and rates[0] == recipe().learning_rates[0]


def test_fit_predict_is_fit_then_predict():
    arm = model_arm(("full",))
    (hparams,) = arm.grid()
    fitted = arm.fit(np.arange(16), LABELS[:16], 0, hparams)
    predictions = arm.fit_predict(np.arange(16), LABELS[:16], 0, hparams)
    np.testing.assert_array_equal(arm.predict(fitted, hparams), predictions)
    assert predictions.shape == (10,) and fitted.steps == 4


@pytest.mark.parametrize(
    "arm", [ClassicalArm("text", None, 0, 3), ClassicalNerArm([], [], 0, 3)], ids=["text", "ner"]
)
def test_ties_do_not_take_the_strongest_penalty(arm):
    inverse = [hparams["C"] for hparams in arm.grid()]
    assert sorted(inverse)[1] == inverse[0] and len(set(inverse)) == 3
