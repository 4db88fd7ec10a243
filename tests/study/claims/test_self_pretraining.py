import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from fm.study.claims import CLAIMS, self_pretraining
from fm.study.claims.registry import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from fm.study.claims.self_pretraining import (
    GAIN,
    LEARNED,
    MORE_WITH_FEW,
    MORE_WITH_LEARNED,
    ROTARY,
    Size,
    TaskSettings,
    arm_name,
    rate_key,
    recipe,
)
from tests.study.helpers_study import dataset, images


def measured(
    gain=0.05, more_with_few=0.04, more_with_learned=0.03, half=0.02, task="fashion_mnist"
):
    """Gains with intervals of 2 points to either side, at 20 and 200 labels."""
    half = 0.02

    def row(what, positions, num_labels, value):
        clear = abs(value) > half
        return {
            **{"task": task, "what": what, "positions": positions, "num_labels": num_labels},
            **{"share": 0.4, "difference": value, "low": value - half, "high": value + half},
            **{"p_adjusted": 0.01 if clear else 0.5, "p_equivalence": 0.5},
        }

    differences = [
        row(GAIN, LEARNED, 200, gain),
        row(GAIN, LEARNED, 20, gain + more_with_few),
        row(GAIN, ROTARY, 200, gain - more_with_learned),
        row(MORE_WITH_FEW, LEARNED, None, more_with_few),
        row(MORE_WITH_LEARNED, None, 200, more_with_learned),
    ]
    scores = [
        {"task": task, "arm": arm_name(positions, share), "num_labels": num_labels}
        | {"mean": 0.7 + share / 10, "low": 0.68, "high": 0.76, "values": [0.7, 0.7]}
        for positions in (LEARNED, ROTARY)
        for num_labels in (20, 200)
        for share in (0.0, 0.4)
    ]
    return {"scores": scores, "differences": differences}


@pytest.mark.parametrize(
    ("changes", "verdict", "holds"),
    [
        ({}, REPRODUCED, [True, True, True]),
        ({"gain": 0.01}, UNDECIDED, [None, True, True]),
        ({"gain": -0.05}, NOT_REPRODUCED, [False, True, True]),
        ({"more_with_few": -0.04}, NOT_REPRODUCED, [True, False, True]),
        ({"more_with_learned": 0.0}, UNDECIDED, [True, True, None]),
    ],
)
def test_the_verdict_follows_the_intervals(changes, verdict, holds):
    found = self_pretraining.judge(measured(**changes))
    assert found.verdict == verdict
    assert [each.holds for each in found.conditions] == holds
    assert "with rotary" in found.figure


def test_another_task_is_told_but_not_judged():
    both, other = measured(), measured(gain=-0.05, task="list_ops")
    found = self_pretraining.judge({name: both[name] + other[name] for name in both})
    assert found.verdict == REPRODUCED
    assert any("list_ops, not judged: gain -5.0" in note for note in found.notes)


def test_a_picture_is_drawn():
    figure = Figure()
    CLAIMS["self_pretraining"].plot(measured(), figure)
    (axes,) = figure.axes
    assert len(axes.get_lines()) == 4 and axes.get_title() == "fashion mnist"


def settings(**changes):
    given = {
        **{
            "dataset": "fruit",
            "shares": (0.0, 0.4),
            "labels": (8, 16),
            "epochs": (5, 5),
            "max_tokens": 5,
        },
        **{"mask_ratio": 0.5, "num_layers": 1, "pretrain_learning_rate": 0.01},
        "learning_rates": tuple(
            (rate_key(positions, share), 1e-3 * (1 + share))
            for positions in (LEARNED, ROTARY)
            for share in (0, 1)
        ),
        "input_fields": (("patch_size", 4), ("raster", True)),
    }
    return TaskSettings(**given | changes)


SIZE = Size((settings(),), (LEARNED, ROTARY), 2, 12, 32)


def test_passes_are_shared_out_and_their_sum_is_fixed():
    own = settings(labels=(320, 3200), epochs=(20, 10))
    for share, finetune_epochs, steps in ((0.0, 10, 1), (0.4, 6, 400), (0.6, 4, 600)):
        made = recipe(own, SIZE, LEARNED, share, 3200)
        assert (made.finetune.fixed_epochs, made.steps) == (finetune_epochs, steps)
        # Steps of 32 examples: 400 are 4 passes over 3,200.
        assert share == 0.0 or made.steps * made.batch_size == (10 - finetune_epochs) * 3200
    assert recipe(own, SIZE, LEARNED, 0.4, 320).steps == 80
    assert recipe(own, SIZE, ROTARY, 0.4, 320).learning_rates == (2e-3,)
    assert recipe(own, SIZE, ROTARY, 0.0, 320).learning_rates == (1e-3,)
    learned, rotary = (recipe(own, SIZE, each, 0.4, 320).model for each in (LEARNED, ROTARY))
    assert (learned.max_seq_len, rotary.max_seq_len) == (5, 0)


@pytest.mark.slow
def test_the_measurement_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    data = dataset(make=images)
    for name in ("fm.study.tasks.load", "fm.study.claims.studies.load"):
        monkeypatch.setattr(name, lambda name, **_: data)
    corpora = []
    pretrain = self_pretraining.pretrain

    def recorded(corpus, *args, **kwargs):
        corpora.append(corpus.ids)
        return pretrain(corpus, *args, **kwargs)

    monkeypatch.setattr(self_pretraining, "pretrain", recorded)
    first = self_pretraining.measure_size(SIZE, tmp_path, None, development=False)
    assert json.loads(json.dumps(first)) == first
    assert len(first["scores"]) == 2 * 2 * 2
    # Gains of each kind of positions and data size, and how they differ.
    kinds = [row["what"] for row in first["differences"]]
    assert (kinds.count(GAIN), kinds.count(MORE_WITH_FEW)) == (4, 2)
    assert kinds.count(MORE_WITH_LEARNED) == 2
    by_arm = {(row["arm"], row["num_labels"]): row["mean"] for row in first["scores"]}
    for row in first["differences"]:
        if row["what"] == GAIN:
            own, none = (by_arm[arm_name(row["positions"], s), row["num_labels"]] for s in (0.4, 0))
            assert row["difference"] == pytest.approx(own - none)
    # Each seed pretrains on its own labeled examples alone; few are among all.
    assert [len(ids) for ids in corpora] == [8, 8, 16, 16] * 2
    assert set(corpora[0]) < set(corpora[2]) and set(corpora[0]) != set(corpora[1])
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 2 * 12
    right = np.mean([r["truth"] == r["prediction"] for r in rows if r["arm"] == "learned-40"])
    own = [by_arm["learned-40", count] for count in (8, 16)]
    assert right == pytest.approx(np.mean(own))
    corpora.clear()
    assert self_pretraining.measure_size(SIZE, tmp_path, None, development=False) == first
    assert corpora == []
    self_pretraining.judge(first)
