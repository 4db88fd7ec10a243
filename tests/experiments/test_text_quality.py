import json
import math
import re
import shutil

import pytest

from fm.evaluation.text_quality.metrics import METRICS
from fm.report.formats import to_ascii
from fm.study.text_quality import config
from tests.study.text_quality import helpers_text_quality as helpers


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two domains in files, and a study that takes seconds in any profile."""
    quick = config.make_config
    monkeypatch.setattr(
        config,
        "make_config",
        lambda _, domains, **where: helpers.small(quick("quick", domains), where),
    )
    return f"--domains={','.join(helpers.write_domains(tmp_path))}", "--profile=quick"


@pytest.mark.slow
def test_a_study_from_end_to_end(call, tmp_path, small):
    out, model = tmp_path / "out", helpers.write_model(tmp_path / "model")
    small = (*small, f"--embedder={model}")
    done = call("text_quality", *small, f"--out={out}")
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    assert results["headline"] in to_ascii(done.out) and str(out / "report.html") in done.out

    names = {metric.name for metric in METRICS}
    arms = {
        name: len(training_set["prompt_domains"])
        for name, training_set in results["config"]["training_sets"].items()
    }
    # Each arm and domain: three decodings at the end, the first two at two checkpoints.
    assert len(results["samples"]) == sum(arms.values()) * (3 + 2 * 2)
    assert {r["stage"] for r in results["samples"] if r["temperature"] is None} == {"end"}
    for row in results["samples"]:
        assert names | {"zipf"} == set(row["values"])
        for value, low, high in row["values"].values():
            assert low - 1e-9 <= value <= high + 1e-9 and math.isfinite(value)
    human = {row["domain"]: row["values"] for row in results["real_text"]}
    assert names | {"zipf"} == {*human["A"], "bits_per_byte"}
    # Text of a model of sixteen steps at temperature 1 is less likely than real text.
    wild = [row for row in results["samples"] if row["sampling"] == "T 1"]
    assert all(
        row["values"]["scorer_bits_per_byte"][0] > human[row["domain"]]["scorer_bits_per_byte"][0]
        for row in wild
    )
    for selection in results["selections"]:
        assert set(selection["selected"]) == names and len(selection["regrets"]) == len(names) ** 2
    tokens = {row["arm"]: row["tokens"] for row in results["trained"]}
    most = max(tokens.values())
    assert all(tokens[name] > 0.85 * most for name in tokens if name != "A, few B")

    embedder = results["config"]["embedder"]
    assert (embedder["name"], embedder["source"]) == (str(model), "a file of your own")
    page = (out / "report.html").read_text()
    assert f"the final output of {model} (a file of your own; license not known)" in page
    assert page.count("<img") == len(list((out / "plots").glob("*.png")))
    assert "http://" not in page and "https://" not in page

    again = call("text_quality", *small, f"--out={out}")
    assert again.code == 0 and "is finished" in again.out

    # Without results.json nothing is trained, generated or measured again.
    kept = {path: path.stat().st_mtime_ns for path in out.glob("[ms]*/*.json")}
    (out / "results.json").unlink()
    (out / "measures" / "real-A.json").unlink()
    resumed = call("text_quality", *small, f"--out={out}")
    assert resumed.code == 0 and "resuming" in resumed.err and "already finished" in resumed.err
    once_more = json.loads((out / "results.json").read_text())
    for key in ("models", "real_text", "samples", "selections", "headline"):
        assert once_more[key] == results[key]
    changed = [path.name for path, at in kept.items() if path.stat().st_mtime_ns != at]
    assert changed == ["real-A.json"]

    other = call("text_quality", *small, f"--out={out}", "--seed=1")
    assert other.code == 2 and "seed: 0 -> 1" in other.error
    other = call("text_quality", *small[:-1], f"--out={out}")
    assert other.code == 2 and f"embedder.name: {model} -> tfidf" in other.error
    shutil.rmtree(model)
    helpers.write_model(model, seed=1)
    other = call("text_quality", *small, f"--out={out}")
    assert other.code == 2 and "embedder.digest: " in other.error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--domains=film_reviews"], "--domains=film_reviews: takes two different"),
        (["--domains=digits,digits"], "takes two different"),
        (["--profile=huge"], "one of quick, default, full"),
        (["--domains=/nowhere.txt,film_reviews"], "no such file"),
        (["--embedder=bert"], "--embedder=bert: must be tfidf, smollm2-135m, minilm-l6, a model f"),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, flags, message):
    done = call("text_quality", *flags, f"--out={tmp_path / 'out'}")
    assert done.code == 2
    assert re.search(re.escape(message), done.error)
    assert not (tmp_path / "out").exists()


def test_images_are_refused(call, tmp_path):
    domains = helpers.write_domains(tmp_path)
    done = call("text_quality", f"--domains=digits,{domains[0]}", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and "digits holds images; this study requires texts" in done.error
