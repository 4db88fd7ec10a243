"""The experiment from the command line, on a model trained for two steps."""

import pytest

from fm.study import presets
from fm.training.objectives import PretrainingObjective
from tests.study.helpers_study import recipe

PROMPT = "--prompt=good"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the runs; the first test that needs one trains it."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def model(call, reviews, trained, monkeypatch):
    made = recipe("text", objective=PretrainingObjective(causal_lm=1.0, masked_lm=0.0))
    monkeypatch.setattr(presets, "modality_recipe", lambda modality, profile="default": made)
    if not (trained / "text").exists():
        flags = (f"--dataset={reviews(reviews.rows)}", "--steps=2", f"--out={trained / 'text'}")
        assert call("pretrain", *flags).code == 0
    return trained / "text"


def test_a_text_continues_its_prompt_and_the_seed_repeats_it(call, model):
    flags = (f"--model={model}", PROMPT, "--max_new_tokens=12", "--temperature=1.5")
    first, again, other = (call("generate", *flags, f"--seed={seed}") for seed in (1, 1, 2))
    assert first.code == 0 and first.out.startswith("good") and len(first.out) > 8
    assert first.out == again.out != other.out


def test_streamed_it_is_the_same_text(call, model):
    flags = (f"--model={model}", PROMPT, "--max_new_tokens=12", "--seed=3")
    assert call("generate", *flags).out == call("generate", *flags, "--stream").out


def test_samples_have_the_seeds_from_the_given_one(call, model):
    flags = (f"--model={model}", PROMPT, "--max_new_tokens=6")
    both = call("generate", *flags, "--samples=2", "--seed=5").out
    each = [call("generate", *flags, f"--seed={seed}").out for seed in (5, 6)]
    assert both == f"--- seed 5\n{each[0]}--- seed 6\n{each[1]}"


def test_it_ends_before_a_stop_string(call, model):
    flags = (f"--model={model}", PROMPT, "--max_new_tokens=40", "--seed=1", "--temperature=1.2")
    whole = call("generate", *flags).out.removesuffix("\n")
    stop = whole[len("good") + 5 : len("good") + 8]
    cut = call("generate", *flags, f"--stop={stop}").out.removesuffix("\n")
    assert cut == "good" + whole[len("good") :].split(stop)[0]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model=M", "--prompt="], ["--prompt is needed"]),
        (["--model=M"], ["--prompt is needed"]),
        ([PROMPT], ["--model is needed"]),
        (["--model=M", PROMPT, "--temperature=-1"], ["temperature=-1", "at least 0"]),
        (["--model=M", PROMPT, "--top_p=0"], ["top_p=0", "above 0 and at most 1"]),
        (["--model=M", PROMPT, "--top_k=-3"], ["top_k=-3", "whole number"]),
        (["--model=M", PROMPT, "--min_p=2"], ["min_p=2", "from 0 to 1"]),
        (["--model=M", PROMPT, "--max_new_tokens=0"], ["--max_new_tokens=0"]),
        (["--model=M", PROMPT, "--stop="], ["--stop takes at least one character"]),
        (["--model=M", PROMPT, "--stream", "--samples=2"], ["--stream", "--samples=2"]),
        (["--model=M", PROMPT, "--dtype=int8"], ["--dtype=int8", "float32, bfloat16"]),
        (
            ["--model=M", PROMPT, "--init_example=digits:1"],
            ["--init_example", "--modality=image, audio, video"],
        ),
        (["--model=M", "--modality=image", "--top_k=3"], ["--top_k", "--modality=text"]),
        (["--model=M", "--modality=smell"], ["--modality=smell", "text, image, audio, video"]),
        (["--model=M", "--modality=video"], ["--model=", "holds no checkpoint"]),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, flags, parts):
    (tmp_path / "checkpoints").mkdir()
    done = call("generate", *(flag.replace("=M", f"={tmp_path}") for flag in flags))
    assert done.code == 2 and all(part in done.error for part in parts), done.error


def test_a_folder_without_a_checkpoint(call, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    done = call("generate", f"--model={tmp_path}", PROMPT)
    assert done.code == 2 and "holds no checkpoint" in done.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "what"),
    [("digits", "was trained on image"), ("reviews", "was not trained to predict the next token")],
)
def test_a_model_that_cannot_generate_text(call, trained, reviews, tiny, data, what):
    dataset = reviews(reviews.rows) if data == "reviews" else data
    out = trained / f"no {data}"
    assert call("pretrain", f"--dataset={dataset}", "--steps=1", f"--out={out}").code == 0
    done = call("generate", f"--model={out}", PROMPT)
    assert done.code == 2 and what in done.error


def test_a_model_that_does_not_exist(call, tmp_path):
    pytest.importorskip("fm.hf.model_zoo")
    done = call("generate", f"--model={tmp_path / 'none'}", PROMPT)
    assert done.code == 2 and "no such folder or file" in done.error
    assert "smollm2-135m" in done.error
