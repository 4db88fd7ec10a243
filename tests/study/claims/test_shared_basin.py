import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from fm.study.claims import CLAIMS, shared_basin
from fm.study.claims.registry import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from fm.study.claims.shared_basin import CHECKPOINT, ONE_START, OWN_START, PLAIN, SHUFFLED
from tests.study.helpers_study import dataset, images


def group(inputs, start, number, runs, barriers):
    """Runs of 80% accuracy whose lines dip by the barriers, one for each pair."""
    pairs = [[a, b] for a in range(runs) for b in range(a + 1, runs)]
    lines = [[0.8, 0.8 - depth, 0.8] for depth in np.resize(barriers, len(pairs)).tolist()]
    return {
        **{"inputs": inputs, "start": start, "number": number, "pairs": pairs, "lines": lines},
        "accuracies": [0.8] * runs,
    }


def measured(shared, apart):
    """Four checkpoints of mean barriers `shared`, and runs from scratch of barriers `apart`."""
    groups = []
    for inputs in (PLAIN, SHUFFLED):
        groups += [group(inputs, CHECKPOINT, n, 3, [each]) for n, each in enumerate(shared)]
        groups += [group(inputs, start, 0, 5, apart) for start in (ONE_START, OWN_START)]
    return {"groups": groups}


@pytest.mark.parametrize(
    ("shared", "apart", "verdict", "holds"),
    [
        ([0.002, 0.003, 0.002, 0.003], [0.20, 0.22], REPRODUCED, [True, True]),
        ([0.002, 0.030, 0.002, 0.003], [0.20, 0.22], UNDECIDED, [None, True]),
        ([0.030, 0.031, 0.032, 0.033], [0.20, 0.22], NOT_REPRODUCED, [False, True]),
        ([0.002, 0.003, 0.002, 0.003], [0.01, 0.02], NOT_REPRODUCED, [True, False]),
    ],
)
def test_the_verdict_follows_the_intervals(shared, apart, verdict, holds):
    found = shared_basin.judge(measured(shared, apart))
    assert found.verdict == verdict
    assert [each.holds for each in found.conditions] == holds
    assert any("shuffled" in note for note in found.notes)


def test_the_interval_from_checkpoints_is_over_checkpoints_and_not_over_pairs():
    found = shared_basin.barriers(measured([0.01, 0.03, 0.01, 0.03], [0.2]), PLAIN, CHECKPOINT)
    assert found.mean == pytest.approx(0.02)
    # Student's t with 3 degrees of freedom: 3.18 * 0.0115 / 2.
    assert found.high - found.mean == pytest.approx(3.1824 * 0.011547 / 2, rel=1e-3)


def test_a_picture_is_drawn():
    figure = Figure()
    CLAIMS["shared_basin"].plot(measured([0.002] * 4, [0.2]), figure)
    assert [axes.get_title() for axes in figure.axes] == ["plain images", "shuffled images"]


@pytest.fixture
def fruit(monkeypatch):
    data = dataset(make=images, train=60, test=20)
    for name in ("fm.study.tasks.load", "fm.study.claims.studies.load"):
        monkeypatch.setattr(name, lambda name, **_: data)


@pytest.mark.slow
def test_the_measurement_goes_on_where_it_was_stopped(fruit, tmp_path):
    size = shared_basin.Size("fruit", 16, 3, 2, 2, 2, 3, 20, 60)

    def measure():
        return shared_basin.measure_size(size, tmp_path, None, development=False)

    first = measure()
    assert len(first["groups"]) == 2 * (2 + 1 + 1)
    assert json.loads(json.dumps(first)) == first
    runs, pairs = ([len(g[name]) for g in first["groups"][:4]] for name in ("accuracies", "pairs"))
    assert (runs, pairs) == ([2, 2, 3, 3], [1, 1, 3, 3])
    assert all(len(line) == 11 for g in first["groups"] for line in g["lines"])
    # The ends of a line are the runs.
    for each in first["groups"]:
        for (a, b), line in zip(each["pairs"], each["lines"], strict=True):
            assert [line[0], line[-1]] == pytest.approx(
                [each["accuracies"][a], each["accuracies"][b]], abs=1e-6
            )
    kept = sorted((tmp_path / "groups").iterdir())
    kept[0].unlink()
    assert measure() == first
    shared_basin.judge(first)
