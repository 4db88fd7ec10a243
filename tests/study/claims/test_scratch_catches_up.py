"""The verdict on hand-made gaps, and the measurement on tiny data."""

import dataclasses
import json

import pytest

from fm.study import presets
from fm.study.claims import scratch_catches_up
from fm.study.claims.registry import FULL, NOT_REPRODUCED, QUICK, REPRODUCED, UNDECIDED
from fm.study.claims.scratch_catches_up import CLAIM, SIZES, Size
from tests.study.claims.helpers_claims import difference_row, is_drawn
from tests.study.helpers_study import dataset, recipe

UPDATES, LABELS = (100, 1600), (400, 2600, 26_000)


def measured(*, early=6.0, fall=5.5, end_most=0.2, chosen=3.0, improving=False, wide=0.4):
    """What a run measures, from the few figures that the criterion looks at."""
    gaps = [difference_row(early, what="gap", updates=UPDATES[0], num_labels=n) for n in LABELS] + [
        difference_row(value, wide, what="gap", updates=UPDATES[1], num_labels=n)
        for n, value in zip(LABELS, (2.0, 1.5, end_most), strict=True)
    ]
    others = [
        difference_row(fall, what="fall with updates", num_labels=LABELS[-1]),
        difference_row(chosen, wide, what="gap at chosen lengths", num_labels=LABELS[0]),
    ]
    arms = ("scratch", 0.6), ("in_domain", 0.7)
    return {
        "scores": [
            {"updates": updates, "arm": arm, "num_labels": n, "value": value}
            for updates in UPDATES
            for arm, value in arms
            for n in LABELS
        ],
        "chosen_scores": [
            {"arm": arm, "num_labels": LABELS[0], "value": value + 0.05} for arm, value in arms
        ],
        "updates": UPDATES,
        "label_budgets": LABELS,
        "differences": gaps + others,
        "scratch_still_improving": improving,
    }


@pytest.mark.parametrize(
    ("changes", "verdict", "held"),
    [
        ({}, REPRODUCED, (True, True, True, True)),
        # Scratch does not catch up even with all labels.
        ({"end_most": 4.0, "fall": 2.0}, NOT_REPRODUCED, (True, True, False, True)),
        ({"early": 0.1}, NOT_REPRODUCED, (False, True, True, True)),
        # It catches up with few labels, too.
        ({"chosen": 0.1}, NOT_REPRODUCED, (True, True, True, False)),
        ({"end_most": 0.9}, UNDECIDED, (True, True, None, True)),
        # A gap to a run that still improves shows nothing.
        ({"improving": True}, UNDECIDED, (True, True, True, None)),
        ({"wide": 3.5}, UNDECIDED, (True, True, None, None)),
    ],
)
def test_verdicts(changes, verdict, held):
    found = CLAIM.judge(measured(**changes))
    assert found.verdict == verdict
    assert tuple(each.holds for each in found.conditions) == held
    assert found.conditions[2].text.startswith("at 26,000 labels the gap after 1,600 updates is w")
    assert found.notes == (
        "Accuracy of scratch and in_domain at 400 labels: 60.0% and 70.0% after 100 updates, 60.0% "
        "and 70.0% after 1,600 updates, 65.0% and 75.0% at chosen lengths.",
    )


def test_the_criterion_is_that_of_the_full_profile():
    texts = [each.text for each in CLAIM.judge(measured()).conditions]
    assert len(CLAIM.criterion) == len(texts) == 4
    full = SIZES[FULL]
    assert f"{full.label_budgets[-1]:,} labels" in CLAIM.criterion[2]
    assert f"{full.updates[-1]:,} updates" in CLAIM.criterion[2]


def test_the_picture():
    assert is_drawn(CLAIM, measured())


def test_studies_differ_in_updates_alone(monkeypatch):
    monkeypatch.setattr(scratch_catches_up, "task_config", lambda name, recipe, *_, **__: recipe)
    monkeypatch.setattr(scratch_catches_up, "StudyConfig", lambda **fields: fields["tasks"][0])
    recipes = CLAIM.studies(FULL, None)
    lengths = [each.finetune.fixed_updates for each in recipes.values()]
    assert lengths == [*SIZES[FULL].updates, None]
    (*_, chosen) = recipes.values()
    assert chosen.finetune.num_steps(400, chosen.finetune.max_epochs) == SIZES[FULL].updates[-1]
    plain = {json.dumps(each.pretraining_fields(), sort_keys=True) for each in recipes.values()}
    assert len(plain) == 1


@pytest.mark.slow
def test_the_measurement_from_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr("fm.study.tasks.load", lambda *_, **__: dataset(train=80, test=40))
    monkeypatch.setattr("fm.study.claims.studies.load", lambda *_, **__: dataset(train=80, test=40))
    monkeypatch.setattr(presets, "text_recipe", lambda profile: recipe("text"))
    size = Size((8, 40), (4, 8), 2, 1, 40)
    monkeypatch.setitem(SIZES, QUICK, dataclasses.replace(size))
    found = json.loads(json.dumps(CLAIM.measure(QUICK, tmp_path, None)))
    assert len(found["scores"]) == 8
    whats = [row["what"] for row in found["differences"]]
    assert whats == ["gap"] * 4 + ["fall with updates"] * 2 + [
        "fall with labels",
        "gap at chosen lengths",
    ]
    by = {(row["updates"], row["arm"], row["num_labels"]): row["value"] for row in found["scores"]}
    gap = by[8, "in_domain", 40] - by[8, "scratch", 40]
    assert found["differences"][3]["difference"] == pytest.approx(gap)
    fall = by[4, "in_domain", 40] - by[4, "scratch", 40] - gap
    assert found["differences"][5]["difference"] == pytest.approx(fall)
    assert len(CLAIM.judge(found).conditions) == 4 and is_drawn(CLAIM, found)
    assert [row["num_labels"] for row in found["chosen_scores"]] == [8, 8]
    # Of fixed length and one setting: nothing was searched, and one run was pretrained.
    results = json.loads((tmp_path / "studies" / "updates-8" / "results.json").read_text())
    assert all(cell["trials"] == [] for cell in results["cells"])
    assert len(list((tmp_path / "pretrained").iterdir())) == 1
    # Again, from what is there: nothing is trained.
    monkeypatch.setattr("fm.study.claims.studies.run_compare", None)
    assert CLAIM.measure(QUICK, tmp_path, None)["scores"] == found["scores"]
