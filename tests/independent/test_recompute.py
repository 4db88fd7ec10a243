"""The independent script agrees with `fm`, and notices a single changed prediction."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fm.evaluation.label_sets import f1_terms
from fm.evaluation.rank_correlation import rank_correlation_scores
from fm.evaluation.statistics import linearized_ratio
from fm.study.comparisons import TaskScores, comparison_rows
from tests.independent.recompute import main, recompute

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("recompute.py")
KEPT = sorted(path.parent for path in (ROOT / "experiments" / "results").glob("*/predictions.csv*"))
BUDGETS, SEEDS, ITEMS, DRAWS = (8, 16), 8, 60, 4_000
# Chance of a right answer: two arms differ clearly, one hardly, one not at all.
SKILLS = {"scratch": 0.5, "classical": 0.5, "published": 0.58, "in_domain": 0.75}
PAIRS = (("in_domain", "classical"), ("published", "scratch"), ("classical", "scratch"))
METRICS = {
    "fruit": "accuracy",
    "names": "entity F1",
    "titles": "chrF",
    "stars": "rank correlation",
    "colors": "micro F1",
}
GROUPS = np.minimum(np.arange(ITEMS) % 14, 11)  # of unequal sizes
CHECKPOINTS = np.arange(SEEDS) // 2


def draw(metric, skill, random):
    """Truths [N], and predictions [S, N] as texts with their scores [S, N]."""
    skill_S1 = skill + random.normal(0, 0.05, (SEEDS, 1))
    hard_N = random.normal(0, 0.1, ITEMS)
    if metric == "chrF":
        scores = np.clip(random.normal(skill_S1 + hard_N, 0.2), 0, 1).round(6)
        return ["1"] * ITEMS, scores.astype(str), scores
    if metric == "accuracy":
        truth = np.arange(ITEMS) % 3
        right = random.random((SEEDS, ITEMS)) < skill_S1 + hard_N
        return truth.astype(str), np.where(right, truth, truth + 1).astype(str), right.astype(float)
    if metric == "rank correlation":
        truth = np.round(random.normal(0, 2, ITEMS))
        noise = random.normal(0, 1, (SEEDS, ITEMS))
        numbers = np.round(truth + noise / np.maximum(skill_S1, 0.05), 1)
        texts = [[repr(float(each)) for each in row] for row in numbers]
        truths = [repr(float(each)) for each in truth]
        return truths, np.array(texts), rank_correlation_scores(numbers, truth)
    if metric == "micro F1":
        gold = random.random((ITEMS, 3)) < 0.4
        own = np.where(random.random((SEEDS, ITEMS, 3)) < skill_S1[..., None], gold, ~gold)
        texts = [[";".join(np.array(["a", "b", "c"])[each]) for each in row] for row in own]
        truths = [";".join(np.array(["a", "b", "c"])[each]) for each in gold]
        return truths, np.array(texts), linearized_ratio(*f1_terms(own, gold))
    gold = np.arange(ITEMS) % 4
    correct = random.binomial(gold, np.clip(skill_S1 + hard_N, 0, 1))
    predicted = correct + random.integers(0, 2, correct.shape)
    texts = np.char.add(np.char.add(correct.astype(str), "/"), predicted.astype(str))
    return gold.astype(str), texts, linearized_ratio(2 * correct, predicted + gold)


def write_study(folder, *, grouped=False, checkpoints=False, name="predictions.csv"):
    """Writes random predictions with the comparisons that fm makes of them."""
    random = np.random.default_rng(0)
    frames, cells, scores = [], [], {}
    for task, metric in METRICS.items():
        for arm, skill in SKILLS.items():
            for budget in BUDGETS:
                truth, texts, own = draw(metric, skill, random)
                scores[task, arm, budget] = own
                for seed in range(SEEDS):
                    columns = {"task": task, "arm": arm, "num_labels": budget, "seed": seed}
                    columns |= {"row": range(ITEMS), "item": [f"i{n}" for n in range(ITEMS)]}
                    columns |= {"truth": truth, "prediction": texts[seed]}
                    columns |= {"group": GROUPS} if grouped else {}
                    if checkpoints:
                        columns["checkpoint"] = CHECKPOINTS[seed] if arm == "in_domain" else ""
                    frames.append(pd.DataFrame(columns))
                    key = {"task": task, "arm": arm, "num_labels": budget, "seed": seed}
                    cells.append(key | {"value": own[seed].mean()})
    # In another order than seeds and items: the script pairs by name.
    table = pd.concat(frames).sample(frac=1, random_state=0)
    table.to_csv(folder / name, index=False)
    by_task = [
        TaskScores(
            task,
            BUDGETS,
            {(arm, budget): own for (name, arm, budget), own in scores.items() if name == task},
            rivals=("scratch", "classical"),
            checkpoints={"in_domain": CHECKPOINTS.tolist()} if checkpoints else {},
            groups=GROUPS.tolist() if grouped else None,
        )
        for task in METRICS
    ]
    rows = comparison_rows(by_task, dict.fromkeys(METRICS, PAIRS))
    tasks = [{"name": task, "metric": metric} for task, metric in METRICS.items()]
    arms = [
        {"name": arm, "pretrained_on": None if arm in ("scratch", "classical") else "texts"}
        for arm in SKILLS
    ]
    results = {"schema": 2, "arms": arms, "tasks": tasks, "cells": cells, "comparisons": rows}
    (folder / "results.json").write_text(json.dumps(results))
    return results


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write_study(folder)
    return folder


@pytest.fixture
def study(plain, tmp_path):
    """A folder to change, and its results."""
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    return tmp_path, json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize(
    ("grouped", "checkpoints", "name"),
    [
        (False, False, "predictions.csv"),
        (True, False, "predictions.csv.gz"),
        (False, True, "predictions.csv.xz"),
        (True, True, "predictions.csv"),
    ],
)
def test_every_figure_is_recomputed(tmp_path, grouped, checkpoints, name):
    results = write_study(tmp_path, grouped=grouped, checkpoints=checkpoints, name=name)
    problems, summary = recompute(tmp_path, DRAWS)
    assert problems == []
    assert "0 disagree" in summary
    baselines = {row["baseline"] for row in results["comparisons"]}
    assert baselines == {"scratch", "classical", "best rival"}
    p = np.array([[row["p"], row["p_adjusted"]] for row in results["comparisons"]])
    assert (p[:, 1] > p[:, 0] + 0.01).sum() > 10 and (p[:, 1] < 0.05).sum() > 2


@pytest.mark.parametrize("task", METRICS)
def test_one_changed_prediction_is_noticed(study, task):
    tmp_path, _ = study
    table = pd.read_csv(tmp_path / "predictions.csv", dtype=str)
    changed = table.index[(table["task"] == task) & (table["arm"] == "in_domain")][5]
    others = {
        "fruit": "9",
        "names": "0/9",
        "titles": "0.0",
        "stars": "-99.0",
        "colors": "a;b;c;d;e",
    }
    other = others[task]
    table.loc[changed, "prediction"] = other
    table.to_csv(tmp_path / "predictions.csv", index=False)
    problems, _ = recompute(tmp_path, DRAWS)
    assert any(problem.startswith(f"('{task}', 'in_domain'") for problem in problems)
    assert any(": difference is" in problem for problem in problems)
    assert any(": low is" in problem for problem in problems)


@pytest.mark.parametrize(
    ("field", "change"), [("p_adjusted", 0.08), ("p", 1e-6), ("high", 1e-6), ("checkpoints", 1)]
)
def test_one_changed_figure_is_noticed(study, field, change):
    tmp_path, results = study
    row = next(row for row in results["comparisons"] if 0.01 < row["p_adjusted"] < 0.9)
    row[field] += change
    (tmp_path / "results.json").write_text(json.dumps(results))
    problems, _ = recompute(tmp_path, DRAWS)
    assert len(problems) == 1 and f": {field} is" in problems[0]


def test_the_script_imports_nothing_of_fm_and_exits_with_what_it_found(study, capsys):
    tmp_path, results = study
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(" 0 disagree\n")
    results["comparisons"][0]["difference"] += 1e-6
    (tmp_path / "results.json").write_text(json.dumps(results))
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import recompute"
    code += "; assert not [n for n in sys.modules if n.split('.')[0] in ('fm', 'jax')]"
    code += f"; sys.exit(recompute.main([{str(tmp_path)!r}]))"
    wrong = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stdout.endswith(" 1 disagree\n"), wrong.stderr


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(
            path, id=path.name, marks=() if path.name == "compare_default" else pytest.mark.slow
        )
        for path in KEPT
    ],
)
def test_kept_results_are_recomputed(folder):
    problems, _ = recompute(folder)
    assert problems == []
