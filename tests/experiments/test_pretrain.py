import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fm import hf
from fm.files import cache_dir
from fm.report.formats import to_ascii
from fm.study import presets
from tests.experiments.helpers_texts import two_class_texts
from tests.hf import helpers_hf
from tests.study.test_joint_pretraining import RECIPE

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_summary_and_a_second_run(call, tmp_path, tiny):
    again = "pretrain", "--dataset=digits", "--steps=3", f"--out={tmp_path}"
    done = call(*again)
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 3 and len(summary["params_digest"]) == 64
    assert summary["config"]["dataset"]["name"] == "digits"
    assert list(summary["attention"]) == ["image"]
    assert "xla_tiled" in summary["attention"]["image"]
    assert {"metrics", "seconds", "versions", "device", "tokens"} <= summary.keys()
    assert summary["params_digest"][:16] in done.out and "summary.json" in done.out
    losses, where, following = done.out.splitlines()
    assert losses.startswith("3 steps of ") and " patches, validation loss " in losses
    assert f"{summary['metrics']['validation']:.3f} bits per dimension, " in losses
    assert where == f"model and metrics: {tmp_path}, summary: {tmp_path / 'summary.json'}"
    command = f"fm adapt --model={tmp_path} --dataset=digits --labels=100"
    assert following == f"next, to adapt it to labels: {command}"
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert records[0]["tokens_per_second"] is None and records[0]["loss"] is not None
    second = call(*again)
    assert second.code == 0 and "already finished at step 3 of 3" in second.err
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["params_digest"] == summary["params_digest"]


def test_two_runs_into_one_folder(call, tmp_path, tiny, held):
    flags = "pretrain", "--dataset=digits", "--steps=3", f"--out={tmp_path}"
    with held(tmp_path) as holder:
        refused = call(*flags)
    assert refused.code == 2
    assert f"{tmp_path} is in use by process {holder.pid} on " in refused.error
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    done = call(*flags)
    assert done.code == 0, done.err
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--dataset=digits", "--mixture=digits:1"], ["--mixture", "not for digits alone"]),
        (["--dataset=digits,docstrings", "--mixture=a:1"], ["--mixture=a:1", "for digits, docst"]),
        (["--dataset=digits,docstrings", "--mixture=digits:0"], ["weights above 0"]),
        (["--dataset=digits,docstrings", "--test=a.csv"], ["--test=a.csv: is for one data set"]),
        (["--dataset=digits,digits"], ["each data set once"]),
        (["--dataset=digits,docstrings", "--objective=causal_lm:1"], ["is for one data set"]),
        (["--dataset=digits,docstrings", "--captioned=photos"], ["--captioned=photos", "some of"]),
    ],
)
def test_a_bad_mixture(call, tmp_path, flags, parts):
    done = call("pretrain", *flags, f"--out={tmp_path / 'out'}")
    assert done.code == 2 and all(part in done.error for part in parts), done.error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_several_data_sets_train_one_model_that_samples_images(
    call, tmp_path, tiny, reviews, monkeypatch
):
    small = dataclasses.replace(RECIPE, batch_size=6)
    monkeypatch.setattr(presets, "joint_recipe", lambda profile="default": small)
    text, out = str(reviews(reviews.rows)), tmp_path / "joint"
    flags = f"--dataset={text},digits", f"--mixture={text}:2,digits:1", "--captioned=digits"
    done = call("pretrain", *flags, "--steps=2", f"--out={out}")
    assert done.code == 0, done.err
    attention = json.loads((out / "summary.json").read_text())["attention"]
    assert attention.keys() == {"text", "image"}
    again = call("pretrain", *flags, "--steps=2", f"--out={out}")
    assert again.code == 0 and "already finished at step 2 of 2" in again.err
    flags = "generate", "--modality=image", f"--model={out}", f"--out={tmp_path / 'made'}"
    for more in (
        ["--samples=2"],
        ["--init_example=digits:3", "--seed=5"],
        ["--prompt=7", "--seed=6"],
    ):
        made = call(*flags, *more)
        assert made.code == 0, made.err
        paths = [pathlib.Path(path) for path in made.out.split()]
        assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)
        assert paths[-1].name.endswith("-sheet.png")
    written = call("generate", f"--model={out}", "--prompt=good", "--max_new_tokens=4")
    assert written.code == 0 and written.out.startswith("good")


