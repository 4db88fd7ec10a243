"""What a run ends with: figures by name, digests that a clock does not move."""

import hashlib
import json

from fm.study import run_dir

RESULTS = {
    "config": {"seeds": 2},
    "seconds": 3.5,
    "device": {"cores": 2},
    "cells": [
        {"task": "fruit", "arm": "in_domain", "labels": 20, "value": 0.5, "seconds": 1.0},
        {"task": "fruit", "arm": "in_domain", "labels": 20, "value": 1.0, "seconds": 2.0},
        {"task": "fruit", "arm": "scratch", "labels": 20, "value": 0.25, "seconds": 2.0},
    ],
    "ledger": [{"arm": "in_domain", "pretrain_seconds": 9.0, "pretrain_flops": 4.0}],
    "pretrained": [
        {"name": "fruit/self/1", "steps": 5, "params_digest": "b" * 64},
        {"name": "fruit/self/0", "steps": 7, "params_digest": "a" * 64},
    ],
}


def changed(**changes):
    return json.loads(json.dumps(RESULTS)) | changes


def test_a_study_in_figures(tmp_path):
    (tmp_path / "predictions.csv").write_text("a,b\n")
    path = run_dir.write_study_summary(RESULTS, tmp_path)
    summary = json.loads(path.read_text())
    assert summary["metrics"] == {"fruit/self/20": 0.75, "fruit/scratch/20": 0.25}
    assert summary["cells"] == 3 and summary["seconds"] == 3.5
    assert summary["config"] == {"seeds": 2}
    assert summary["predictions_digest"] == hashlib.sha256(b"a,b\n").hexdigest()
    assert {"jax", "fm", "python"} <= summary["versions"].keys()
    assert summary["steps"] == 12


def test_the_digest_of_parameters_is_of_every_model_by_name(tmp_path):
    def of(name, *rows):
        path = run_dir.write_study_summary(changed(pretrained=rows), tmp_path / name)
        return json.loads(path.read_text())["params_digest"]

    first, second = RESULTS["pretrained"]
    assert of("a", first, second) == of("b", second, first)
    others = of("c"), of("d", first), of("e", first | {"name": "x"}, second)
    assert len({of("a", first, second), *others}) == 4


def test_a_study_of_text_has_bits(tmp_path):
    models = [{"arm": "A", "stage": "end", "domain": "B", "step": 9, "value": 2.5}]
    results = {"config": {}, "seconds": 1.0, "models": models, "samples": [{}, {}]}
    summary = json.loads(run_dir.write_study_summary(results, tmp_path).read_text())
    assert summary["metrics"] == {"A/end/B": 2.5} and summary["samples"] == 2


def test_the_digest_is_of_what_no_clock_says():
    digest = run_dir.results_digest(RESULTS)
    slower = [row | {"seconds": 99.0} for row in RESULTS["cells"]]
    assert run_dir.results_digest(changed(seconds=1.0, cells=slower, device={})) == digest
    dearer = [{"arm": "in_domain", "pretrain_seconds": 1.0, "pretrain_flops": 4.0}]
    assert run_dir.results_digest(changed(ledger=dearer)) == digest
    # From how many tasks on something pays in seconds, if it ever does, is the clock's to say.
    bills = [
        [{"flops": 2, "flops_until": None, "seconds": at, "seconds_until": until}]
        for at, until in ((None, None), (3, 17))
    ]
    one, other = (run_dir.results_digest(changed(break_even=bill)) for bill in bills)
    assert one == other != digest
    better = [row | {"value": 1.0} for row in RESULTS["cells"]]
    assert run_dir.results_digest(changed(cells=better)) != digest


def test_shown_again_it_stays_as_it_was(tmp_path):
    run_dir.write_study_summary(RESULTS, tmp_path)
    run_dir.write_study_summary(changed(seconds=0.01), tmp_path)
    assert json.loads((tmp_path / run_dir.SUMMARY_FILE).read_text())["seconds"] == 3.5
    run_dir.write_study_summary(changed(seconds=0.01, cells=RESULTS["cells"][:2]), tmp_path)
    assert json.loads((tmp_path / run_dir.SUMMARY_FILE).read_text())["cells"] == 2
