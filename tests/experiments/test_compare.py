import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from absl.flags import FlagValues
from PIL import Image

from experiments import compare, study_flags
from fm import hf
from fm.report.formats import to_ascii
from fm.study import run_dir
from fm.study.config import TaskConfig
from tests.experiments.helpers_texts import two_class_texts
from tests.hf import helpers_hf as problems
from tests.study.helpers_study import images, recipe, texts

ARMS = ("scratch", "in_domain", "classical")
FLAGS = ("--label_budgets=12,20", "--seeds=2", f"--arms={','.join(ARMS)}")
SCHEMA = {
    "cells": "task modality arm num_labels seed metric value validation trials train_flops "
    "pretrain_flops cpu_seconds",
    "comparisons": "task num_labels arm baseline difference low high p p_adjusted seeds items "
    "variance",
    "label_efficiency": "task num_labels arm label_multiplier low high steps_to_scratch_quality",
    "compute_cost": "task arm pretrain_flops pretrain_cpu_seconds adapt_flops adapt_cpu_seconds "
    "break_even_tasks",
    "decontamination": "task arm checked found removed",
}
WHOLE = "schema config config_hash versions device xla_flags attention headline"


def timeless(results):
    """Results less what a clock says."""
    results = copy.deepcopy(results)
    del results["seconds"]
    for row in [*results["cells"], *results["compute_cost"], *results["methods"]]:
        for key in [key for key in row if key.endswith("seconds")]:
            del row[key]
    return results


@pytest.mark.slow
def test_the_whole_way(call, tmp_path, tiny, monkeypatch):
    out = tmp_path / "run"
    again = "compare", "--tasks=digits", *FLAGS, f"--out={out}"
    done = call(*again)
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith(f"report: {out / 'report.html'}")
    assert "Traceback" not in done.err and "WARNING" not in done.err
    _told_stages(done.err, out)
    assert (out / "report.html").stat().st_size > 10_000

    results = json.loads((out / "results.json").read_text())
    assert set(WHOLE.split()) <= results.keys() and results["schema"] == 2
    for section, fields in SCHEMA.items():
        assert results[section], section
        assert all(set(fields.split()) <= row.keys() for row in results[section]), section
    assert results["attention"] == {"digits": "xla_tiled (tiles of scores stay in cache)"}
    assert results["headline"] in to_ascii(done.out)
    assert len(results["cells"]) == 3 * 2 * 2
    assert all(len(row["trials"]) >= 8 for row in results["cells"] if row["arm"] == "classical")
    hparams = [row["hparams"]["method"] for row in results["cells"] if row["arm"] == "scratch"]
    assert set(hparams) == {"full"}
    fed = {row["arm"]: row["pretrain_flops"] for row in results["cells"]}
    assert fed["in_domain"] > 0 and fed["scratch"] == fed["classical"] == 0

    _recomputed(results, out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cells"] == 12 and summary["seconds"] == results["seconds"] > 0
    assert summary["results_digest"] == run_dir.results_digest(results)
    values = [
        r["value"] for r in results["cells"] if (r["arm"], r["num_labels"]) == ("in_domain", 20)
    ]
    assert summary["metrics"]["digits/in_domain/20"] == np.mean(values)

    monkeypatch.setattr("fm.study.runner.BaseStudy.load", _never)
    second = call(*again)
    monkeypatch.undo()
    assert second.code == 0 and f"{out} is finished" in second.out
    assert results["headline"] in to_ascii(second.out) and second.err == ""
    assert json.loads((out / "results.json").read_text()) == results
    rebuilt = call("report", f"--out={out}")
    assert rebuilt.code == 0 and results["headline"] in to_ascii(rebuilt.out)


def _told_stages(err, out):
    """The lines on stderr name every stage, once, and what is trained."""
    numbered = [line for line in err.splitlines() if " of 4: " in line]
    assert numbered == [
        "1 of 4: digits: pretraining in_domain",
        "2 of 4: digits: adapting 3 arms at 12, 20 labels",
        "3 of 4: digits: scores, intervals and samples",
        "4 of 4: statistics of the whole study",
    ]
    (first,) = [line for line in err.splitlines() if line.endswith("; compiling …")]
    assert first.startswith("digits: pretraining in_domain: 4 steps of ")
    assert " patches (" in first and ", attention by xla_tiled (" in first
    assert "digits: pretraining in_domain: compiled in " in err
    assert "already finished" not in err  # a model that several arms share is read once


def _never(*_):
    raise AssertionError("a finished study is not run again")


def _recomputed(results, out):
    """predictions.csv holds every cell and item, and gives every figure."""
    table = pd.read_csv(out / "predictions.csv")
    items = results["comparisons"][0]["items"]
    assert len(table) == len(results["cells"]) * items
    table["right"] = (table.truth == table.prediction).astype(float)
    value = table.groupby(["arm", "num_labels", "seed"]).right.mean()
    for row in results["cells"]:
        assert row["value"] == pytest.approx(value[row["arm"], row["num_labels"], row["seed"]])
    means = value.groupby(["arm", "num_labels"]).mean()
    for row in results["comparisons"]:
        if (labels := row["num_labels"]) is None:
            continue  # the mean over all budgets, which tests/independent recomputes
        difference = means[row["arm"], labels] - means[row["baseline"], labels]
        assert row["difference"] == pytest.approx(difference, abs=1e-12)


@pytest.mark.slow
def test_what_is_lost_is_made_again_as_it_was(call, tmp_path, tiny):
    out = tmp_path / "run"
    again = "compare", "--tasks=digits", *FLAGS, f"--out={out}"
    assert call(*again).code == 0
    results = json.loads((out / "results.json").read_text())
    predictions = (out / "predictions.csv").read_bytes()
    for name in ("results.json", "predictions.csv", "cells/digits-in_domain-20.json"):
        (out / name).unlink()
    shutil.rmtree(out / "pretrained" / "digits-in_domain" / "seed-0" / "checkpoints")
    done = call(*again)
    assert done.code == 0 and f"{out}: resuming" in done.err
    assert timeless(json.loads((out / "results.json").read_text())) == timeless(results)
    assert (out / "predictions.csv").read_bytes() == predictions


@pytest.mark.slow
def test_own_csv(call, tmp_path, tiny, reviews):
    path = reviews(reviews.rows)
    flags = (
        "compare",
        f"--dataset={path}",
        "--seeds=2",
        f"--out={tmp_path / 'run'}",
        "--model=",
    )
    done = call(*flags, "--label_budgets=8,40")
    assert done.code == 0, done.err
    assert "reviews: skipping the out_of_domain arm" in done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["arm"] for row in results["cells"]} == {
        *("scratch", "random_features", "in_domain", "in_domain_with_classical"),
        *("classical", "classical_unlabeled"),
    }
    best = [row["value"] for row in results["cells"] if row["arm"] == "classical"]
    assert min(best) > 0.9
    assert results["tasks"][0]["name"] == "reviews" and "Reviews" in done.out
    assert (tmp_path / "run" / "report.html").exists()

    reviews([*reviews.rows, *zip(texts(2, 9)[0], ("bad", "good"), strict=True)])
    changed = call(*flags, "--label_budgets=8,40")
    assert changed.code == 2 and "fingerprint" in changed.error


