"""Other models to start from: what each is fed, and the three studies on tiny tasks."""

import dataclasses
import json
import types
from fractions import Fraction

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from fm.errors import UserError
from fm.evaluation.design import Design
from fm.study import ablations, analysis
from fm.study.ablations import (
    Ablation,
    Variant,
    modality_batch_shares,
    reweight_sources,
    subsample_sources,
    variant_row,
    with_field,
)
from fm.study.built_arm import InitialModel
from fm.study.cells import Cell
from fm.study.comparisons import difference_rows, with_differences
from fm.study.config import StudyConfig
from fm.study.joint_pretraining import Source
from fm.study.multitask import MultitaskStudy, run_multitask
from fm.study.task_types import TASK_TYPES
from tests.study.helpers_multitask import datasets, study
from tests.study.helpers_study import config, dataset, images, loads, split, texts


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
    assert modality_batch_shares(corpora, 12) == {"text": 8 / 12, "image": 4 / 12}
    assert modality_batch_shares(more, 9) == {"text": 8 / 9, "image": 1 / 9}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ablations": ("matrices",)}, "--ablations: 'matrices' must be one of transfer_matrix"),
        ({"ablations": ("mixture", "mixture")}, "none of them twice"),
        ({"ablations": ("mixture",), "arms": ("scratch", "in_domain")}, "needs the joint arm"),
    ],
)
def test_bad_studies_are_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        MultitaskStudy(study(**changes))


class Judged:
    """As much of a task as is scored."""

    name, modality, task_type = "fruit", "text", TASK_TYPES["classification"]
    test = dataset("fruit", test=12).test


def test_a_row_has_the_scores_of_every_seed():
    truth = np.asarray(Judged.test.labels)
    right, wrong = np.stack([truth] * 3), np.stack([1 - truth] * 3)
    right[0, :3] = 1 - right[0, :3]
    cells = [
        Cell(
            *("fruit", arm, 8, [{"method": "full"}] * 3, [[]] * 3, guessed, None),
            *([5.0] * 3, 1.0, None, 0.0),
        )
        for arm, guessed in (("only_text", right), ("fresh", wrong))
    ]
    made = variant_row(Judged, cells[0])
    assert made["values"] == [0.75, 1.0, 1.0] and made["value"] == pytest.approx(11 / 12)
    assert made["items"] == 12 and not {"difference", "p_adjusted"} & made.keys()


@pytest.mark.slow
def test_model_ablations_are_adjusted_like_comparisons(monkeypatch, tmp_path):
    random, truth = np.random.default_rng(0), np.asarray(Judged.test.labels)
    skills = {"fresh": 0.5, "same": 0.5, "more": 0.7, "most": 0.8}

    def run_cells(task, arms, folder):
        (name,) = arms
        cells = []
        for num_labels in (8, 16):
            guessed = np.where(random.random((4, 12)) < skills[name], truth, 1 - truth)
            hparams = [{"method": "full"}] * 4
            row = "fruit", name, num_labels, hparams, [[]] * 4, guessed, None
            cells.append(Cell(*row, [5.0] * 4, 1.0, None, 0.0))
        found.update({(name, cell.num_labels): analysis.cell_scores(cell, task) for cell in cells})
        return cells

    found = {}
    monkeypatch.setattr(ablations, "run_cells", run_cells)
    variants = {name: Variant({"kept": name}, InitialModel(None)) for name in skills}
    context = types.SimpleNamespace(
        tasks=[Judged], build_head=lambda task, model: None, out_dir=tmp_path
    )
    rows = ablations.run_ablation(Ablation("mine", "Mine", lambda _: variants), context)
    assert [(row["kept"], row["num_labels"]) for row in rows] == list(found)
    expected = difference_rows(
        [
            ({"task": "fruit"}, found[name, n] - found["fresh", n], Design())
            for name, n in found
            if name != "fresh"
        ]
    )
    for row, comparison in zip(rows[2:], expected, strict=True):
        assert comparison.items() <= row.items()
    assert rows[0].keys() == rows[-1].keys() - {"primary"} and rows[0]["p_adjusted"] is None
    assert rows[0]["items"] == rows[-1]["items"] == 12
    # Variants share the baseline, seeds and items: Holm's correction would ask for more.
    p = [row["p"] for row in rows[2:]]
    holm = multipletests(p, method="holm")[1]
    adjusted = np.array([row["p_adjusted"] for row in rows[2:]])
    assert (adjusted >= p).all() and (adjusted <= holm + 0.02).all() and adjusted.min() < holm.min()


def test_a_variant_equal_to_its_baseline_has_plain_numbers():
    rows = with_differences([{"task": "x"}, {"task": "x"}], [(np.zeros((3, 5)), Design()), None])
    assert rows[0]["p_adjusted"] == 1 and rows[1]["p_adjusted"] is None
    json.dumps(rows, allow_nan=False)
    assert with_differences([], []) == []


@pytest.mark.slow
def test_the_studies_of_two_tasks(tmp_path, monkeypatch):
    chosen = datasets()[:2]
    loads(monkeypatch, *chosen)
    monkeypatch.setattr(ablations, "WEIGHT_FACTORS", (4.0,))
    monkeypatch.setattr(ablations, "DATA_SHARES", (Fraction(1, 4),))
    given = study(
        arms=("scratch", "joint"), ablations=("transfer_matrix", "mixture", "data_amount")
    )
    given = study(
        arms=given.arms,
        ablations=given.ablations,
        tasks=given.tasks[:2],
        weights=(("fruit", 2.0),),
        joint=dataclasses.replace(given.joint, batch_size=20),
    )
    found = run_multitask(given, tmp_path)
    places = {(r["task"], r["source"]) for r in found["transfer_matrix"]}
    sources = ("nothing", "text", "image", "all")
    assert places == {(task, source) for task in ("fruit", "halves") for source in sources}
    joint = {(c["task"], c["seed"]): c["value"] for c in found["cells"] if c["arm"] == "joint"}
    for r in found["transfer_matrix"]:
        assert (r["difference"] is None) == (r["source"] == "nothing")
        if r["source"] == "all":
            assert r["values"] == [joint[r["task"], seed] for seed in range(2)]
    assert {(r["changed_modality"], r["factor"]) for r in found["mixture"]} == {
        (None, 1.0), ("text", 4.0), ("image", 4.0)
    }  # fmt: skip
    assert {r["share"] for r in found["data_amount"]} == {0.0, 0.25, 1.0}
    assert all(np.isfinite(r["value"]) for key in given.ablations for r in found[key])


def test_fields_of_recipe_task_and_study_can_be_set():
    base = StudyConfig(tasks=(config(),))
    recipe = with_field(base, "objective.mask_ratio", "0.5").tasks[0].recipe
    assert recipe.objective.mask_ratio == 0.5
    assert with_field(base, "max_corpus_items", "7").tasks[0].max_corpus_items == 7
    assert with_field(base, "pretrain_seeds", "1").pretrain_seeds == 1
    with pytest.raises(UserError, match="--field=nothing: no 'nothing' in a recipe or study"):
        with_field(base, "nothing", "1")
