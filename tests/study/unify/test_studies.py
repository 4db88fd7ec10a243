"""Other models to start from: what each is fed, and the three studies on tiny tasks."""

from fractions import Fraction

import numpy as np
import pytest
from fm.study.multitask_runner import run_multitask

from fm.errors import UserError
from fm.study.ablations import (
    FACTORS,
    SHARES,
    batch_shares,
    reweight_sources,
    subsample_sources,
    variant_row,
)
from fm.study.cells import Cell
from fm.study.joint_pretraining import Source
from tests.study.problems import dataset, images, loads, split, texts
from tests.study.unify.problems import datasets, study


@pytest.fixture
def corpora():
    return [
        Source("fruit", "text", split(texts(64, 0)[0], None), 2.0),
        Source("halves", "image", split(images(128, 0)[0], None), 1.0),
    ]


def test_smaller_parts_lie_in_larger_ones(corpora):
    sixteenth, quarter = (subsample_sources(corpora, Fraction(1, n)) for n in (16, 4))
    assert [len(each.corpus) for each in sixteenth] == [4, 8]
    assert [len(each.corpus) for each in quarter] == [16, 32]
    for small, large, whole in zip(sixteenth, quarter, corpora, strict=True):
        assert set(small.corpus.ids) < set(large.corpus.ids) < set(whole.corpus.ids)
        assert small.weight == whole.weight
    # One to learn from and one to validate on there always is.
    assert [len(each.corpus) for each in subsample_sources(corpora, Fraction(1, 1000))] == [2, 2]


def test_the_weight_of_one_format_alone_changes(corpora):
    more = reweight_sources(corpora, "text", 4.0)
    assert [each.weight for each in more] == [8.0, 1.0]
    assert batch_shares(corpora, 12) == {"text": 8 / 12, "image": 4 / 12}
    assert batch_shares(more, 9) == {"text": 8 / 9, "image": 1 / 9}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"studies": ("matrices",)}, "--ablations: 'matrices' is not known; accepted are matrix"),
        ({"studies": ("matrix", "matrix")}, "none of them twice"),
        ({"studies": ("matrix",), "arms": ("scratch", "in_domain")}, "takes the arm joint"),
    ],
)
def test_bad_studies_are_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        study(**changes)


def test_a_run_without_studies_is_what_it_was_before_there_were_any():
    assert "studies" not in study().to_dict()
    assert study(studies=("matrix",)).to_dict()["studies"] == ["matrix"]
    assert study(studies=("matrix",)).config_hash() != study().config_hash()


class Judged:
    """As much of a task as is scored."""

    name, modality, kind = "fruit", "text", "class"
    test = dataset("fruit", test=12).test


def test_a_row_pairs_seeds():
    truth = np.asarray(Judged.test.labels)
    right, wrong = np.stack([truth] * 3), np.stack([1 - truth] * 3)
    right[0, :3] = 1 - right[0, :3]
    cells = [
        Cell("fruit", arm, 8, {"adapt": "full"}, [], guessed, 5.0, 1.0)
        for arm, guessed in (("only_text", right), ("fresh", wrong))
    ]
    made = variant_row(Judged, *cells)
    assert made["values"] == [0.75, 1.0, 1.0] and made["value"] == pytest.approx(11 / 12)
    assert made["difference"] == pytest.approx(11 / 12) and made["low"] < 11 / 12 < made["high"]
    assert variant_row(Judged, cells[1], cells[1])["difference"] is None


@pytest.mark.slow
def test_the_studies_of_two_tasks(tmp_path, monkeypatch):
    chosen = datasets()[:2]
    loads(monkeypatch, *chosen)
    given = study(arms=("scratch", "joint"), studies=("matrix", "mixture", "amount"))
    given = study(
        arms=given.arms, studies=given.ablations, tasks=given.tasks[:2], weights=(("fruit", 2.0),)
    )
    found = run_multitask(given, tmp_path)
    places = {(r["task"], r["source"]) for r in found["matrix"]}
    sources = ("nothing", "text", "image", "all")
    assert places == {(task, source) for task in ("fruit", "halves") for source in sources}
    joint = {(c["task"], c["seed"]): c["value"] for c in found["cells"] if c["arm"] == "joint"}
    for r in found["matrix"]:
        assert (r["difference"] is None) == (r["source"] == "nothing")
        if r["source"] == "all":
            assert r["values"] == [joint[r["task"], seed] for seed in range(2)]
    assert {(r["format"], r["factor"]) for r in found["mixture"]} == {
        (None, 1.0), *((name, factor) for name in ("text", "image") for factor in FACTORS)
    }  # fmt: skip
    assert {r["share"] for r in found["amount"]} == {0.0, *map(float, SHARES), 1.0}
    assert all(np.isfinite(r["value"]) for key in given.ablations for r in found[key])
