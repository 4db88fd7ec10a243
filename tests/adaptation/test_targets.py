"""Targets: classes, numbers and sets of classes under every adaptation method."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from fm.adaptation.lora import LoraConfig
from fm.adaptation.methods import METHODS
from fm.adaptation.target_probes import OneVsRestProbe, RidgeProbe
from fm.adaptation.targets import ClassTarget, LabelSetTarget, ValueTarget, mean_and_deviation
from fm.adaptation.task_model import TaskModel
from fm.evaluation.label_sets import micro_f1
from fm.evaluation.model_selection import make_folds, select_trial
from fm.study.presets import text_recipe
from tests.adaptation.helpers_models import MODEL, params, text

TRAIN, TEST = np.arange(40), np.arange(40, 60)


def counted(count=60, seed=0, length=8):
    """Texts of the tokens 4 and 5, among others, whose numbers are what is to be predicted."""
    draws = np.random.default_rng(seed)
    share = draws.random((count, 2))
    tokens = draws.integers(6, 12, (count, length))
    for k in range(2):
        tokens = np.where(draws.random((count, length)) < share[:, k : k + 1] / 2, 4 + k, tokens)
    return text(tokens, length), (tokens == 4).sum(axis=1), (tokens == 5).sum(axis=1)


EXAMPLES, FOURS, FIVES = counted()
VALUES = 1000.0 + 50.0 * FOURS
SETS = np.stack([FOURS > 1, FIVES > 1, FOURS < 0], axis=1)
TARGETS = {"value": (ValueTarget(), VALUES), "label_set": (LabelSetTarget(3), SETS)}


def recipe():
    own = text_recipe("quick")
    finetune = dataclasses.replace(
        own.finetune, min_steps=60, tokens_kept=0, batch_size=8, max_epochs=32
    )
    return dataclasses.replace(
        own,
        finetune=finetune,
        lora=LoraConfig(rank=2),
        learning_rates=(1e-2,),
        regularizers=("weight_decay",),
    )


def model_of(kind):
    target, truths = TARGETS[kind]
    return TaskModel(
        [params()],
        MODEL,
        recipe(),
        EXAMPLES,
        40,
        target.num_outputs,
        40,
        target=target,
        truths=truths,
    )


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", ["probe", "full", "lora"])
def test_each_method_learns_numbers_and_sets(kind, name):
    model, method, strata = model_of(kind), METHODS[name], np.arange(40) % 4
    folds = make_folds(strata, seed=0)
    trials = method.search(model, TRAIN, strata, 0, folds)
    assert json.loads(json.dumps(trials)) == trials
    hparams = select_trial(trials)["config"]
    fitted = method.fit(model, TRAIN, strata, 0, hparams)
    outputs = method.predict(model, fitted, model.test_idx)
    predictions = model.decide(outputs, hparams)
    probabilities = method.predict_proba(model, fitted, model.test_idx)
    if kind == "value":
        assert predictions.shape == (20,) and probabilities is None
        assert np.corrcoef(predictions, VALUES[TEST])[0, 1] > 0.5
        assert abs(predictions.mean() - VALUES[TEST].mean()) < 40
    else:
        assert predictions.shape == (20, 3) and predictions.dtype == bool
        assert 0 < hparams["threshold"] < 1
        np.testing.assert_array_equal(probabilities >= hparams["threshold"], predictions)
        assert not predictions[:, 2].any()
        everything = np.tile([True, True, False], (20, 1))
        assert micro_f1(predictions, SETS[TEST]) > micro_f1(everything, SETS[TEST])


@pytest.mark.parametrize("name", ["svc", "lp_ft", "self_training", "prompt"])
def test_methods_that_need_classes_say_so(name):
    assert not METHODS[name].supports(model_of("value"))
    assert not METHODS[name].supports(model_of("label_set"))


def test_a_head_of_numbers_is_in_the_units_of_the_labels():
    model = model_of("value")
    hparams = {"method": "full", "learning_rate": 1e-3, "epochs": 4}
    fitted = METHODS["full"].fit(model, TRAIN, TRAIN % 4, 0, hparams, num_steps=1)
    near = METHODS["full"].predict(model, fitted, TEST)
    mean, deviation = mean_and_deviation(VALUES[TRAIN])
    # After one step the standardized head is still about zero.
    assert np.abs(near - mean).max() < 0.2 * deviation
    scaled = dataclasses.replace(model, truths=VALUES * 10)
    ten = METHODS["full"].fit(scaled, TRAIN, TRAIN % 4, 0, hparams, num_steps=1)
    np.testing.assert_allclose(METHODS["full"].predict(scaled, ten, TEST), 10 * near, rtol=1e-4)


def test_probes_are_those_of_scikit_learn_and_are_restored_from_their_arrays():
    draws = np.random.default_rng(0)
    x, new = draws.normal(size=(30, 5)), draws.normal(size=(7, 5))
    hparams = {"scale": "l2", "l2": 0.1}
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    new_rows = new / np.linalg.norm(new, axis=1, keepdims=True)
    values = x[:, 0] * 3 + 5
    probe = ValueTarget().fit_probe(x, values, hparams)
    theirs = Ridge(alpha=0.1).fit(rows, values).predict(new_rows)
    np.testing.assert_allclose(probe.predict(new), theirs, atol=1e-9)
    sets = np.stack([x[:, 0] > 0, np.zeros(30, bool), np.ones(30, bool)], axis=1)
    many = LabelSetTarget(3).fit_probe(x, sets, hparams)
    theirs = LogisticRegression(C=10.0).fit(rows, sets[:, 0]).predict_proba(new_rows)[:, 1]
    predicted = many.predict(new)
    np.testing.assert_allclose(predicted[:, 0], theirs, atol=1e-3)
    np.testing.assert_allclose(predicted[:, 1:], np.tile([0.5 / 31, 30.5 / 31], (7, 1)))
    for own, kind in ((probe, RidgeProbe), (many, OneVsRestProbe)):
        arrays, state = own.dump()
        again = kind.restore(arrays, json.loads(json.dumps(state)))
        np.testing.assert_array_equal(again.predict(new), own.predict(new))


def test_constant_numbers_and_diverged_outputs_do_no_harm():
    target = ValueTarget()
    np.testing.assert_array_equal(target.encode(np.full(3, 7.0)), np.zeros(3))
    probe = target.fit_probe(np.eye(3), np.full(3, 7.0), {"scale": "standardise", "l2": 1.0})
    np.testing.assert_allclose(probe.predict(np.eye(3)), 7.0)
    assert target.outputs(np.array([[np.nan], [np.inf], [2.0]])).tolist() == [0.0, 0.0, 2.0]
    assert np.isfinite(target.tune(np.zeros(2), np.full(2, 7.0))[0])
    assert target.standard_error(-9.0, 8) == 0.5 and target.standard_error(1.0, 8) == 0.0


def test_classes_are_predicted_as_before():
    target = ClassTarget(3)
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert target.outputs(logits).tolist() == [1, 0]
    np.testing.assert_allclose(target.probabilities(logits).sum(axis=1), 1, rtol=1e-6)
    assert target.tune(np.array([0, 0, 1]), np.array([0, 1, 1])) == (0.75, {})
    assert target.decide(np.array([1]), {}).tolist() == [1]
