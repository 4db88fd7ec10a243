"""Warnings follow from the results, and are silent where there is nothing to warn of."""

import pytest

from fm.report.cautions import cautions
from fm.report.parsing import parse

CELLS = [
    {"task": "x", "arm": "in_domain", "num_labels": number, "seed": seed, "value": 0.5}
    for number in (20, 400)
    for seed in (0, 1)
]
ENCODER = {"name": "encoder", "pretrained_on": "published data"}
PRETRAINING = {"task": "x", "arm": "in_domain", "kind": "pretrain"}


def told(task=None, cell=None, **more):
    cells = [dict(each) for each in CELLS]
    cells[0] |= cell or {}
    content = {"schema": 2, "tasks": [{"name": "x"} | (task or {})], "cells": cells}
    return cautions(parse(content | more), "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"task": {"classes": ["a", "b"], "majority_rate": 0.86}}, "right for 86.0% of the test"),
        (
            {"cell": {"constant_prediction": True}},
            "in_domain gave one answer to every test item",
        ),
        ({"cell": {"still_improving": True}}, "was still improving when its training ended at 20"),
        ({"cell": {"at_edge": ["l2"]}}, "at the edge of their grid, where a wider grid might do "),
        ({"curves": [PRETRAINING | {"validation": [9, 4, 3, 2]}]}, "half in_domain by 50.0%"),
        (
            {"arms": [ENCODER], "task": {"encoder": {"tokens": 64}}},
            "the model of encoder reads up to 64 tokens of a text, the other arms",
        ),
        (
            {
                "arms": [ENCODER],
                "task": {"encoder": {"tokens": 64}},
                "config": {"tasks": {"x": {"recipe": {"seq_len": 256, "num_windows": 2}}}},
            },
            "64 tokens of a text, the study's own networks up to 512",
        ),
        (
            {"task": {"shrunk": {"from": [32, 32], "to": [8, 8], "count": 12}}},
            "12 images were shrunk for all arms, typically from 32 by 32 to 8 by 8",
        ),
    ],
)
def test_a_warning_is_given(content, words):
    (text,) = told(**content)
    assert words in text


def test_published_weights_are_made_for_larger_images():
    shrunk = {"shrunk": {"from": [32, 32], "to": [8, 8], "count": 12}}
    _, text = told(arms=[ENCODER], task=shrunk | {"encoder": {"tokens": None, "model": "m"}})
    assert "with more --image_size they may do better" in text


def test_arms_that_share_a_pretraining_run_are_told_of_once():
    curves = [PRETRAINING | {"arm": arm, "validation": [9, 4, 3, 2]} for arm in ("in_domain", "b")]
    (text,) = told(curves=curves)
    assert "half in_domain by 50.0%. Longer" in text


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"task": {"classes": ["a", "b"], "majority_rate": 0.52}},
        {"cell": {"constant_prediction": False, "still_improving": False, "at_edge": []}},
        {"curves": [PRETRAINING | {"validation": [9, 2.001, 2.0, 2.0]}]},
        {
            "curves": [PRETRAINING | {"validation": [9, 4, 3, 2]}],
            "pretrained": [{"name": "x/in_domain/0", "stopped_because": "flat"}],
        },
        {"task": {"shrunk": None}},
        {
            "arms": [ENCODER],
            "task": {"encoder": {"tokens": 64}},
            "config": {"tasks": {"x": {"recipe": {"seq_len": 64, "num_windows": 1}}}},
        },
    ],
)
def test_nothing_to_warn_of(content):
    assert told(**content) == []
