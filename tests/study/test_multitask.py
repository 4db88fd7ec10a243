"""The whole study on tiny tasks: every arm of every kind, resumed to the same numbers."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fm.data import decontamination
from fm.errors import UserError
from fm.study import run_dir
from fm.study.analysis import duplicate_count_row
from fm.study.arms import arm_names
from fm.study.multitask import MultitaskStudy, concatenate_inputs, run_multitask
from fm.study.stages import StagePlan
from fm.study.task_registry import task_spec_or_default
from tests.independent.recompute import recompute
from tests.study.helpers_multitask import datasets, study
from tests.study.helpers_study import config as task_config
from tests.study.helpers_study import dataset, images, loads, recipe, split, texts

METRICS = {"fruit": "accuracy", "halves": "accuracy", "names": "entity F1", "titles": "chrF"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("unify")
    with pytest.MonkeyPatch.context() as patch:
        loads(patch, *datasets())
        results = run_multitask(study(), out)
        run_dir.write_results(results | {"headline": ""}, out)
    return results, out


@pytest.mark.slow
class TestStudy:
    def test_every_arm_of_every_task_has_its_cells(self, finished):
        cells = finished[0]["cells"]
        places = {(row["task"], row["arm"], row["num_labels"], row["seed"]) for row in cells}
        assert places == {
            (task, arm, 8, seed)
            for task in METRICS
            for arm in arm_names("multitask")
            for seed in range(2)
        }
        assert {row["task"]: row["metric"] for row in cells} == METRICS
        assert all(0 <= row["value"] <= 1 for row in cells)

    def test_what_was_pretrained_is_charged(self, finished):
        cells = finished[0]["cells"]
        cost = {(row["task"], row["arm"]): row["pretrain_flops"] for row in cells}
        assert cost["fruit", "scratch"] == cost["fruit", "classical"] == 0
        assert cost["fruit", "in_domain"] == cost["names", "in_domain"] > 0
        assert cost["fruit", "joint"] == cost["halves", "instruction_tuned"]
        of_both = cost["fruit", "in_domain"] + cost["halves", "in_domain"]
        assert cost["fruit", "joint"] == pytest.approx(of_both, rel=0.05)

    def test_what_the_claim_asks_is_compared(self, finished):
        pairs = {(row["arm"], row["baseline"]) for row in finished[0]["comparisons"]}
        assert {
            ("joint", "scratch"),
            ("joint", "in_domain"),
            ("instruction_tuned", "joint"),
        } <= pairs

    def test_instructions_are_dropped_and_swapped(self, finished):
        rows = finished[0]["instruction_following"]
        found = {(row["task"], row["condition"]) for row in rows}
        assert ("halves", "dropped") in found and ("fruit", "swapped") in found
        assert ("halves", "swapped") not in found  # there is no other task of pictures

    def test_each_way_is_billed(self, finished):
        results = finished[0]
        last = {
            row["arm"]: row for row in results["amortized_cost"] if row["num_tasks"] == len(METRICS)
        }
        assert set(last) == {"scratch", "in_domain", "joint", "instruction_tuned"}
        assert all(row[unit] > 0 for row in last.values() for unit in ("flops", "parameters"))
        paid = next(row for row in results["compute_cost"] if row["arm"] == "joint")[
            "pretrain_flops"
        ]
        cells = [c for c in results["cells"] if (c["arm"], c["seed"]) == ("joint", 0)]
        spent = paid + sum(cell["train_flops"] for cell in cells)
        assert last["joint"]["flops"] == pytest.approx(spent)
        # Of four networks each has its blocks and streams once more.
        assert last["scratch"]["parameters"] > 2 * last["instruction_tuned"]["parameters"]

    def test_each_format_has_its_curves(self, finished):
        curves = finished[0]["curves"]
        places = {(row["task"], row["arm"], row["unit"]) for row in curves}
        assert places == {
            (name, arm, unit)
            for name, unit in (("text", "bits per byte"), ("image", "bits per dimension"))
            for arm in ("in_domain", "joint")
        }
        for name in ("text", "image"):
            seen = {row["arm"]: row["tokens"][-1] for row in curves if row["task"] == name}
            assert seen["joint"] == pytest.approx(seen["in_domain"], rel=0.1)
        assert sum(row["share"] for row in curves if row["arm"] == "joint") == pytest.approx(1)

    def test_figures_can_be_computed_again(self, finished):
        results, out = finished
        with (out / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        own = [
            row
            for row in rows
            if (row["task"], row["arm"], row["seed"]) == ("names", "in_domain", "0")
        ]
        right, predicted = np.array([row["prediction"].split("/") for row in own], int).sum(axis=0)
        below = predicted + sum(int(row["truth"]) for row in own)
        cell = next(
            row
            for row in results["cells"]
            if (row["task"], row["arm"], row["seed"]) == ("names", "in_domain", 0)
        )
        assert cell["value"] == pytest.approx(2 * right / below if below else 0.0)

    def test_the_independent_script_agrees_for_every_type_of_task(self, finished):
        results, out = finished
        problems, summary = recompute(out, draws=4_000)
        assert problems == []
        assert f"{len(results['comparisons'])} comparisons" in summary and results["comparisons"]

    def test_the_independent_script_notices_a_changed_prediction(self, finished, tmp_path):
        _, out = finished
        shutil.copy(out / "results.json", tmp_path)
        table = pd.read_csv(out / "predictions.csv", dtype=str)
        own = (table["task"] == "fruit") & (table["arm"] == "scratch")
        changed = table.index[own][0]
        table.loc[changed, "prediction"] = "1" if table.loc[changed, "prediction"] == "0" else "0"
        table.to_csv(tmp_path / "predictions.csv.gz", index=False)
        assert recompute(tmp_path, draws=4_000)[0]

    def test_lost_cells_and_models_are_made_again(self, finished, tmp_path, monkeypatch):
        loads(monkeypatch, *datasets())
        results, out = finished
        again = tmp_path / "again"
        shutil.copytree(out, again)
        (again / "results.json").unlink()
        (again / "cells" / "fruit-instruction_tuned-8.json").unlink()
        shutil.rmtree(again / "pretrained" / "joint")
        made = run_multitask(study(), again)

        def plain(rows):
            untimed = [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
            return json.dumps(untimed)

        for key in ("cells", "comparisons", "instruction_following"):
            assert plain(made[key]) == plain(results[key])


def test_each_corpus_is_searched_once_for_each_test_split(monkeypatch):
    searched = []

    def find(pretrain, test, modality):
        searched.append((id(pretrain.read), test.ids))
        return decontamination.find_duplicates(pretrain, test, modality)

    for module in ("tasks", "multitask"):
        monkeypatch.setattr(f"fm.study.{module}.find_duplicates", find)
    data = datasets()
    loads(monkeypatch, *data)
    made = MultitaskStudy(study())
    made.load()
    pairs = [(read, item) for read, ids in searched for item in set(ids)]
    assert len(pairs) == len(set(pairs))
    texts_of = [each for each in data if each.modality == "text"]
    for each in data:
        others = sum(len(other.test) for other in texts_of if other is not each)
        row = duplicate_count_row(each.name, "joint", *made._searches[each.name])
        assert row["checked"] == len(each.test) + (others if each.modality == "text" else 0)


@pytest.mark.parametrize(
    ("names", "arms", "reason"),
    [
        (["halves"], ("joint", "instruction_tuned"), "--arms: instruction_tuned reads instr"),
        (["halves", "small"], ("scratch", "joint"), "sources of image must have one shape"),
        (["digits", "fruit"], ("joint", "instruction_tuned"), "digits has 2 classes, but its"),
    ],
)
def test_what_data_and_config_decide_is_refused_before_any_step(
    monkeypatch, tmp_path, names, arms, reason
):
    def smaller(count, seed):
        return images(count, seed, side=4)

    small = dataset("small", images)
    small = dataclasses.replace(
        small,
        train=split(*smaller(40, 0)),
        test=split(*smaller(12, 1)),
        info=small.info | {"shape": [4, 4, 1]},
    )
    data = [dataset("fruit", texts), dataset("halves", images), dataset("digits", images), small]
    loads(monkeypatch, *data)
    tasks = tuple(task_config(name, label_budgets=(8,), recipe=recipe()) for name in names)
    with pytest.raises(UserError, match=reason):
        run_multitask(study(tasks=tasks, weights=(), arms=arms), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stages_are_planned_once_for_each_model(monkeypatch, tmp_path):
    loads(monkeypatch, *datasets())
    made = MultitaskStudy(study(arms=("scratch", "in_domain", "joint"), ablations=("mixture",)))
    made.load()
    plan = StagePlan(made.plan_stages(made.build_context(tmp_path)))
    assert [stage.title for stage in plan.stages] == [
        "pretraining on text alone",
        "pretraining on all modalities together",
        "fruit: adapting 3 arms at 8 labels",
        "fruit: scores, intervals and samples",
        "pretraining on image alone",
        "halves: adapting 3 arms at 8 labels",
        "halves: scores, intervals and samples",
        "names: adapting 3 arms at 8 labels",
        "names: scores, intervals and samples",
        "titles: adapting 3 arms at 8 labels",
        "titles: scores, intervals and samples",
        "ablation mixture",
        "statistics of the whole study",
    ]


def test_joined_splits_are_read_in_any_order():
    first, second = texts(5, 0)[0], texts(3, 1)[0]
    both = concatenate_inputs([split(first, None), split(second, None)])
    assert both.texts([6, 0, 5, 4]) == [second[1], first[0], second[0], first[4]]
    pictures = images(4, 0)[0], images(2, 1)[0]
    whole = concatenate_inputs([split(each, None) for each in pictures]).images([5, 1])
    np.testing.assert_array_equal(whole, [pictures[1][1], pictures[0][1]])


def test_unregistered_task_has_generic_phrasings():
    instruction = task_spec_or_default("my_mail").instruction(("spam", "no_spam"))
    assert instruction.answers == ("spam", "no spam")
    assert "my mail" in instruction.held_out_phrasing
    with pytest.raises(UserError, match="digits has 3 classes, but its task spec 10 answers"):
        task_spec_or_default("digits").instruction(("a", "b", "c"))
