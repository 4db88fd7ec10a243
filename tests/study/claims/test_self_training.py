"""The verdict on hand-made gaps and gains, and the measurement on tiny data."""

import itertools
import json

import pytest

from fm.study import presets
from fm.study.claims.registry import FULL, NOT_REPRODUCED, QUICK, REPRODUCED, UNDECIDED
from fm.study.claims.self_training import AUGMENTATIONS, CLAIM, SIZES, Size
from tests.study.claims.helpers_claims import difference_row, is_drawn
from tests.study.helpers_study import dataset, images, recipe

LABELS = (100, 12_000)


def measured(*, labels=5.0, augmentation=2.0, mean=1.5, gain=1.0, wide=0.5):
    """What a run measures, from the few figures that the criterion looks at."""
    rows = [
        difference_row(labels, what="fall with labels"),
        difference_row(augmentation, what="fall with augmentation"),
        difference_row(mean, what="self-training in the mean"),
    ]
    for kind, num_labels in itertools.product(AUGMENTATIONS, LABELS):
        key = {"augmentation": kind, "num_labels": num_labels}
        rows.append(difference_row(labels, what="gap", **key))
        for arm in ("scratch", "in_domain"):
            first = (arm, kind, num_labels) == ("scratch", AUGMENTATIONS[0], LABELS[0])
            value = gain if first else 1.0
            rows.append(difference_row(value, wide, what="self-training", arm=arm, **key))
    return {"label_budgets": LABELS, "augmentations": AUGMENTATIONS, "differences": rows}


@pytest.mark.parametrize(
    ("changes", "verdict", "held"),
    [
        ({}, REPRODUCED, (True, True, True, True)),
        ({"labels": -2.0}, NOT_REPRODUCED, (False, True, True, True)),
        ({"augmentation": 0.1}, NOT_REPRODUCED, (True, False, True, True)),
        # Self-training hurts in one place.
        ({"gain": -2.0}, NOT_REPRODUCED, (True, True, False, True)),
        # Below 0, but not shown to be worse by the margin.
        ({"gain": -1.0}, UNDECIDED, (True, True, None, True)),
        ({"gain": -0.4}, REPRODUCED, (True, True, True, True)),
        ({"wide": 2.5}, UNDECIDED, (True, True, None, True)),
        ({"mean": -1.0}, NOT_REPRODUCED, (True, True, True, False)),
    ],
)
def test_verdicts(changes, verdict, held):
    found = CLAIM.judge(measured(**changes))
    assert found.verdict == verdict
    assert tuple(each.holds for each in found.conditions) == held
    assert "self-training over pretraining: " in found.notes[0]


def test_the_criterion_is_that_of_the_full_profile():
    assert len(CLAIM.criterion) == len(CLAIM.judge(measured()).conditions)
    assert f"{SIZES[FULL].label_budgets[-1]:,} labels" in CLAIM.criterion[0]


def test_the_picture():
    assert is_drawn(CLAIM, measured())


@pytest.mark.slow
def test_the_measurement_from_end_to_end(monkeypatch, tmp_path):
    data = dataset(make=images, train=80, test=40)
    for place in ("fm.study.tasks.load", "fm.study.claims.studies.load"):
        monkeypatch.setattr(place, lambda *_, **__: data)
    monkeypatch.setattr(presets, "image_recipe", lambda: recipe("image"))
    monkeypatch.setitem(SIZES, QUICK, Size("digits", (8, 24), 4, 2, 1, 40, 4, 4, None, 16))
    found = json.loads(json.dumps(CLAIM.measure(QUICK, tmp_path, None)))
    assert len(found["scores"]) == 16
    key = {"augmentation": "none", "num_labels": 24}
    by = {(row["study"], row["arm"], row["num_labels"]): row["value"] for row in found["scores"]}
    (gap,) = (
        row for row in found["differences"] if row["what"] == "gap" and key.items() <= row.items()
    )
    difference = by["none-full", "in_domain", 24] - by["none-full", "scratch", 24]
    assert gap["difference"] == pytest.approx(difference)
    (gain,) = (
        row
        for row in found["differences"]
        if row["what"] == "self-training" and (key | {"arm": "scratch"}).items() <= row.items()
    )
    difference = by["none-self_training", "scratch", 24] - by["none-full", "scratch", 24]
    assert gain["difference"] == pytest.approx(difference)
    assert len(CLAIM.judge(found).conditions) == 4 and is_drawn(CLAIM, found)
    path = tmp_path / "studies" / "none-self_training" / "results.json"
    cells = json.loads(path.read_text())["cells"]
    assert {cell["hparams"]["rounds"] for cell in cells} == {1}
    assert len(list((tmp_path / "pretrained").iterdir())) == 1
