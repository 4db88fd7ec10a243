"""Ablations of whole studies: what their variants change, and their rows on tiny tasks."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import ablate, cli
from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.evaluation.design import Design
from fm.evaluation.statistics import paired_difference
from fm.report import pages
from fm.report.parsing import parse
from fm.study import analysis, config_ablations, presets
from fm.study.ablations import ABLATIONS, Variant
from fm.study.comparisons import difference_rows
from fm.study.config import StudyConfig
from fm.study.config_ablations import reuse_rival_cells, scaled_width
from fm.study.runner import task_row
from fm.study.tasks import prepare_task
from fm.study.transfer import TRANSFERS
from tests.study.helpers_study import MODEL, config, dataset, guessed, images, loads, recipe, split

WIDE = dataclasses.replace(MODEL, num_layers=2, d_model=16, num_heads=2, num_kv_heads=2)


def study(**changes):
    own = {"model": WIDE, "steps": 16} | changes.pop("recipe", {})
    given = {"recipe": recipe("image", **own), "upstream_datasets": ("tweets", "docs")} | changes
    return StudyConfig(tasks=(config(**given),), arms=("scratch", "in_domain"))


def variants(name, base=None):
    return ABLATIONS[name].variants(base or study())


def recipes(name, base=None):
    return {key: each.config.tasks[0].recipe for key, each in variants(name, base).items()}


def test_checkpoints_of_one_run():
    found = recipes("pretraining_progress", study(recipe={"steps": 800}))
    assert [each.transfer_step for each in found.values()] == [800, 400, 200, 100, 50]
    # One run serves them all.
    assert len({json.dumps(each.pretraining_fields()) for each in found.values()}) == 1
    with pytest.raises(UserError, match="takes 16 steps or more"):
        variants("pretraining_progress", study(recipe={"steps": 15}))


@pytest.mark.parametrize("name", ["pretraining_progress", "scaling"])
def test_every_recipe_of_variants_of_fixed_lengths_stops_at_its_steps(name, capsys):
    open_ended = {"early_stopping_patience": 3, "max_pretrain_minutes": 10.0}
    other = recipe("image", name="other", model=WIDE, steps=32, **open_ended)
    base = study(recipe={"early_stopping_patience": 2}, other_recipes=(other,))
    found = variants(name, base)
    for each in found.values():
        task = each.config.tasks[0]
        for own in (task.recipe, *task.other_recipes):
            assert own.early_stopping_patience is own.max_pretrain_minutes is None
    # The other recipe is varied, too.
    others = [each.config.tasks[0].other_recipes[0] for each in found.values()]
    lengths = {each.transfer_step or each.steps for each in others}
    assert lengths == ({2, 8, 32} if name == "scaling" else {2, 4, 8, 16, 32})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "16 steps or a share of them, without early_stopping_p" in lines[0]
    assert lines[1].endswith("without early_stopping_patience and max_pretrain_minutes")
    # What varies something else keeps the way of stopping.
    assert recipes("what_transfers", base)["all"].early_stopping_patience == 2
    variants(name)
    assert not capsys.readouterr().err


def test_parts_of_a_checkpoint(capsys):
    assert list(recipes("what_transfers")) == list(TRANSFERS)
    shallow = study(recipe={"model": MODEL})
    assert set(TRANSFERS) - set(recipes("what_transfers", shallow)) == {"top_reinitialized"}
    assert "skipping top_reinitialized: it needs 2 or more layers" in capsys.readouterr().err


def test_upstream_data_from_own_to_far():
    found = {key: each.config.tasks[0] for key, each in variants("upstream").items()}
    assert {
        key: (t.out_of_domain_dataset, t.out_of_domain_size_of) for key, t in found.items()
    } == {
        "own data": ("fruit", None),
        "own data, as much as far": ("fruit", "docs"),
        "near": ("tweets", None),
        "far": ("docs", None),
    }
    with pytest.raises(UserError, match="fruit needs two or more different data sets"):
        variants("upstream", study(upstream_datasets=("docs",)))


def test_widths_and_lengths():
    found = recipes("scaling")
    sizes = {(each.model.d_model, each.steps) for each in found.values()}
    assert sizes == {(d, steps) for d in (8, 16, 32) for steps in (1, 4, 16)}
    assert {each.model.head_dim for each in found.values()} == {8}
    first = next(iter(found.values()))
    assert (first.model, first.steps) == (WIDE, 16)
    with pytest.raises(UserError, match="model of 1 heads and 1 key/value heads cannot be made"):
        scaled_width(MODEL, 0.5)


def test_the_own_corpus_is_cut_to_the_size_of_another(monkeypatch):
    own, far = dataset("fruit"), dataset("docs", train=20)
    loads(monkeypatch, own, far)
    changed = {"out_of_domain_dataset": "fruit", "out_of_domain_size_of": "docs"}
    cut, whole = (
        prepare_task(config("fruit", **each), ("in_domain", "out_of_domain"), 1).corpora
        for each in (changed, changed | {"out_of_domain_size_of": None})
    )
    characters = [
        sum(map(len, part.texts(range(len(part)))))
        for part in (cut["out_of_domain"], far.train, own.train)
    ]
    assert 0.8 * characters[1] < characters[0] <= characters[1] < characters[2]
    assert set(cut["out_of_domain"].ids) < set(own.train.ids)
    assert whole["out_of_domain"].ids == whole["in_domain"].ids == own.train.ids


def test_only_cells_that_pretraining_does_not_affect_are_reused(tmp_path):
    (tmp_path / "a" / "cells").mkdir(parents=True)
    for arm in ("scratch", "in_domain"):
        (tmp_path / "a" / "cells" / f"fruit-{arm}-8.json").write_text(arm)
    reuse_rival_cells(study(), tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "b" / "cells").iterdir()] == ["fruit-scratch-8.json"]


@pytest.mark.parametrize("checkpoints", [1, 4])
def test_rows_are_adjusted_like_comparisons(monkeypatch, tmp_path, checkpoints):
    loads(monkeypatch, dataset(test=60))
    task = prepare_task(config(), (), 8)
    variants, studies, folders, expected = {}, {}, {}, []
    for n, name in enumerate(("all", "layers", "shuffled")):
        skills = {"scratch": 0.6, "in_domain": 0.75 - 0.05 * n}
        cells = guessed(task, skills, seeds=8, seed=n)
        folders[name] = tmp_path / name
        folders[name].mkdir()
        scored = analysis.task_scores(cells, task, {})
        analysis.write_predictions([(task, cells, scored)], folders[name] / "predictions.csv")
        studies[name] = {
            "tasks": [task_row(task)],
            "cells": analysis.cell_rows(cells, task, {}),
            "pretrained": [],
            "config": {"pretrain_seeds": checkpoints},
        }
        variants[name] = Variant({"kept": name})
        design = Design([0, 1, 2, 3] * 2) if checkpoints == 4 else Design()
        expected += [
            (
                {"task": "fruit"},
                scored.scores["in_domain", labels] - scored.scores["scratch", labels],
                design,
            )
            for labels in (8, 16)
        ]
    sections = config_ablations.ablation_sections(
        ABLATIONS["what_transfers"], variants, studies, folders
    )
    rows = sections["what_transfers"]
    assert [row["variant"] for row in rows] == [name for name in variants for _ in range(2)]
    for row, comparison in zip(rows, difference_rows(expected), strict=True):
        assert row["checkpoints"] == checkpoints
        for field in ("difference", "low", "p", "p_adjusted"):
            assert row[field] == pytest.approx(comparison[field])


NAMES = {
    "pretraining_progress": {1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0},
    "what_transfers": set(TRANSFERS),
    "upstream": {"own data", "own data, as much as far", "near", "far"},
    "scaling": {"width ×1", "width ×2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ablations_of_a_tiny_study(name, tmp_path, monkeypatch):
    made = dataset("halves", images, train=60, test=20)
    noise = np.random.default_rng(2).integers(0, 255, (30, 8, 8, 1)).astype(np.uint8)
    others = [
        Dataset(each, "image", (), split(noise + n, None), split(noise, None), made.info)
        for n, each in enumerate(("tweets", "docs"))
    ]
    loads(monkeypatch, made, *others)
    monkeypatch.setattr("experiments.study_flags.load", lambda *_, **__: made)
    own = recipe("image", model=WIDE, steps=16)
    monkeypatch.setattr(presets, "modality_recipe", lambda *_: own)
    monkeypatch.setattr(config_ablations, "SCALING_WIDTHS", (1.0, 2.0))
    monkeypatch.setattr(config_ablations, "SCALING_STEPS", (1 / 4, 1.0))
    flags = ["--tasks=halves", "--label_budgets=8,16", "--seeds=2", "--adapt=probe"]
    if name == "upstream":
        flags.append("--out_of_domain_dataset=tweets,docs")
    code = cli.call(
        "ablate",
        ablate.__doc__,
        ablate.define,
        ablate.main,
        [*flags, f"--ablation={name}", f"--out={tmp_path}"],
    )
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results[name]
    field = ABLATIONS[name].figure["field"]
    assert {row[field] for row in rows} == NAMES[name]
    runs = 4 if name in ("scaling", "upstream") else 1
    assert len(list((tmp_path / "pretrained").iterdir())) == runs
    for row in rows:
        assert row["low"] <= row["difference"] <= row["high"] and row["p_adjusted"] >= row["p"]
        assert row["baseline"] == "scratch" and row["tokens"] > 0 and row["parameters"] > 0
    # A row is what the variant's own study says.
    folder = tmp_path / f"{name}={rows[-1]['variant']}".replace("w/", "w_")
    study_results = json.loads((folder / "results.json").read_text())
    scores = analysis.read_scores(folder / "predictions.csv", study_results)
    arm = ABLATIONS[name].arm
    expected = paired_difference(scores["halves", arm, 16], scores["halves", "scratch", 16])
    assert rows[-1]["difference"] == pytest.approx(expected.difference)
    figures = [
        figure
        for figure in pages.render_figures(parse(results))
        if figure.section == f"ablation {name}"
    ]
    assert len(figures) == 1
    if name == "scaling":
        (fit,) = results["scaling_fits"]
        assert fit["points"] == 8 and fit["r2"] <= 1 and len(fit["terms"]) == 3
        assert "exponent of tokens" in (tmp_path / "report.html").read_text()
