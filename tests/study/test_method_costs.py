"""Memory and time of each method, side by side."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation.finetune import FinetuneConfig, memory_footprint
from fm.adaptation.lora import LoraConfig
from fm.study import method_costs
from fm.study.arms import PretrainedArm, build_published_arm
from fm.study.processing import Processor
from fm.study.tasks import prepare_task
from tests.adaptation.helpers_models import MODEL, params, separable
from tests.study.helpers_study import config, dataset, loads, recipe, split
from tests.study.test_adaptation import network
from tests.study.test_published_arm import ASKED, published, texts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path))


def test_a_footprint_counts_what_is_trained():
    rows, labels = separable(8)
    start = params()
    everything = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(start)
        if "token_head" not in jax.tree_util.keystr(path)
    )
    head = (MODEL.d_model + 1) * 2
    options = {"classes": 2, "capacity": 8}
    config = FinetuneConfig(min_steps=2, batch_size=4)
    full = memory_footprint(start, rows, labels, MODEL, config, **options)
    assert full.trained_params == everything + head and full.state_bytes == 16 * full.trained_params
    low = dataclasses.replace(config, lora=LoraConfig(rank=2))
    lora = memory_footprint(start, rows, labels, MODEL, low, **options)
    adapters = 2 * 2 * (MODEL.d_model + MODEL.d_model)
    assert lora.trained_params == adapters + head
    assert lora.state_bytes == 4 * everything + 16 * lora.trained_params
    assert full.program_bytes > 0 and lora.program_bytes > 0


def test_a_row_for_each_method(monkeypatch):
    parts = split(*texts(40)), split(*texts(12, 1))
    loads(monkeypatch, dataclasses.replace(dataset(), train=parts[0], test=parts[1]))
    monkeypatch.setattr("fm.hf.model_zoo.load_published", lambda name: published("llama"))
    given = config(imported=ASKED, recipe=recipe("text"), budgets=(16,))
    task = prepare_task(given, ("in_domain", "published"), 1)
    made = build_published_arm(task, ("probe", "full", "prompt"))
    rows, _ = separable(len(task.labeled_pool) + 12)
    net = dataclasses.replace(
        network(), batch_shards=rows, test_from=len(task.labeled_pool), capacity=16
    )
    fed = {"in_domain": PretrainedArm(net, Processor(MODEL, None), [None])}
    found = method_costs.method_cost_rows(task, fed, made)
    assert [(row["arm"], row["method"]) for row in found] == [
        ("in_domain", "full"),
        ("in_domain", "probe"),
        ("in_domain", "lora"),
        ("published", "probe"),
        ("published", "prompt"),
    ]
    few = method_costs.method_cost_rows(task, fed, None, ("probe",))
    assert [(row["arm"], row["method"]) for row in few] == [("in_domain", "probe")]
    assert all(row["labels"] == 16 and row["task"] == task.name for row in found)
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in found)
    by_method = {row["method"]: row for row in found[:3]}
    assert by_method["lora"]["bytes_state"] < by_method["full"]["bytes_state"]
    assert found[4]["parameters_trained"] == 0
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(made.model.params))
    assert found[3]["bytes_state"] == weights
    assert found[3]["parameters_trained"] == made.features.shape[1] + 1
    assert np.isfinite([row["bytes_state"] for row in found]).all()
