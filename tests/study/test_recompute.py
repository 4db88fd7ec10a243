"""Figures of a study against a recomputation that imports nothing of `fm`."""

import ast
import pathlib

import pandas as pd
import pytest

from fm.study import analysis, comparisons
from fm.study.arms import comparison_pairs
from fm.study.tasks import prepare_task
from tests.study import recompute
from tests.study.helpers_study import config, dataset, guessed, loads

ARMS = ("scratch", "in_domain", "classical")


@pytest.mark.parametrize("checkpoints", [1, 4])
def test_every_figure_is_found_again_from_the_predictions(monkeypatch, tmp_path, checkpoints):
    loads(monkeypatch, dataset(test=24))
    task = prepare_task(config(), ARMS, 8)
    cells = guessed(task, {"scratch": 0.6, "in_domain": 0.8, "classical": 0.7}, seeds=8)
    groups = [n // 3 for n in range(24)] if checkpoints > 1 else None
    runs = {"in_domain": [object()] * checkpoints}
    scores = analysis.task_scores(cells, task, runs, groups)
    rows = comparisons.comparison_rows([scores], {"fruit": comparison_pairs(ARMS)})
    analysis.write_predictions([(task, cells)], tmp_path / "predictions.csv")
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    predictions["checkpoint"] = predictions.seed % checkpoints
    predictions["group"] = predictions.row // 3
    found, plain = recompute.recompute(predictions, rows, draws=300)
    for name in ("difference", "low", "high", "p"):
        assert found[name].tolist() == pytest.approx([row[name] for row in plain], abs=1e-9)
    # Both sides are simulated: 300 draws give a share to three hundredths.
    expected = [row["p_adjusted"] for row in plain]
    assert found.p_adjusted.tolist() == pytest.approx(expected, abs=0.1)
    assert min(expected) < 0.1 < max(expected)


def test_the_recomputation_imports_nothing_of_fm():
    tree = ast.parse(pathlib.Path(recompute.__file__).read_text(encoding="utf-8"))
    names = {
        getattr(node, "module", None) or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names.isdisjoint({"fm", "tests"}) and not any(name.startswith("fm.") for name in names)
