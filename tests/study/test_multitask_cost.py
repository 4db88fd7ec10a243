"""The bill of made-up results against sums done by hand."""

import pytest

from fm.adaptation.finetune import FinetuneConfig
from fm.model.config import ModelConfig
from fm.study.multitask_cost import CostCalculator, count_parameters, shared_model_size_row

FORMATS = {"reviews": "text", "topics": "text", "digits": "image"}
# Pretraining: of text 100, of images 10, of all together 110.
PAID = {"scratch": 0.0, "joint": 110.0, "instruction_tuned": 110.0}
METHOD = {
    "scratch": "full",
    "in_domain": "probe",
    "joint": "probe",
    "instruction_tuned": "instruct",
}
# Adapting a network of its own by the number of labels; instructed: its share of 5 updates.
SPENT = {"scratch": 2.0, "in_domain": 1.0, "joint": 1.0, "instruction_tuned": 5 / 3}
VALUES = {
    "scratch": {"reviews": (0.5, 0.7, 0.8), "topics": (0.4, 0.3, 0.3), "digits": (0.5, 0.9, 0.9)},
    "in_domain": {name: (0.6, 0.7, 0.8) for name in FORMATS},
    "joint": {name: (0.7, 0.7, 0.7) for name in FORMATS},
    "instruction_tuned": {name: (0.4, 0.5, 0.6) for name in FORMATS},
}
BUDGETS = (10, 20, 40)


def results(arms=tuple(METHOD), sizes=True):
    cells = [
        {
            "task": task,
            "arm": arm,
            "num_labels": labels,
            "seed": seed,
            "value": VALUES[arm][task][n] + (0.01 if seed else -0.01),
            "hparams": {"method": METHOD[arm]},
            "train_flops": SPENT[arm] * (1 if arm == "instruction_tuned" else labels / 10),
            "cpu_seconds": 3.0,
        }
        for arm in arms
        for task in FORMATS
        for n, labels in enumerate(BUDGETS)
        for seed in range(2)
    ]
    ledger = [
        {
            "task": task,
            "arm": arm,
            "pretrain_flops": PAID.get(arm, 100.0 if name == "text" else 10.0),
            "pretrain_cpu_seconds": 7.0,
        }
        for arm in arms
        for task, name in FORMATS.items()
    ]
    kept = [
        {"task": task, "network": 1000 if name == "text" else 400, "heads": {"probe": 5, "full": 3}}
        for task, name in FORMATS.items()
    ]
    return {
        "tasks": [{"name": task, "modality": name} for task, name in FORMATS.items()],
        "cells": cells,
        "compute_cost": ledger,
        "sizes": [*kept, {"task": None, "network": 1100, "heads": {}}] if sizes else [],
    }


def table(**changes):
    tuning = FinetuneConfig(min_steps=5, min_epochs=1.0, batch_size=30)
    return CostCalculator(results(**changes), tuning)


def at(way, labels, count, **changes):
    rows = table(**changes).amortized_cost_rows()
    (row,) = [
        r for r in rows if (r["arm"], r["num_labels"], r["num_tasks"]) == (way, labels, count)
    ]
    return row


def test_networks_from_scratch_share_nothing():
    assert at("scratch", 10, 3) | {"flops": 6.0, "cpu_seconds": 9.0, "parameters": 2409.0} == at(
        "scratch", 10, 3
    )
    assert at("scratch", 20, 1)["flops"] == pytest.approx(4.0)
    assert at("scratch", 10, 1)["parameters"] == pytest.approx(2409 / 3)


def test_each_format_is_pretrained_once_it_is_needed():
    # One of three tasks: text with chance 2/3, images with 1/3.
    one, two = at("in_domain", 10, 1), at("in_domain", 10, 2)
    assert one["flops"] == pytest.approx(1 + 200 / 3 + 10 / 3)
    assert two["flops"] == pytest.approx(2 + 100 + 20 / 3)
    assert one["cpu_seconds"] == pytest.approx(3 + 7)
    assert one["parameters"] == pytest.approx(5 + 2000 / 3 + 400 / 3)
    assert at("in_domain", 10, 3)["parameters"] == 15 + 1400


def test_one_model_is_kept_once():
    assert at("joint", 10, 1)["flops"] == 111 and at("joint", 10, 3)["flops"] == 113
    assert at("joint", 40, 3)["parameters"] == 1100 + 15
    # Tuning takes 5 updates for any number of these.
    assert at("instruction_tuned", 10, 1)["flops"] == at("instruction_tuned", 10, 3)["flops"] == 115
    assert at("instruction_tuned", 10, 2)["cpu_seconds"] == 7 + 6
    assert at("instruction_tuned", 10, 2)["parameters"] == 1100


