"""Memory, time and accuracy of each method."""

import dataclasses
import types

import numpy as np
import pytest

from fm.adaptation.methods import METHODS
from fm.study.built_arm import BuiltArm
from fm.study.method_costs import method_cost_rows
from tests.study.test_adaptation import LABELS, model_arm


def task(predicts_classes=True):
    return types.SimpleNamespace(
        name="words",
        task_type=types.SimpleNamespace(predicts_classes=predicts_classes),
        train_idx=(np.arange(20),),
        config=types.SimpleNamespace(label_budgets=(8, 16)),
        dataset=types.SimpleNamespace(train=types.SimpleNamespace(labels=LABELS[:30])),
        test=types.SimpleNamespace(labels=LABELS[30:]),
        pool_rows=lambda idx: idx,
    )


@pytest.fixture(scope="module")
def arms():
    frozen = model_arm(("probe", "full", "prompt"))
    frozen = dataclasses.replace(frozen, model=dataclasses.replace(frozen.model, trainable=False))
    return {
        "scratch": BuiltArm(model_arm()),
        "in_domain": BuiltArm(model_arm(), runs=[None]),
        "out_of_domain": BuiltArm(model_arm(), runs=[None]),
        "published": BuiltArm(frozen, description={"source": "made up"}),
    }


def test_a_row_for_each_method(arms):
    rows = method_cost_rows(task(), arms, METHODS)
    assert [(row["arm"], row["method"]) for row in rows] == [
        ("in_domain", "full"),
        ("in_domain", "probe"),
        ("in_domain", "lora"),
        ("in_domain", "lp_ft"),
        ("in_domain", "self_training"),
        ("in_domain", "svc"),
        ("published", "probe"),
    ]
    few = method_cost_rows(task(), {"in_domain": arms["in_domain"]}, ("probe",))
    assert [(row["arm"], row["method"]) for row in few] == [("in_domain", "probe")]
    assert all(row["num_labels"] == 16 and row["task"] == "words" for row in rows)
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in rows)
    assert np.isfinite([row["bytes_state"] for row in rows]).all()


def test_none_for_tasks_without_classes(arms):
    assert method_cost_rows(task(predicts_classes=False), arms, METHODS) == []
