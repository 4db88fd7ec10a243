import dataclasses
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.study.claims import CLAIMS, effective_data
from fm.study.claims.effective_data import PRETRAINED, SCRATCH, Size, draw_texts
from fm.study.claims.registry import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from tests.study.helpers_study import split

PARAMETERS = (10_000, 40_000, 160_000)
CHARACTERS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)


def measured(a=0.2, b=0.4, k=300.0, noise=0.0, ossified=0.1, seeds=3):
    """Losses of models from scratch by a power law, and of pretrained ones by the transfer law."""
    random, rows = np.random.default_rng(0), []

    def loss(parameters, characters):
        return 2.0 + 30.0 * characters**-0.3 + 20.0 * parameters**-0.4

    for n, parameters in enumerate(PARAMETERS):
        for d, characters in enumerate(CHARACTERS):
            more = k * characters**a * parameters**b
            last = n == 0 and d == len(CHARACTERS) - 1
            nats = {
                SCRATCH: loss(parameters, characters),
                PRETRAINED: loss(parameters, characters + more) + ossified * last,
            }
            for seed in range(seeds):
                rows += [
                    {"parameters": parameters, "characters": characters, "seed": seed, "arm": arm}
                    | {"nats": value + noise * random.normal()}
                    for arm, value in nats.items()
                ]
    return {"runs": rows}


def test_a_law_that_is_there_is_found():
    found = effective_data.judge(measured(noise=1e-4))
    assert found.verdict == REPRODUCED, found
    assert [each.holds for each in found.conditions] == [True] * 4
    assert found.figure.startswith(("exponents a 0.1", "exponents a 0.2"))
    assert any("characters" in note for note in found.notes)


def test_runs_that_were_still_improving_are_told():
    runs = measured(noise=1e-4)
    for row in runs["runs"]:
        row["stopped_because"] = "steps" if row["characters"] == CHARACTERS[-1] else "flat"
    assert not any("still fell" in note for note in effective_data.judge(measured()).notes)
    assert effective_data.judge(runs).notes[-1] == (
        "18 of 108 runs took all the steps they had, while their loss still fell: 18 at 3,000,000 "
        "characters"
    )


def test_small_models_that_are_not_hurt_decide_against():
    found = effective_data.judge(measured(noise=1e-4, ossified=-0.1))
    assert found.verdict == NOT_REPRODUCED
    assert [each.holds for each in found.conditions] == [True, True, True, False]


def test_transfer_that_falls_with_parameters_decides_against():
    found = effective_data.judge(measured(b=-0.3, k=5e5, noise=1e-4))
    assert found.conditions[1].holds is False and found.verdict == NOT_REPRODUCED


def test_noise_leaves_it_undecided():
    found = effective_data.judge(measured(noise=0.08))
    assert found.verdict in (UNDECIDED, NOT_REPRODUCED)
    assert found.conditions[0].holds is None


def test_nothing_transferred_is_undetermined():
    found = effective_data.judge(measured(k=-0.2))
    assert found.conditions[0].holds is None and "not determined" in found.figure
    one_seed = effective_data.judge(measured(seeds=1))
    assert one_seed.conditions[3].holds is None


def test_a_picture_is_drawn():
    for each in (measured(), measured(k=-0.2)):
        figure = Figure()
        CLAIMS["effective_data"].plot(each, figure)
        assert len(figure.axes) == 2
        FigureCanvasAgg(figure).draw()


def test_fewer_characters_are_the_beginning_of_more():
    texts = split([f"{n:03d} " * 25 for n in range(30)], None)
    few, more = (draw_texts(texts, count, seed=1) for count in (250, 1000))
    assert "".join(more).startswith("".join(few)) and len("".join(few)) == 250
    assert "".join(draw_texts(texts, 250, seed=2)) != "".join(few)
    with pytest.raises(UserError, match="3,001 characters are asked for, 3,000 are there"):
        draw_texts(texts, 3001, seed=0)


@pytest.fixture
def corpora(monkeypatch):
    """Reviews and sources of a few words."""

    def data(name, words, count):
        random = np.random.default_rng(len(name))
        parts = [
            split([" ".join(random.choice(words, 60)) + f" {n}" for n in range(size)], None)
            for size in (count, count)
        ]
        return Dataset(name, "text", (), *parts, {"split": "by hash"})

    known = {
        "film_reviews": data("film_reviews", ["good", "bad", "film", "plot"], 80),
        "python_sources": data("python_sources", ["def", "return", "self", "import"], 80),
    }
    monkeypatch.setattr(effective_data, "load", known.__getitem__)


@pytest.mark.slow
def test_the_measurement_goes_on_where_it_was_stopped(corpora, tmp_path, monkeypatch):
    size = Size(((1, 32),), (2_000, 8_000), 2, 6, 30, 32, None, 10_000)
    first = effective_data.measure_size(size, tmp_path, development=False)
    assert json.loads(json.dumps(first)) == first
    assert len(first["runs"]) == 2 * 2 * 2
    for row in first["runs"]:
        assert np.isfinite(row["nats"]) and 0 < row["step"] <= row["steps"] <= 30
        assert row["parameters"] == 12 * 32**2
    found = effective_data.losses(first)
    assert found.scratch_NDS.shape == (1, 2, 2)
    # Pretrained models start elsewhere, and seeds differ.
    values = [row["nats"] for row in first["runs"]]
    assert len(set(values)) == len(values)
    (tmp_path / "cells" / f"{_name(first['runs'][3])}.json").unlink()
    calls = []
    train = effective_data._train
    monkeypatch.setattr(
        effective_data, "_train", lambda *args: calls.append(args[2].name) or train(*args)
    )
    assert _without_seconds(effective_data.measure_size(size, tmp_path, development=False)) == (
        _without_seconds(first)
    )
    assert calls == [_name(first["runs"][3])]
    assert not any((tmp_path / "runs").iterdir())
    effective_data.judge(first)


def _name(row):
    names = (field.name for field in dataclasses.fields(effective_data.Run))
    return effective_data.Run(**{name: row[name] for name in names}).name


def _without_seconds(measured):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in measured["runs"]]
