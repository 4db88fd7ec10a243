"""Memory and time of each method, side by side."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.study import methods
from fm.study.arms import Fed, imported
from fm.study.reading import Reader
from fm.study.tasks import prepare
from fm.transfer.finetune import FinetuneConfig, footprint
from fm.transfer.lora import LoraConfig
from tests.study.problems import config, dataset, loads, recipe, split
from tests.study.test_adaptation import network
from tests.study.test_imported import ASKED, published, texts
from tests.transfer.problems import MODEL, params, separable


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
    head = (MODEL.width + 1) * 2
    options = {"classes": 2, "capacity": 8}
    config = FinetuneConfig(steps=2, batch_size=4)
    full = footprint(start, rows, labels, MODEL, config, **options)
    assert full.trained == everything + head and full.state == 16 * full.trained
    low = dataclasses.replace(config, lora=LoraConfig(rank=2))
    lora = footprint(start, rows, labels, MODEL, low, **options)
    adapters = 2 * 2 * (MODEL.width + MODEL.width)
    assert lora.trained == adapters + head
    assert lora.state == 4 * everything + 16 * lora.trained
    assert full.program > 0 and lora.program > 0


def test_a_row_for_each_method(monkeypatch):
    parts = split(*texts(40)), split(*texts(12, 1))
    loads(monkeypatch, dataclasses.replace(dataset(), train=parts[0], test=parts[1]))
    monkeypatch.setattr("fm.transfer.published.find", lambda name: published("llama"))
    given = config(imported=ASKED, recipe=recipe("text"), budgets=(16,))
    task = prepare(given, ("self", "imported"), 1)
    made = imported(task, ("probe", "full", "prompt"))
    rows, _ = separable(len(task.touched) + 12)
    net = dataclasses.replace(network(), rows=rows, test_from=len(task.touched), capacity=16)
    fed = {"self": Fed(net, Reader(MODEL, None), [None])}
    found = methods.rows(task, fed, made)
    assert [(row["arm"], row["method"]) for row in found] == [
        ("self", "full"),
        ("self", "probe"),
        ("self", "lora"),
        ("imported", "probe"),
        ("imported", "prompt"),
    ]
    few = methods.rows(task, fed, None, ("probe",))
    assert [(row["arm"], row["method"]) for row in few] == [("self", "probe")]
    assert all(row["labels"] == 16 and row["task"] == task.name for row in found)
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in found)
    by_method = {row["method"]: row for row in found[:3]}
    assert by_method["lora"]["bytes_state"] < by_method["full"]["bytes_state"]
    assert found[4]["parameters_trained"] == 0
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(made.model.params))
    assert found[3]["bytes_state"] == weights
    assert found[3]["parameters_trained"] == made.features.shape[1] + 1
    assert np.isfinite([row["bytes_state"] for row in found]).all()