@pytest.mark.slow
def test_a_published_model_of_ones_own(call, tmp_path, tiny, reviews):
    inputs, labels = two_class_texts(120)
    path = reviews(list(zip(inputs, np.array(["bad", "good"])[labels], strict=True)))
    hf.save_pretrained(tmp_path / "model", problems.pretrained("llama"))
    out = tmp_path / "run"
    flags = f"--tasks={path},digits", "--arms=scratch,published,classical", "--label_budgets=12,20"
    again = f"--model={tmp_path / 'model'}", "--adapt=probe,lora,prompt", "--seeds=2"
    asked = "--template=w1 {text} w2 {answer}", "--answers=w3,w4", "--max_length=16"
    done = call("compare", *flags, *again, *asked, f"--out={out}")
    assert done.code == 0, done.err
    assert f"digits: skipping the published arm: {tmp_path / 'model'} reads text only" in done.err
    results = json.loads((out / "results.json").read_text())
    had = {(row["task"], row["arm"]) for row in results["cells"]}
    assert had == {
        (task, arm) for task in ("reviews", "digits") for arm in ("scratch", "classical")
    } | {("reviews", "published")}
    tried = {
        t["config"]["method"]
        for row in results["cells"]
        if row["arm"] == "published"
        for t in row["trials"]
    }
    assert tried == {"probe", "prompt"}
    reached = [row["value"] for row in results["cells"] if row["arm"] == "published"]
    assert np.mean(reached) > 0.65
    about = results["tasks"][0]["published"]
    assert about["licence"] == "not known" and about["template"] == "w1 {text} w2 {answer}"
    assert "published" not in results["tasks"][1]
    page = (out / "report.html").read_text()
    for part in (
        "not searched",
        "may have seen these very test items",
        about["source"],
        "not known",
    ):
        assert part in page


