"""experiments.compare on a local Ray cluster against one process."""

import csv
import importlib.util
import json

import pytest

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
    for cluster in ("none", "ray"):
        out = tmp_path / cluster
        done = call("compare", f"--dataset={path}", *STUDY, f"--cluster={cluster}", f"--out={out}")
        assert done.code == 0, done.err
        with (out / "predictions.csv").open() as file:
            predictions = list(csv.reader(file))
        cells = json.loads((out / "results.json").read_text())["cells"]
        found[cluster] = predictions, [cell | {"seconds": 0} for cell in cells]
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
