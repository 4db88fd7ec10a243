"""experiments.compare on a local Ray cluster against one process."""

import contextlib
import csv
import dataclasses
import importlib.util
import json

import pytest

from experiments import cluster
from fm.errors import UserError
from fm.parallel.mesh import current_mesh
from fm.study import presets, ray_executor
from tests.study.helpers_multitask import JOINT

STUDY = (
    "--profile=quick",
    "--arms=scratch,classical",
    "--adapt=probe",
    "--label_budgets=20,40",
    "--seeds=2",
    "--size=nano",
    "--max_test_items=10",
)


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e .[ray]"
)
@pytest.mark.slow
def test_the_results_are_those_of_one_process(call, reviews, tmp_path):
    path = reviews(reviews.rows)
    found = {}
    for where in ("none", "ray"):
        out = tmp_path / where
        done = call("compare", f"--dataset={path}", *STUDY, f"--cluster={where}", f"--out={out}")
        assert done.code == 0, done.err
        with (out / "predictions.csv").open() as file:
            predictions = list(csv.reader(file))
        cells = json.loads((out / "results.json").read_text())["cells"]
        untimed = [{k: v for k, v in cell.items() if "seconds" not in k} for cell in cells]
        found[where] = predictions, untimed
        assert len(list((out / "cells").glob("*.json"))) == 4
    assert found["none"] == found["ray"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_study_is_refused(call, reviews, tmp_path):
    path = reviews(reviews.rows)
    done = call(
        "compare", f"--dataset={path}", *STUDY, "--cluster=ray", f"--out={tmp_path / 'out'}"
    )
    assert done.code == 2 and "pip install -e .[ray]" in done.error
    assert not (tmp_path / "out").exists()


def test_an_unknown_cluster(call):
    done = call("compare", "--cluster=slurm")
    assert done.code == 2 and done.error == "error: --cluster=slurm: takes one of none, ray"


@pytest.fixture
def workers(monkeypatch):
    """A cluster whose worker is this process; returns the cells that it was asked for."""
    asked = []

    def run_calls(ray, call, arguments_of_calls, run_name):
        for arguments in arguments_of_calls:
            asked.append(arguments[3:])
            if message := call(*arguments):
                raise UserError(message)

    monkeypatch.setattr(ray_executor, "ray_cluster", contextlib.nullcontext)
    monkeypatch.setattr(ray_executor, "run_calls", run_calls)
    cluster._load_task.cache_clear()
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(
    "arms", ["joint,instruction_tuned", "scratch,instruction_tuned", "in_domain,classical"]
)
def test_a_joint_study_on_a_cluster(call, reviews, tmp_path, monkeypatch, tiny, workers, arms):
    tune = presets.instruction_tuning_config
    monkeypatch.setattr(presets, "joint_recipe", lambda profile="default": JOINT)
    monkeypatch.setattr(
        presets,
        "instruction_tuning_config",
        lambda _: dataclasses.replace(tune("quick"), min_steps=2),
    )
    path, found = reviews(reviews.rows), {}
    flags = f"--tasks={path}", f"--arms={arms}", "--profile=quick", "--label_budgets=12"
    for name in ("none", "ray"):
        out = tmp_path / name
        done = call("multitask", *flags, "--max_test_items=6", f"--cluster={name}", f"--out={out}")
        assert done.code == 0, done.err
        found[name] = (out / "predictions.csv").read_text()
    assert found["none"] == found["ray"]
    shared = {"instruction_tuned"}
    assert {arm for _, arm, _ in workers} == set(arms.split(",")) - shared


def test_a_worker_has_the_mesh_of_the_study(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cluster, "_load_task", lambda *_: seen.append(current_mesh()) or 1 / 0)
    for flags in (["--mesh=data:1"], []):
        with pytest.raises(ZeroDivisionError):
            cluster.compute_cell("compare", flags, str(tmp_path), "fruit", "scratch", 8)
    assert seen[0].shape == {"data": 1, "fsdp": 1, "tensor": 1} and seen[1] is None
    refused = cluster.compute_cell(
        "compare", ["--mesh=data:2"], str(tmp_path), "fruit", "scratch", 8
    )
    assert "--mesh=data:2,fsdp:1,tensor:1 takes 2 devices, not the 1" in refused
    assert len(seen) == 2
