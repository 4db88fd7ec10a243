"""experiments.export, from pretraining to a folder that generates, and what it refuses."""

import json

import pytest

from fm import hf
from fm.study import presets
from fm.training.objectives import PretrainingObjective
from tests.study.helpers_study import recipe


@pytest.fixture
def text_run(call, tmp_path, reviews, monkeypatch):
    """`text_run(*flags)` pretrains on reviews for a few steps; returns the folder."""
    objective = PretrainingObjective(causal_lm=0.5, masked_lm=0.5)
    monkeypatch.setattr(
        presets, "modality_recipe", lambda *_, **__: recipe("text", objective=objective)
    )

    def make(*flags):
        out = tmp_path / "run"
        path = reviews(reviews.rows)
        done = call("pretrain", f"--dataset={path}", "--steps=3", f"--out={out}", *flags)
        assert done.code == 0, done.err
        return out

    return make


@pytest.mark.slow
def test_a_run_becomes_a_folder_that_generates(call, text_run, tmp_path):
    run, out = text_run(), tmp_path / "exported"
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["model"]["arch"]["gated_mlp"]
    done = call("export", f"--model={run}", f"--out={out}")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == (
        f"next, to continue a text: fm generate --model={out} --prompt=TEXT"
    )
    assert hf.load_pretrained(out).config.max_seq_len == 16
    card = (out / "README.md").read_text()
    rows = json.loads((run / "summary.json").read_text())["data"][0]["rows"]
    assert f"| pretraining | {rows} |" in card and "masked_lm 0.5" in card
    flags = "--prompt=w1", "--max_new_tokens=4", "--temperature=0"
    assert (
        call("generate", f"--model={out}", *flags).out
        == call("generate", f"--model={run}", *flags).out
    )
    again = call("export", f"--model={run}", f"--out={out}")
    assert again.code == 2 and f"--out={out} exists already; takes a new folder" in again.error


@pytest.mark.slow
def test_what_has_no_counterpart_is_refused(call, text_run, tmp_path):
    done = call("export", f"--model={text_run('--arch=fm')}", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and not (tmp_path / "out").exists()
    assert all(part in done.error for part in ("--model=", "--arch=llama", "nearest is"))


@pytest.mark.slow
def test_an_adapted_classifier_becomes_one_of_transformers(call, text_run, tmp_path, reviews):
    run, out = text_run(), tmp_path / "adapted"
    flags = f"--dataset={reviews(reviews.rows)}", "--labels=20", f"--model={run}"
    done = call("adapt", *flags, "--for_transformers", f"--out={out}")
    assert done.code == 0, done.err
    done = call("export", f"--model={out}", f"--out={tmp_path / 'classifier'}")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert set(config["label2id"]) == {"bad", "good"}
    assert "accuracy, " in (tmp_path / "classifier" / "README.md").read_text()
    plain = call("adapt", *flags, "--adapt=probe", f"--out={tmp_path / 'probe'}")
    assert plain.code == 0, plain.err
    refused = call("export", f"--model={tmp_path / 'probe'}", f"--out={tmp_path / 'no'}")
    assert refused.code == 2 and "--for_transformers" in refused.error


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--adapt=probe"], ["--for_transformers: takes --adapt=full, not probe"]),
        (["--dataset=digits"], ["--for_transformers: takes texts with one class", "not image"]),
        (["--arch=fm"], ["--for_transformers", "--arch=llama"]),
    ],
    ids=str,
)
def test_what_no_classifier_of_transformers_is_refused_before_it_is_fitted(
    call, tmp_path, reviews, flags, parts
):
    data = f"--dataset={reviews(reviews.rows)}"
    given = "--labels=20", "--for_transformers", f"--out={tmp_path / 'out'}"
    done = call("adapt", data, *given, *flags)
    assert done.code == 2 and not (tmp_path / "out").exists()
    assert all(part in done.error for part in parts), done.error


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["--model=: takes the --out of fm pretrain"]),
        (["--model=nowhere"], ["--model=nowhere: no such folder or file"]),
        (["--model=minilm-l6"], ["--model=minilm-l6", "takes the --out of fm pretrain"]),
        (["--model=x", "--max_length=1"], ["--max_length=1"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line(call, tmp_path, flags, parts):
    done = call("export", f"--out={tmp_path / 'out'}", *flags)
    assert done.code == 2
    assert all(part in done.error for part in parts), done.error