def test_of_older_results_parameters_are_not_known():
    row = at("joint", 10, 2, sizes=False)
    assert row["parameters"] is None and row["flops"] == 112


def test_equal_quality_is_what_the_better_reaches_first():
    found = table()
    assert found.equal_quality_budgets("reviews", "joint", "scratch") == {
        "joint": 10,
        "scratch": 20,
    }
    assert found.equal_quality_budgets("digits", "joint", "in_domain") == {
        "joint": 10,
        "in_domain": 20,
    }
    # Scratch falls with more labels: its level is the mean, and never joint's.
    assert found.equal_quality_budgets("topics", "joint", "scratch")["scratch"] is None


def test_break_even_at_equal_quality():
    rows = {(row["arm"], row["baseline"]): row for row in table().break_even_rows()}
    row = rows["joint", "scratch"]
    assert row["tasks"] == ["reviews", "digits"]
    assert row["never"] == [{"task": "topics", "arm": "scratch"}]
    # 110 + K against 4 K, the cost of 20 labels from scratch: level at 36.7.
    assert row["flops"] == 37 and row["flops_until"] is None
    # 1100 + 5 K kept, against networks of 703 on average: two of them are more.
    assert row["parameters"] == 2
    # As quick to adapt as scratch, after what pretraining took: never.
    assert row["cpu_seconds"] is None and row["cpu_seconds_until"] is None
    # Joint reaches 0.7 at once, self with 20 labels, at 2 a task and up to 110 before.
    assert rows["joint", "in_domain"]["tasks"] == list(FORMATS)
    assert rows["joint", "in_domain"]["flops"] == 3
    # Instructed is at 0.6 with 40 labels, where the joint one is past it at first: never 0.7.
    assert rows["instruction_tuned", "joint"]["tasks"] == []
    assert rows["instruction_tuned", "joint"]["flops"] is None
    assert {each["arm"] for each in rows["instruction_tuned", "joint"]["never"]} == {
        "instruction_tuned"
    }


def test_only_arms_that_ran_are_charged():
    found = table(arms=("scratch", "joint"))
    assert {row["arm"] for row in found.amortized_cost_rows()} == {"scratch", "joint"}
    pairs = [(row["arm"], row["baseline"]) for row in found.break_even_rows()]
    assert pairs == [("joint", "scratch")]


V, P, D = 50, 12, 16
MODEL = ModelConfig(
    num_layers=1,
    d_model=D,
    num_heads=1,
    num_kv_heads=1,
    mlp_dim=32,
    vocab_size=V,
    patch_dims=(("image", P),),
)


def test_streams_of_other_modalities_are_left_out():
    text, image = (
        count_parameters(MODEL, (name,), generates_text=False) for name in ("text", "image")
    )
    assert text - image == V * D - P * D
    both = count_parameters(MODEL, ("text", "image"), generates_text=False)
    assert both - text == P * D


def test_who_writes_keeps_what_predicts_text_alone():
    reads, writes = (
        count_parameters(MODEL, ("text",), generates_text=each) for each in (False, True)
    )
    assert writes - reads == D * V
    # Beside the blocks, whose attention and feed-forward these are, only small things.
    blocks = 4 * D * D + 2 * D * 32
    assert 0 <= reads - V * D - blocks <= 10 * D


def test_one_for_all_reads_every_format_and_writes():
    assert shared_model_size_row(MODEL)["network"] == count_parameters(
        MODEL, ("text", "image"), generates_text=True
    )


@pytest.mark.parametrize(("method", "parameters"), [("lora", 9 + 1000), ("unheard of", None)])
def test_every_method_is_billed(method, parameters):
    sections = results()
    for cell in sections["cells"]:
        if cell["arm"] == "in_domain":
            cell["hparams"] = {"method": method}
    for size in sections["sizes"]:
        size["heads"] |= {"lora": 9}
    tuning = FinetuneConfig(min_steps=5, min_epochs=1.0, batch_size=30)
    found = CostCalculator(sections, tuning)
    rows = {
        (row["arm"], row["num_labels"], row["num_tasks"]): row
        for row in found.amortized_cost_rows()
    }
    whole = None if parameters is None else 2 * parameters + 9 + 400
    assert rows["in_domain", 10, 3]["parameters"] == whole
    assert len(found.break_even_rows()) == 6
