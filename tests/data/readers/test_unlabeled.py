"""Rows without label, files beside the data file, and what a validation split is used for."""

import numpy as np
import pytest

from fm.data.load import load
from fm.data.media import image
from fm.data.prepare import tell_once
from fm.errors import UserError
from fm.evaluation.model_selection import draw_train_idx
from tests.data.helpers_files import labels_by_text, reviews, write_table


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.jsonl"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_rows_with_an_empty_label_are_unlabeled(tmp_path, name, empty):
    rows = [row | {"label": row["label"] if n % 2 else empty} for n, row in enumerate(reviews(200))]
    rows = [row | {"label": "ab"[n // 2 % 2]} if n % 2 else row for n, row in enumerate(rows)]
    data = load(write_table(tmp_path / name, rows))
    known = {row["text"]: row["label"].strip() or None for row in rows}
    train, test = (labels_by_text(data, split) for split in (data.train, data.test))
    assert train | test == known and data.classes == ("a", "b")
    assert None not in test.values() and list(train.values()).count(None) == 100
    assert 10 <= len(test) <= 30 and data.info["split"] == "by hash"
    drawn = draw_train_idx(data.train.labels, 20, seed=0)
    assert min(data.train.labels[drawn]) == 0


def test_labeled_examples_stay_on_their_side_when_unlabeled_ones_come(tmp_path):
    plain = load(write_table(tmp_path / "a.csv", reviews(60)))
    more = [{"text": f"bare {n}", "label": ""} for n in range(60)]
    data = load(write_table(tmp_path / "b.csv", reviews(60) + more))
    assert sorted(data.test.ids) == sorted(plain.test.ids)
    assert set(plain.train.ids) < set(data.train.ids) and len(data.train) == len(plain.train) + 60


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "".join(f"line {n}\n" for n in range(50))),
        ("a.csv", "text\n" + "".join(f"line {n}\n" for n in range(50))),
        ("b.csv", "text,label\n" + "".join(f"line {n},\n" for n in range(50))),
    ],
)
def test_data_without_any_label_has_no_test_split(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    data = load(str(tmp_path / name))
    assert (len(data.train), len(data.test), data.classes) == (50, 0, ())
    assert data.info["split"] == "none" and data.info["target"] is None
    assert data.train.labels is None


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_a_file_of_unlabeled_examples(tmp_path, ending):
    labeled = write_table(tmp_path / "labeled.csv", reviews(60))
    extra = reviews(30, prefix="extra")
    pile = tmp_path / f"pile.{ending}"
    if ending == "txt":
        pile.write_text("".join(f"{row['text']}\n" for row in extra))
    else:
        write_table(pile, extra)
    plain, data = load(labeled), load(labeled, unlabeled=str(pile))
    assert sorted(data.test.ids) == sorted(plain.test.ids)
    found = labels_by_text(data, data.train)
    assert {text for text, label in found.items() if label is None} == {r["text"] for r in extra}
    assert data.info["fingerprint"] != plain.info["fingerprint"]
    both = load(labeled, unlabeled=f"{pile},{write_table(tmp_path / 'more.csv', reviews(9))}")
    assert int(np.sum(both.train.labels < 0)) == 39
    # Another content of the file is another data set.
    pile.write_text(pile.read_text().replace("extra 7", "other 7"))
    assert load(labeled, unlabeled=str(pile)).info["fingerprint"] != data.info["fingerprint"]


def test_a_test_file_and_a_validation_file(tmp_path, capsys):
    train = write_table(tmp_path / "mine.csv", reviews(20))
    test = write_table(tmp_path / "held.csv", [*reviews(6, prefix="t"), {"text": "x", "label": ""}])
    validation = write_table(tmp_path / "v.csv", reviews(4, prefix="v"))
    data = load(train, test=test)
    assert (len(data.train), len(data.test), data.info["split"]) == (20, 6, "official")
    data = load(train, test=test, validation=validation)
    assert (len(data.train), len(data.test)) == (24, 6)
    assert sum(text.startswith("v") for text in data.train.texts(range(24))) == 4
    assert "the validation split (v.csv) joins the training examples" in capsys.readouterr().err
    data = load(train, validation=validation)
    assert (len(data.train), len(data.test)) == (20, 4)
    assert "(v.csv) is read as the test split" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "jsonl", "tsv"])
