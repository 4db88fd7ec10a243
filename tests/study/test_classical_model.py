"""A saved classical model predicts what the arm of the study predicted."""

import dataclasses

import numpy as np
import pytest

from fm.data.datasets import Dataset
from fm.study import saved_model
from fm.study.baseline_arms import ClassicalArm
from fm.study.classical_model import classical_model
from fm.study.head_task_types import HeadTaskType
from fm.study.processing import build_processor
from fm.study.tasks import prepare_task
from tests.study.helpers_study import config, dataset, images, loads, recipe, texts
from tests.study.test_saved_model import tagged

SEED = 0


def prepared(monkeypatch, make=texts):
    found = dataset(make=make)
    loads(monkeypatch, found)
    own = recipe("text" if make is texts else "image")
    return prepare_task(config(label_budgets=(16,), recipe=own), ("scratch",), 1)


def check(task, arm, hparams, tmp_path, tokenizer=None):
    """Saves, loads and predicts; the classes are those of the arm, whatever the company."""
    train_idx = task.train_idx[0]
    labels = task.strata[train_idx]
    expected = arm.fit_predict(task.pool_rows(train_idx), labels, SEED, hparams)
    kept = classical_model(task, arm, train_idx, hparams, SEED, tokenizer=tokenizer)
    saved_model.save(tmp_path / "model", kept)
    loaded = saved_model.load(tmp_path / "model")
    inputs = task.task_type.new_inputs(task.test, np.arange(len(task.test)))
    found = loaded.predict(inputs)
    in_memory = kept.predict(inputs)
    assert list(found.values) == list(in_memory.values)
    if expected.probabilities is not None:
        assert np.array_equal(found.values, expected.values)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
        assert np.array_equal(found.probabilities, in_memory.probabilities)
    alone = loaded.predict(inputs[3:4])
    assert alone.values[0] == found.values[3]
    if found.probabilities is not None:
        assert np.array_equal(alone.probabilities[0], found.probabilities[3])
    return loaded


def finalists(arm, task):
    idx = task.train_idx[0]
    trials = arm.search(task.pool_rows(idx), task.strata[idx], SEED)
    return {trial["config"]["member"]: trial["config"] for trial in trials}


@pytest.mark.parametrize("make", [texts, images])
def test_members_of_labeled_examples(monkeypatch, tmp_path, make):
    task = prepared(monkeypatch, make)
    arm = task.task_type.build_baseline(task)
    assert isinstance(arm, ClassicalArm)
    for n, hparams in enumerate(list(finalists(arm, task).values())[:4]):
        loaded = check(task, arm, hparams, tmp_path / str(n))
        assert len(loaded.arrays["labels"]) == 16 and not loaded.record.state["num_in_corpus"]


@pytest.mark.parametrize("make", [texts, images])
@pytest.mark.slow
def test_members_that_learn_from_unlabeled_examples(monkeypatch, tmp_path, make):
    task = prepared(monkeypatch, make)
    arm = task.task_type.build_unlabeled_baseline(task)
    # The gradients of these images are zero: their components are rounding errors.
    own = {
        name: hparams
        for name, hparams in finalists(arm, task).items()
        if "unlabeled" in hparams and "components of HOG" not in name
    }
    assert len(own) >= 3
    for n, hparams in enumerate(own.values()):
        loaded = check(task, arm, hparams, tmp_path / str(n))
        assert loaded.record.state["num_in_corpus"] == 16


@pytest.mark.parametrize("make", [texts, images])
def test_members_beside_a_network(monkeypatch, tmp_path, make):
    task = prepared(monkeypatch, make)
    modality = task.modality
    processor = build_processor(task.dataset.train, modality, task.config.recipe, tmp_path)
    assert isinstance(task.task_type, HeadTaskType)
    own = task.task_type.build_model_arm(task, processor, [], ("self_training",))
    network = dataclasses.replace(own.model, checkpoints=[own.model.initial_params(0)])
    arm = task.task_type.build_unlabeled_baseline(task, network)
    for n, hparams in enumerate(list(finalists(arm, task).values())[:3]):
        loaded = check(task, arm, hparams, tmp_path / str(n), processor.tokenizer)
        assert "initial" in loaded.arrays


def test_a_conditional_random_field(monkeypatch, tmp_path):
    info = dataset(make=texts).info | {"tags": ["O", "B-person", "I-person"]}
    found = Dataset("names", "text", (), tagged(40), tagged(12), info)
    loads(monkeypatch, found)
    own = config("names", label_budgets=(16,), recipe=recipe("text"))
    task = prepare_task(own, ("scratch",), 1)
    arm = task.task_type.build_baseline(task)
    loaded = check(task, arm, {"c1": 0.01, "c2": 0.1}, tmp_path)
    predicted = loaded.predict([["Ann", "met", "Bob"]])
    assert loaded.prediction_texts(predicted)[0].split()[0] == "B-person"
