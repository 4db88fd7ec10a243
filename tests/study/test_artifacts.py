"""Artifacts: the curve of one modality of a joint run."""

import pytest

from fm.study.artifacts import modality_curve


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
