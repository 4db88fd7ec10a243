"""The best model of a study is chosen on validation data, and can be kept."""

import pytest

from fm.study.adaptation import (
    ClassicalOrNetworkArm,
    ModelArm,
    RecipeChoiceArm,
    chosen_arm,
)
from fm.study.best_models import ranked_candidates


def cell(arm, num_labels, seed, validation, value=0.5):
    hparams = {"method": "probe", "seed": seed}
    return {
        "task": "fruit",
        "arm": arm,
        "num_labels": num_labels,
        "seed": seed,
        "validation": validation,
        "value": value,
        "hparams": hparams,
    }


def test_validation_at_the_largest_budget_decides_and_test_items_do_not():
    results = {
        "cells": [
            *(cell("lucky", 16, seed, 0.6, value=0.99) for seed in range(2)),
            *(cell("early", 8, seed, 0.99) for seed in range(2)),
            *(cell("early", 16, seed, 0.5) for seed in range(2)),
            *(cell("steady", 16, seed, validation) for seed, validation in enumerate((0.6, 0.8))),
            *(cell("fixed", 16, seed, None) for seed in range(2)),
            *(cell("other", 16, 0, 1.0) | {"task": "films"} for _ in range(1)),
        ]
    }
    found = ranked_candidates(results, "fruit")
    assert [each.arm for each in found] == ["steady", "lucky", "early", "fixed"]
    assert found[0].validation == pytest.approx(0.7) and found[0].hparams["seed"] == 0


def test_the_arm_that_settings_are_of():
    arm, other = ModelArm(None, ("probe",)), object()
    hparams = {"method": "probe"}
    assert chosen_arm(arm, hparams) == (arm, hparams)
    choice = RecipeChoiceArm({"deep": arm, "flat": other})
    assert chosen_arm(choice, {"recipe": "deep", **hparams}) == (arm, hparams)
    both = ClassicalOrNetworkArm(other, arm, 10)
    assert chosen_arm(RecipeChoiceArm({"both": both}), {"recipe": "both", **hparams})[0] is arm
    assert chosen_arm(both, {"method": "classical"})[0] is other
