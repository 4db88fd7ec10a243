"""Artifacts: the curve of one modality of a joint run."""

import math

import numpy as np
import pytest

from fm.study.artifacts import _trained_hparams, modality_curve
from fm.study.cells import Cell


def test_pieces_of_a_format_are_its_share_of_those_between_records():
    curve = {
        "tokens": [100, 300],
        "value": [9.0, 9.0],
        "validation_tokens": [200, 300],
        "validation": [8.0, 8.0],
        "text/value": [3.0, 2.0],
        "text/validation": [2.5, 2.4],
        "text/share": [0.5, 0.25],
    }
    found = modality_curve(curve, "text")
    assert found["tokens"] == [50.0, 100.0] and found["value"] == [3.0, 2.0]
    assert found["validation_tokens"] == [75.0, 100.0] and found["validation"] == [2.5, 2.4]
    assert found["share"] == pytest.approx(1 / 3)


FULL, SLOWER, PROBE = (
    {"method": "full", "learning_rate": 0.1},
    {"method": "full", "learning_rate": 0.01},
    {"method": "probe", "l2": 1.0},
)


@pytest.mark.parametrize(
    ("hparams", "trials", "expected"),
    [
        (FULL, [], FULL),
        (FULL | {"method": "lora"}, [], FULL | {"method": "lora"}),
        (PROBE, [], None),
        (PROBE, [(PROBE, 0.9), (FULL, 0.2), (SLOWER, 0.3)], SLOWER),
        (PROBE, [(PROBE, 0.9), (FULL, math.nan), (SLOWER, 0.3)], SLOWER),
        (PROBE, [(PROBE, 0.9)], None),
    ],
)
def test_a_single_setting_has_its_learning_curve_too(hparams, trials, expected):
    trials = [{"config": config, "validation": value} for config, value in trials]
    cell = Cell("fruit", "scratch", 8, hparams, trials, np.zeros((1, 2)), 1.0, 1.0)
    assert _trained_hparams(cell) == expected