@pytest.mark.slow
def test_own_images(call, tmp_path, tiny):
    pixels, labels = images(60, 0)
    for n, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = tmp_path / "pictures" / ("left", "right")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(folder / f"{n}.png")
    out = tmp_path / "run"
    done = call(
        "compare",
        f"--dataset={tmp_path / 'pictures'}/",
        "--label_budgets=8",
        "--seeds=2",
        f"--out={out}",
    )
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    assert results["tasks"][0]["name"] == "pictures"
    assert results["tasks"][0]["classes"] == ["left", "right"]
    best = [row["value"] for row in results["cells"] if row["arm"] == "classical"]
    assert np.mean(best) > 0.9
    assert (out / "report.html").exists()


@pytest.mark.slow
def test_own_named_entities(call, tmp_path, tiny):
    draws = np.random.default_rng(0)
    path, out = tmp_path / "places.conll", tmp_path / "run"
    path.write_text("".join(_going(draws, n % 4 > 0) for n in range(160)))
    flags = f"--tasks={path},digits", "--profile=quick", "--seeds=2", "--label_budgets=20"
    hf.save_pretrained(tmp_path / "model", problems.pretrained("bert"))
    given = f"--model={tmp_path / 'model'}", "--out_of_domain_dataset=,"
    done = call("compare", *flags, *given, f"--out={out}")
    assert done.code == 0, done.err
    assert "places: skipping the out_of_domain arm" in done.err
    assert (
        f"places: skipping the published arm: {tmp_path / 'model'} "
        "needs one label per text" in done.err
    )
    results = json.loads((out / "results.json").read_text())
    cells = [row for row in results["cells"] if row["task"] == "places"]
    assert {row["metric"] for row in cells} == {"entity F1"}
    assert {row["arm"] for row in cells} == {*ARMS, "random_features"}
    # What follows "to" is a place: neighbours tell.
    assert max(row["value"] for row in cells if row["arm"] == "classical") > 0.9
    table = pd.read_csv(out / "predictions.csv")
    table = table[table.task == "places"]
    found = table.prediction.str.split("/", expand=True).astype(int)
    sums = table.assign(right=found[0], below=found[1] + table.truth.astype(int))
    sums = sums.groupby(["arm", "num_labels", "seed"])[["right", "below"]].sum()
    for row in cells:
        right, below = sums.loc[row["arm"], row["num_labels"], row["seed"]]
        assert row["value"] == pytest.approx(2 * right / below if below else 0.0)
    # There is no table of methods for entities.
    assert {row["task"] for row in results["methods"]} == {"digits"}
    assert {row["task"] for row in results["mistakes"]} <= {"digits"}
    assert {"places", "digits"} == {row["task"] for row in results["compute_cost"]}
    page = (out / "report.html").read_text()
    assert "entity F1" in page


def _going(draws, somewhere):
    """A sentence of made-up words as CoNLL, with or without a place."""
    words = ["".join(draws.choice(list("abcdefgh"), 5)) for _ in range(7)]
    tagged = [f"{word} O" for word in words]
    if somewhere:
        tagged[5:] = ["to O", f"{words[6]} B-place"]
    return "\n".join([*tagged, "", ""])


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["film_reviews", "digits"]),
        (["--profile=quick"], ["film_reviews", "digits"]),
        (["--profile=full"], ["film_reviews", "tweet_entities", "digits", "spoken_words"]),
        (["--profile=full", "--tasks=digits"], ["digits"]),
        (["--profile=full", "--tasks=film_reviews,digits"], ["film_reviews", "digits"]),
        (["--profile=full", "--dataset=own.csv"], ["own.csv"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_the_full_profile_has_more_tasks(monkeypatch, flags, names):
    loaded = []
    monkeypatch.setattr(
        study_flags,
        "_task_config",
        lambda spec, *_: loaded.append(spec.dataset or spec.name) or _made(loaded[-1]),
    )
    values = FlagValues()
    compare.define(values)
    values(["compare", *flags])
    compare.configure(values)
    assert loaded == names


def _made(name):
    return TaskConfig(name, None, (20,), recipe())


@pytest.mark.slow
def test_a_copied_test_item_is_taken_out_of_the_training_data(call, tmp_path, tiny, reviews):
    (tmp_path / "split").mkdir()
    rows = reviews.rows
    reviews([*rows[:80], *rows[90:93]], name="split/train.csv")
    reviews(rows[80:], name="split/test.csv")
    out = tmp_path / "run"
    done = call(
        "compare",
        f"--dataset={tmp_path / 'split'}",
        "--label_budgets=8",
        "--seeds=1",
        f"--out={out}",
        "--model=",
    )
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    assert [(row["found"], row["removed"]) for row in results["decontamination"]] == [(3, 3)]
    assert results["tasks"][0]["train"] == 80 and results["comparisons"] == []