@pytest.mark.slow
def test_adapt_takes_the_pretrained_model(call, tmp_path, tiny, reviews):
    pretrained, out = tmp_path / "pretrained", tmp_path / "adapted"
    assert call("pretrain", "--dataset=digits", "--steps=3", f"--out={pretrained}").code == 0
    flags = "adapt", f"--model={pretrained}", "--dataset=digits", "--labels=20"
    done = call(*flags, f"--out={out}", "--seed=100000")
    assert done.code == 0, done.err
    summary = json.loads((out / "summary.json").read_text())
    assert f"accuracy {summary['accuracy']:.3f} on" in done.out
    assert {trial["config"]["method"] for trial in summary["trials"]} == {"probe", "full"}
    probe = call(*flags, "--adapt=probe", f"--out={tmp_path / 'probe'}")
    assert probe.code == 0 and "method probe" in probe.out
    text = call(*flags[:2], f"--dataset={reviews(reviews.rows)}", f"--out={tmp_path / 'text'}")
    assert text.code == 2 and "takes a model pretrained on such text" in text.error


@pytest.mark.slow
def test_adapt_takes_a_published_model(call, tmp_path, tiny, reviews):
    inputs, labels = two_class_texts(120)
    path = reviews(list(zip(inputs, np.array(["bad", "good"])[labels], strict=True)))
    hf.save_pretrained(tmp_path / "model", helpers_hf.pretrained("llama"))
    flags = "adapt", f"--model={tmp_path / 'model'}", f"--dataset={path}", "--labels=20"
    asked = "--template=w1 {text} w2 {answer}", "--answers=w3,w4", "--max_length=16"
    for method in ("full", "probe", "lora", "prompt"):
        out = tmp_path / method
        done = call(*flags, *asked, f"--adapt={method}", f"--out={out}")
        assert done.code == 0, done.err
        summary = json.loads((out / "summary.json").read_text())
        assert {trial["config"]["method"] for trial in summary["trials"]} == {method}
        assert summary["published"]["tokens"] == 16 and f"method {method}" in done.out
    every = call(*flags, *asked, "--adapt=full,probe,lora,prompt", f"--out={tmp_path / 'all'}")
    assert every.code == 0, every.err
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert {trial["config"]["method"] for trial in summary["trials"]} == {
        "full",
        "probe",
        "lora",
        "prompt",
    }
    refused = call(*flags, "--answers=w3", f"--out={tmp_path / 'refused'}")
    assert refused.code == 2 and "--answers=w3: takes 2" in refused.error
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_ablate_compares_values(call, tmp_path, tiny):
    flags = ("--tasks=digits", "--arms=scratch,in_domain", "--label_budgets=20", "--seeds=2")
    done = call("ablate", "--field=finetune.min_steps", "--values=1,4", *flags, f"--out={tmp_path}")
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {
        "finetune.min_steps=1",
        "finetune.min_steps=4",
    }
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["experiment"] == "ablate finetune.min_steps"
    assert (tmp_path / "report.html").exists() and results["headline"] in to_ascii(done.out)


def _start(out):
    flags = "--dataset=digits --size=nano --steps=400 --batch_size=8 --checkpoint_every=150"
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.pretrain", *flags.split(), f"--out={out}"],
        cwd=ROOT,
        env=os.environ | {"FM_CACHE": str(cache_dir())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_an_interrupted_run_equals_an_undisturbed_one(tmp_path):
    process = _start(tmp_path / "interrupted")
    journal = tmp_path / "interrupted" / "metrics.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    error = err.strip().splitlines()[-1]
    assert "error: digits: stopped by SIGTERM, step" in error and "same command resumes" in error
    assert "Traceback" not in err and not (tmp_path / "interrupted" / "summary.json").exists()

    digests = []
    for name in ("interrupted", "undisturbed"):
        run = _start(tmp_path / name)
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert ("resumed at step" in err) == (name == "interrupted")
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["steps"] == 400
        digests.append(summary["params_digest"])
    assert digests[0] == digests[1]


def test_more_steps_extend_a_finished_run_and_fewer_are_refused(call, tmp_path, tiny):
    flags = "pretrain", "--dataset=digits", f"--out={tmp_path}"
    done = call(*flags, "--steps=3")
    assert done.code == 0, done.err
    done = call(*flags, "--steps=5")
    assert done.code == 0, done.err
    assert f"{tmp_path}: extending the finished run of 3 steps to 5; the learning rate" in done.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 5 and summary["config"]["extended_from"] == [3]
    done = call(*flags, "--steps=5")
    assert done.code == 0 and "already finished at step 5 of 5" in done.err
    done = call(*flags, "--steps=4")
    assert done.code == 2 and "--steps=4: " in done.error
    assert "holds a run of 5 steps, which cannot be shortened" in done.error
    again = call("pretrain", f"--config={tmp_path}", f"--out={tmp_path / 'again'}")
    assert again.code == 2 and "--steps=3 then --steps=5" in again.error
