import json
import math
import re
import shutil

import pytest

from fm.evaluation.text_quality.metrics import METRICS
from fm.study.text_quality import config
from tests.study.text_quality import problems


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two domains in files, and a study of seconds whatever the profile."""
    quick = config.make_config
    monkeypatch.setattr(
        config,
        "make_config",
        lambda _, domains, **where: problems.small(quick("quick", domains), where),
    )
    return f"--domains={','.join(problems.write_domains(tmp_path))}", "--profile=quick"


@pytest.mark.slow
def test_a_study_from_end_to_end(call, tmp_path, small):
    out, model = tmp_path / "out", problems.write_model(tmp_path / "model")
    small = (*small, f"--features={model}")
    done = call("text_quality", *small, f"--out={out}")
    assert done.code == 0, done.err
    results = json.loads((out / "results.json").read_text())
    assert results["headline"] in done.out and str(out / "report.html") in done.out

    names = {metric.name for metric in METRICS}
    arms = {name: len(diet["writes"]) for name, diet in results["config"]["diets"].items()}
    # Each arm and domain: three decodings at the end, the first two at two checkpoints.
    assert len(results["samples"]) == sum(arms.values()) * (3 + 2 * 2)
    assert {r["stage"] for r in results["samples"] if r["temperature"] is None} == {"end"}
    for row in results["samples"]:
        assert names | {"zipf"} == set(row["values"])
        for value, low, high in row["values"].values():
            assert low - 1e-9 <= value <= high + 1e-9 and math.isfinite(value)
    human = {row["domain"]: row["values"] for row in results["human"]}
    assert names | {"zipf"} == {*human["A"], "bits_per_byte"}
    # Real text is nearer to real text than what a model of sixteen steps writes hot.
    wild = [row for row in results["samples"] if row["decoding"] == "T 1"]
    assert all(row["values"]["judged"][0] > human[row["domain"]]["judged"][0] for row in wild)
    for choice in results["choices"]:
        assert set(choice["chosen"]) == names and len(choice["regrets"]) == len(names) ** 2
    tokens = {row["arm"]: row["tokens"] for row in results["trained"]}
    most = max(tokens.values())
    assert all(tokens[name] > 0.85 * most for name in tokens if name != "A, few B")

    whose = results["config"]["features"]
    assert (whose["name"], whose["source"]) == (str(model), "a file of your own")
    page = (out / "report.html").read_text()
    assert f"the final output of {model} (a file of your own; licence not known)" in page
    assert page.count("<img") == len(list((out / "plots").glob("*.png")))
    assert "http://" not in page and "https://" not in page

    again = call("text_quality", *small, f"--out={out}")
    assert again.code == 0 and "is finished" in again.out

    # What was made is kept: without results, nothing is trained, written or measured again.
    kept = {path: path.stat().st_mtime_ns for path in out.glob("[ms]*/*.json")}
    (out / "results.json").unlink()
    (out / "measures" / "human-A.json").unlink()
    resumed = call("text_quality", *small, f"--out={out}")
    assert resumed.code == 0 and "going on" in resumed.err and "already finished" in resumed.err
    once_more = json.loads((out / "results.json").read_text())
    for key in ("models", "human", "samples", "choices", "headline"):
        assert once_more[key] == results[key]
    changed = [path.name for path, at in kept.items() if path.stat().st_mtime_ns != at]
    assert changed == ["human-A.json"]

    other = call("text_quality", *small, f"--out={out}", "--seed=1")
    assert other.code == 2 and "seed: 0 -> 1" in other.error
    other = call("text_quality", *small[:-1], f"--out={out}")
    assert other.code == 2 and f"features.name: {model} -> terms" in other.error
    shutil.rmtree(model)
    problems.write_model(model, seed=1)
    other = call("text_quality", *small, f"--out={out}")
    assert other.code == 2 and "features.digest: " in other.error


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--domains=film_reviews"], "--domains=film_reviews: takes two different"),
        (["--domains=digits,digits"], "takes two different"),
        (["--profile=huge"], "one of quick, default, full"),
        (["--domains=/nowhere.txt,film_reviews"], "no such file"),
        (["--features=bert"], "--features=bert: takes terms, smollm2-135m, minilm-l6, a model's"),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, flags, told):
    done = call("text_quality", *flags, f"--out={tmp_path / 'out'}")
    assert done.code == 2
    assert re.search(re.escape(told), done.error)
    assert not (tmp_path / "out").exists()


def test_pictures_are_not_texts(call, tmp_path):
    domains = problems.write_domains(tmp_path)
    done = call("text_quality", f"--domains=digits,{domains[0]}", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and "digits holds images; this study takes texts" in done.error
