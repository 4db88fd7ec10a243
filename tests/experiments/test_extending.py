"""Every example of docs/extending.md is executed: registered from outside `fm`, then run."""

import csv
import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import ablate, adapt, cli, compare, predict
from fm.adaptation.methods import METHODS
from fm.data.media import MODALITIES
from fm.evaluation.baselines import families
from fm.study import presets
from fm.study.ablations import ABLATIONS
from fm.study.arms import ARMS
from fm.study.task_registry import TASKS
from fm.study.task_types import TASK_TYPES
from tests.study.helpers_study import recipe

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
EXAMPLES = {
    name: code
    for code, name in re.findall(r'```python\n("""(\w+)\.py.*?)```', PAGE.read_text(), re.DOTALL)
}
REGISTRIES = (TASKS, TASK_TYPES, ARMS, METHODS, MODALITIES, ABLATIONS)


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """Puts the examples of the page on the path; the registries are restored afterwards."""
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(code)
    before = [dict(registry) for registry in REGISTRIES]
    yield importlib.import_module
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def write_tickets(path, classes, count=120):
    """Texts of which the class decides the words."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for n in range(count):
            label = n % len(classes)
            words = rng.integers(0, 12, 10) + 12 * label
            rows.writerow([" ".join(f"word{word}" for word in words), classes[label]])


def run(module, out_dir, *arguments):
    name = module.__name__.rpartition(".")[2]
    shared = ["--profile=quick", "--seeds=2", "--model=", f"--out={out_dir}"]
    code = cli.call(name, module.__doc__, module.define, module.main, [*shared, *arguments])
    assert code == 0
    return json.loads((out_dir / "results.json").read_text())


def test_every_example_is_short():
    assert set(EXAMPLES) == {
        *("my_study", "tickets_task", "rating_task_type", "neighbors_arm", "centroid_method"),
        *("height_map_modality", "length_ablation", "word_length_member"),
    }
    for code in EXAMPLES.values():
        assert len([line for line in code.splitlines() if line.strip()]) < 40


@pytest.mark.slow
def test_a_task_with_a_new_arm_and_a_new_method(examples, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.RECIPES, "text", lambda profile: recipe("text"))
    write_tickets(tmp_path / "tickets.csv", ("billing", "network"))
    for name in ("tickets_task", "neighbors_arm", "centroid_method"):
        examples(name)
    results = run(
        compare,
        tmp_path / "out",
        *("--tasks=tickets", "--arms=scratch,in_domain,neighbors", "--label_budgets=20"),
        "--adapt=probe,centroid",
    )
    cells = {cell["arm"]: cell for cell in results["cells"]}
    assert set(cells) == {"scratch", "in_domain", "neighbors"}
    assert results["tasks"][0]["name"] == "tickets"
    assert cells["neighbors"]["value"] == 1.0
    tried = [trial["config"] for trial in cells["in_domain"]["trials"]]
    assert {"method": "centroid"} in tried
    assert ("neighbors", "scratch") in {
        (row["arm"], row["baseline"]) for row in results["comparisons"]
    }
    assert "Nearest labeled texts by TF-IDF." in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_model_adapted_by_a_new_method_is_saved(examples, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.RECIPES, "text", lambda profile: recipe("text"))
    write_tickets(tmp_path / "tickets.csv", ("billing", "network"))
    examples("centroid_method")
    for module, *flags in (
        (adapt, "--labels=20", "--adapt=centroid", "--out=adapted"),
        (predict, "--model=adapted/model", "--score", "--out=labels"),
    ):
        name = module.__name__.rpartition(".")[2]
        given = ["--dataset=tickets.csv", *flags]
        assert cli.call(name, module.__doc__, module.define, module.main, given) == 0
    with (tmp_path / "labels" / "predictions.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 120 and set(found[0]) == {"id", "truth", "prediction"}
    assert np.mean([row["truth"] == row["prediction"] for row in found]) > 0.8


@pytest.mark.slow
def test_a_new_task_type(examples, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.RECIPES, "text", lambda profile: recipe("text"))
    write_tickets(tmp_path / "stars.csv", ("1", "2", "3"))
    examples("rating_task_type")
    results = run(
        compare,
        tmp_path / "out",
        *("--dataset=stars.csv", "--arms=scratch,classical", "--label_budgets=30", "--adapt=probe"),
    )
    assert {cell["metric"] for cell in results["cells"]} == {"closeness"}
    assert all(0.5 < cell["value"] <= 1 for cell in results["cells"])


@pytest.mark.slow
def test_a_new_modality(examples, tmp_path):
    module = examples("height_map_modality")
    tiny = dataclasses.replace(MODALITIES["height_map"], recipe=lambda profile: recipe("image"))
    module.register_modality(tiny)
    rng = np.random.default_rng(0)
    for label, name in enumerate(("hill", "valley")):
        folder = tmp_path / "maps" / name
        folder.mkdir(parents=True)
        for n in range(60):
            heights = rng.normal(0, 1, (8, 8))
            heights[2 + 3 * label : 5 + 3 * label] += 5
            np.save(folder / f"{n}.npy", heights)
    results = run(
        compare,
        tmp_path / "out",
        *("--dataset=maps", "--arms=scratch,in_domain,classical", "--label_budgets=20"),
        "--adapt=probe",
    )
    assert {task["modality"] for task in results["tasks"]} == {"height_map"}
    assert {cell["arm"] for cell in results["cells"]} == {"scratch", "in_domain", "classical"}


@pytest.mark.slow
def test_a_new_ablation(examples, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.RECIPES, "text", lambda profile: recipe("text"))
    write_tickets(tmp_path / "tickets.csv", ("billing", "network"))
    examples("length_ablation")
    run(
        ablate,
        tmp_path / "out",
        *("--dataset=tickets.csv", "--arms=scratch,in_domain", "--label_budgets=20"),
        *("--adapt=probe", "--ablation=length"),
    )
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert {"length=1x", "length=0.5x", "length=2x"} <= folders


def test_a_classical_model(examples, monkeypatch):
    monkeypatch.setattr(families, "_MEMBERS", dict(families._MEMBERS))
    examples("word_length_member")
    (own,) = (each for each in families.members_of("text") if "word lengths" in each.name)
    assert own.features.extract(["a bb bb", ""], None).sum(axis=1).tolist() == [3, 0]


@pytest.mark.slow
def test_a_study_of_ones_own(examples, capsys):
    examples("my_study")
    assert "neighbors" in ARMS