def test_a_folder_with_files_of_these_names(tmp_path, ending):
    for name, count in (("train", 20), ("validation", 4), ("test", 6)):
        write_table(tmp_path / f"{name}.{ending}", reviews(count, prefix=name))
    (tmp_path / "unlabeled.txt").write_text("".join(f"line {n}\n" for n in range(9)))
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (33, 6)
    assert int(np.sum(data.train.labels < 0)) == 9
    assert all(text.startswith("test") for text in data.test.texts(range(6)))


def test_a_folder_of_train_and_unlabeled_alone_is_split(tmp_path):
    write_table(tmp_path / "train.csv", reviews(60))
    write_table(tmp_path / "unlabelled.csv", [{"text": f"u {n}"} for n in range(9)])
    data = load(str(tmp_path))
    assert data.info["split"] == "by hash" and len(data.train) + len(data.test) == 69
    assert not any(text.startswith("u ") for text in data.test.texts(range(len(data.test))))


def test_a_class_folder_of_unlabeled_texts_is_no_class(tmp_path, capsys):
    for name in ("neg", "pos", "unsup"):
        (tmp_path / name).mkdir()
        for n in range(9):
            (tmp_path / name / f"{n}.txt").write_text(f"{name} {n}")
    data = load(str(tmp_path))
    assert data.classes == ("neg", "pos")
    assert list(labels_by_text(data, data.train).values()).count(None) == 9
    assert "the folder of unlabeled examples is not a class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"test": "no.csv"}, r"--test=no\.csv: no such file or folder"),
        ({"unlabeled": "no.csv"}, r"--unlabeled=.*no\.csv: no such file"),
        ({"test": "split"}, r"--test=.*split: has splits of its own \(train, test\)"),
        ({"test": "bare.csv"}, r"--label_column=label: .*bare\.csv has no column 'label'"),
        ({"test": "gaps.csv"}, "the train split has labels, the test split has none"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "data.csv", reviews(20))
    write_table(tmp_path / "bare.csv", [{"text": "a", "more": "b"}])
    write_table(tmp_path / "gaps.csv", [{"text": "a", "label": ""}])
    for name in ("train", "test"):
        write_table(tmp_path / "split" / f"{name}.csv", reviews(4))
    with pytest.raises(UserError, match=says) as raised:
        load("data.csv", **flags)
    assert "\n" not in str(raised.value)


def test_a_second_test_split_is_refused(tmp_path):
    for name in ("train", "test"):
        write_table(tmp_path / "split" / f"{name}.csv", reviews(4, prefix=name))
    test = write_table(tmp_path / "t.csv", reviews(4))
    with pytest.raises(UserError, match=r"--test=.*t\.csv: .*split has a test split already"):
        load(str(tmp_path / "split"), test=test)
    for name in ("digits", "no_such"):
        with pytest.raises(UserError, match=r"--test=.*: is for data in files and folders|unknown"):
            load(name, test=test)


def test_every_row_is_accounted_for(tmp_path, capsys):
    tell_once.cache_clear()
    rows = [*reviews(40), {"text": " ", "label": "no"}, {"text": "bare", "label": ""}]
    data = load(
        write_table(tmp_path / "a.csv", rows),
        unlabeled=write_table(tmp_path / "b.csv", [{"text": f"u {n}"} for n in range(5)]),
    )
    files = {file["name"]: file for file in data.info["files"]}
    assert {name: file["rows"] for name, file in files.items()} == {"a.csv": 42, "b.csv": 5}
    assert files["a.csv"]["ignored"] == {"blank": 1}


@pytest.mark.parametrize("beside", ["", "pile", "nested", "one.png"])
def test_unlabeled_images(tmp_path, beside):
    pixels = iter(np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), np.uint8))
    folder = tmp_path / "data"
    folders = {"": "data/unlabeled", "pile": "pile", "nested": "nested/a/b", "one.png": ""}
    for name in ("data/cat", "data/dog", folders[beside]):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for n in range(9 if name else 0):
            (tmp_path / name / f"{'abcdefghi'[n]}.png").write_bytes(image.encode_png(next(pixels)))
    if beside == "nested":
        (tmp_path / "nested" / "9.png").write_bytes(image.encode_png(next(pixels)))
    if beside == "one.png":
        (tmp_path / beside).write_bytes(image.encode_png(next(pixels)))
    data = load(str(folder), unlabeled=str(tmp_path / beside) if beside else "")
    count = {"": 9, "pile": 9, "nested": 10, "one.png": 1}[beside]
    assert data.classes == ("cat", "dog") and int(np.sum(data.train.labels < 0)) == count
    assert len(data.train) + len(data.test) == 18 + count and min(data.test.labels) == 0
