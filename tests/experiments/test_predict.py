"""adapt writes a model, predict labels new files with it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fm.study import labeling, presets, saved_model
from fm.study.adapted_model import AdaptedModel
from tests.study.helpers_study import images, recipe, texts


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def adapted(call, tiny, reviews, tmp_path):
    """The folder of a model of texts."""
    path, out = reviews(reviews.rows), tmp_path / "adapted"
    done = call("adapt", f"--dataset={path}", "--labels=20", "--adapt=probe", f"--out={out}")
    assert done.code == 0, done.err
    return done, out


@pytest.fixture
def new_file(reviews):
    inputs, labels = texts(30, 5)
    names = np.array(["bad", "good"])[labels]
    return reviews(list(zip(inputs, names, strict=True)), name="new.csv")


def test_the_road_from_adapt_to_predictions(call, adapted, new_file, tmp_path):
    done, out = adapted
    lines = done.out.strip().splitlines()
    assert lines[-1] == (
        f"next, to label new files: fm predict --model={out / 'model'} --dataset=FILE"
    )
    own = rows_of(out / "predictions.csv")
    assert list(own[0]) == ["id", "truth", "prediction", "p_bad", "p_good", "text"]
    assert own[0]["id"].startswith("reviews.csv:") and own[0]["truth"] in ("bad", "good")
    summary = json.loads((out / "summary.json").read_text())
    right = np.mean([row["truth"] == row["prediction"] for row in own])
    assert summary["accuracy"] == pytest.approx(right) and len(own) == summary["num_test_items"]
    card = (out / "model" / "README.md").read_text()
    assert "accuracy, " in card and "--dataset=FILE" in card and "probe" in card

    flags = f"--model={out}", f"--dataset={new_file}"
    labeled = call("predict", *flags, f"--out={tmp_path / 'labels'}")
    assert labeled.code == 0, labeled.err
    assert labeled.out.strip().endswith(str(tmp_path / "labels" / "predictions.csv"))
    assert "labels of 30 examples are not looked at" not in labeled.err  # not read
    found = rows_of(tmp_path / "labels" / "predictions.csv")
    assert [row["id"] for row in found] == [f"new.csv:{n}" for n in range(1, 31)]
    assert list(found[0]) == ["id", "prediction", "p_bad", "p_good"]
    for row in found:
        assert row["prediction"] == ("bad" if float(row["p_bad"]) > 0.5 else "good")
    again = call("predict", *flags, f"--out={tmp_path / 'labels'}")
    assert "is finished" in again.out and again.code == 0

    one = call("predict", *flags, f"--out={tmp_path / 'one'}", "--batch_size=1")
    assert one.code == 0
    files = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("labels", "one")]
    assert files[0] == files[1]

    scored = call("predict", *flags, f"--out={tmp_path / 'scored'}", "--score")
    found = rows_of(tmp_path / "scored" / "predictions.csv")
    right = np.mean([row["truth"] == row["prediction"] for row in found])
    assert f"accuracy {right:.3f} on 30 labeled examples of 30" in scored.out


def test_an_interruption_costs_a_part(call, adapted, new_file, tmp_path, monkeypatch):
    _, out = adapted
    monkeypatch.setattr(labeling, "PART_SIZE", 8)
    flags = f"--model={out / 'model'}", f"--dataset={new_file}", "--batch_size=4"
    assert call("predict", *flags, f"--out={tmp_path / 'whole'}").code == 0
    predict, calls = AdaptedModel.predict, []

    def interrupted(self, inputs):
        calls.append(len(inputs))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return predict(self, inputs)

    monkeypatch.setattr(AdaptedModel, "predict", interrupted)
    stopped = call("predict", *flags, f"--out={tmp_path / 'resumed'}")
    assert stopped.code == 130 and "the same command resumes" in stopped.err
    parts = sorted(path.name for path in (tmp_path / "resumed" / "parts").iterdir())
    assert parts == ["000000000000.csv", "000000000008.csv"]
    assert not (tmp_path / "resumed" / "predictions.csv").exists()
    assert call("predict", *flags, f"--out={tmp_path / 'resumed'}").code == 0
    assert sum(calls[6:]) == 14
    files = [tmp_path / name / "predictions.csv" for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "resumed" / "parts").exists()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--dataset=NEW", "--text_column=body"], ["no column 'body'", "'text', 'label'"]),
        (["--dataset=nowhere.csv"], ["nowhere.csv: no such file"]),
        (["--dataset=PICTURES"], ["holds image", "takes text"]),
        (["--dataset=digits"], ["digits holds image; takes text"]),
        (["--dataset="], ["--dataset: takes data to label"]),
        (["--dataset=NEW", "--model=NEW"], ["--model=", "takes a model that fm adapt"]),
        (["--dataset=OTHER", "--score"], ["none of the labels is a class", "'x'", "'bad', 'good'"]),
        (["--dataset=PLAIN", "--score"], ["--score", "no labels"]),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    call, adapted, new_file, reviews, tmp_path, given, parts
):
    _, out = adapted
    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "plain.txt").write_text("one line\nanother\n")
    other = reviews([("plum", "x"), ("fig", "y")], name="other.csv")
    paths = {"NEW": new_file, "PICTURES": tmp_path / "pictures", "OTHER": other}
    paths["PLAIN"] = tmp_path / "plain.txt"
    for key, path in paths.items():
        given = [flag.replace(f"={key}", f"={path}") for flag in given]
    done = call("predict", f"--model={out}", *given, f"--out={tmp_path / 'refused'}")
    assert done.code == 2
    assert all(part in done.error for part in parts), done.error
    assert not (tmp_path / "refused").exists()


def test_images_of_another_size_are_converted(call, tiny, tmp_path):
    pixels, labels = images(60, 0)
    for n, (each, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = tmp_path / "pictures" / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each[..., 0]).save(folder / f"{n}.png")
    out = tmp_path / "adapted"
    given = "adapt", f"--dataset={tmp_path / 'pictures'}", "--labels=20", "--adapt=full,probe"
    done = call(*given, f"--out={out}")
    assert done.code == 0, done.err
    (tmp_path / "new").mkdir()
    for n, each in enumerate(pixels[:4]):
        image = Image.fromarray(each[..., 0])
        (image if n else image.resize((16, 16))).save(tmp_path / "new" / f"{n}.png")
    labeled = call(
        "predict", f"--model={out}", f"--dataset={tmp_path / 'new'}", f"--out={tmp_path / 'labels'}"
    )
    assert labeled.code == 0, labeled.err
    assert "1 of 4 images are resized to 8x8 pixels" in labeled.err
    assert "--image_size" not in labeled.err
    found = rows_of(tmp_path / "labels" / "predictions.csv")
    assert [row["id"] for row in found] == ["0.png", "1.png", "2.png", "3.png"]
    (tmp_path / "new" / "1.png").write_bytes(b"no image")
    broken = call(
        "predict", f"--model={out}", f"--dataset={tmp_path / 'new'}", f"--out={tmp_path / 'broken'}"
    )
    assert broken.code == 2 and "1.png is a broken image" in broken.error


def test_tags(call, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.TASK_TYPE_RECIPES, "ner", lambda profile: recipe("text"))
    draws = np.random.default_rng(0)
    blocks = []
    for _ in range(80):
        words = [f"w{n}" for n in draws.integers(0, 30, 4)]
        lines = [f"{word} {'B-x' if int(word[1:]) < 10 else 'O'}" for word in words]
        blocks.append("\n".join(lines))
    (tmp_path / "names.conll").write_text("\n\n".join(blocks) + "\n")
    out = tmp_path / "adapted"
    given = "adapt", f"--dataset={tmp_path / 'names.conll'}", "--labels=30", "--adapt=probe"
    done = call(*given, f"--out={out}")
    assert done.code == 0, done.err
    assert "entity F1" in done.out and "fm predict" in done.out
    own = rows_of(out / "predictions.csv")
    assert list(own[0]) == ["id", "truth", "prediction", "text"]
    assert all(len(row["prediction"].split()) == len(row["text"].split()) for row in own)
    (tmp_path / "new.txt").write_text("w1 w20 w3\nw25 w26\n")
    flags = f"--model={out}", f"--out={tmp_path / 'labels'}"
    labeled = call("predict", *flags, f"--dataset={tmp_path / 'new.txt'}")
    assert labeled.code == 0, labeled.err
    found = rows_of(tmp_path / "labels" / "predictions.csv")
    assert [row["id"] for row in found] == ["new.txt:1", "new.txt:2"]
    assert [len(row["prediction"].split()) for row in found] == [3, 2]
    (tmp_path / "new.conll").write_text("w1\nw20\n\n\nw3\n")
    flags = f"--model={out}", f"--out={tmp_path / 'untagged'}"
    assert call("predict", *flags, f"--dataset={tmp_path / 'new.conll'}").code == 0
    found = rows_of(tmp_path / "untagged" / "predictions.csv")
    assert [row["id"] for row in found] == ["new.conll:1", "new.conll:5"]
    assert [len(row["prediction"].split()) for row in found] == [2, 1]
    flags = f"--model={out}", f"--out={tmp_path / 'scored'}", "--score"
    scored = call("predict", *flags, f"--dataset={tmp_path / 'names.conll'}")
    assert "entity F1 " in scored.out and "on 80 labeled examples of 80" in scored.out


@pytest.mark.parametrize("kind", ["numbers", "label sets"])
def test_numbers_and_label_sets(call, tiny, reviews, tmp_path, kind):
    inputs, labels = texts(120, 0)
    if kind == "numbers":
        given, header = ["--value_column=stars"], ("text", "stars")
        answers = [str(2.5 * label + n % 3 / 10) for n, label in enumerate(labels)]
    else:
        given, header = ["--label_column=genres", "--label_separator=;"], ("text", "genres")
        answers = [["drama", "drama;war"][label] if n % 9 else "" for n, label in enumerate(labels)]
    rows = [row for row in zip(inputs, answers, strict=True) if row[1]]
    path, out = reviews(rows, header=header), tmp_path / "adapted"
    done = call(
        "adapt", f"--dataset={path}", "--labels=40", "--adapt=probe", f"--out={out}", *given
    )
    assert done.code == 0, done.err
    own = rows_of(out / "predictions.csv")
    assert own[0]["truth"] in answers
    flags = f"--model={out}", f"--dataset={path}", "--score", f"--out={tmp_path / 'labels'}"
    scored = call("predict", *flags)
    assert scored.code == 0, scored.err
    found = rows_of(tmp_path / "labels" / "predictions.csv")
    assert [row["truth"] for row in found] == [answer for _, answer in rows]
    if kind == "numbers":
        assert list(found[0]) == ["id", "truth", "prediction"]
        assert "rank correlation 0." in scored.out and float(found[0]["prediction"]) < 5
    else:
        assert list(found[0]) == ["id", "truth", "prediction", "p_drama", "p_war"]
        assert "micro F1 " in scored.out
        assert {row["prediction"] for row in found} <= {"", "drama", "war", "drama;war"}


def test_all_labels(call, tiny, reviews, tmp_path):
    path = reviews(reviews.rows)
    given = "adapt", f"--dataset={path}", "--adapt=probe", f"--out={tmp_path / 'all'}"
    assert call(*given, "--labels=some").error.endswith(
        "--labels=some: takes a whole number from 2, or all"
    )
    done = call(*given, "--labels=all")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "all" / "config.json").read_text())
    assert 80 < config["labels"] < 120


@pytest.mark.slow
def test_the_kept_model_predicts_what_the_study_scored(call, tiny, reviews, tmp_path):
    path, out = reviews(reviews.rows), tmp_path / "out"
    given = (
        "compare", f"--dataset={path}", "--profile=quick", "--label_budgets=10,20", "--seeds=2",
        "--arms=scratch,in_domain,classical", "--adapt=full,probe", f"--out={out}", "--keep_best",
    )  # fmt: skip
    done = call(*given)
    assert done.code == 0, done.err
    model = out / "best" / "reviews"
    lines = done.out.strip().splitlines()
    assert lines[-1].endswith(f"fm predict --model={model} --dataset=FILE")
    (said,) = (line for line in lines if f"{model} keeps" in line)
    arm = said.split(" keeps ")[1].split()[0]
    assert arm in ("scratch", "in_domain") and "20 labels" in said and "first seed" in said
    adapted = saved_model.load(model)
    with (out / "predictions.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["arm"], row["num_labels"], row["seed"]) == (arm, "20", "0")
        ]
    assert all(row["row_id"].startswith("reviews.csv:") for row in rows)
    assert {row["truth_class"] for row in rows} == {"bad", "good"}
    texts = [reviews.rows[int(row["row_id"].split(":")[1]) - 1][0] for row in rows]
    predicted = adapted.predict(texts)
    assert adapted.prediction_texts(predicted) == [row["prediction_class"] for row in rows]
    assert np.isfinite(adapted.record.run["validation"])
    again = call(*given)
    assert again.code == 0 and "is there already" in again.out
