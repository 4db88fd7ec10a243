"""Groups of items: columns of files, speakers in file names, and built-in ones."""

import csv
import json

import numpy as np
import pytest
from scipy.io import wavfile

from fm.data.builders import BUILDERS
from fm.data.datasets import subset
from fm.data.load import load
from fm.errors import UserError


def _rows(count=60):
    return [
        {"text": f"review {n} of {n % 7}", "label": "ab"[n % 2], "author": f"author {n % 5}"}
        for n in range(count)
    ]


def _write(path, rows):
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return str(path)


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_column_of_a_file_groups_its_examples(tmp_path, name):
    path = _write(tmp_path / name, _rows())
    data, plain = load(path, item_group="author"), load(path)
    known = {row["text"]: row["author"] for row in _rows()}
    for split in (data.train, data.test):
        texts = split.texts(range(len(split)))
        assert split.is_grouped and split.groups(range(len(split))) == [known[t] for t in texts]
    last = subset(data.train, [3, 1])
    assert last.groups([0]) == data.train.groups([3])
    assert data.info["item_group"] == "author" and plain.info["item_group"] is None
    assert not plain.test.is_grouped and plain.test.ids == data.test.ids
    # An author who changes is another data set, to somebody who asks for authors.
    changed = _write(tmp_path / name, [row | {"author": "one"} for row in _rows()])
    assert load(changed).info["fingerprint"] == plain.info["fingerprint"]
    assert load(changed, item_group="author").info["fingerprint"] != data.info["fingerprint"]


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("r.csv", _rows(), "--item_group=writer: .*r.csv has no column 'writer'; it has:"),
        ("r.jsonl", [row | {"writer": None} for row in _rows()], "line 1: 'writer' is missing"),
        ("r.txt", None, "--item_group=writer: .*r.txt has examples without columns"),
        ("r.conll", None, "--item_group=writer: .*r.conll holds words with tags"),
    ],
)
def test_a_group_that_is_not_there_is_refused(tmp_path, name, rows, says):
    path = tmp_path / name
    if rows:
        _write(path, rows)
    elif name.endswith("txt"):
        path.write_text("one\ntwo\nthree\n")
    else:
        path.write_text("\n\n".join(f"we{n} O\nsee O\nRome{n} B-loc" for n in range(9)))
    with pytest.raises(UserError, match=says):
        load(str(path), item_group="writer")


def test_speakers_in_file_names_group_their_recordings(tmp_path):
    draws = np.random.default_rng(0)
    for speaker in "abcdefg":
        for word in "01":
            for take in range(2):
                sound = draws.integers(-900, 900, 800).astype(np.int16)
                wavfile.write(tmp_path / f"{word}_{speaker}_{take}.wav", 8000, sound)
    data = load(str(tmp_path), label_field=0, speaker_field=1)
    sides = [set(each.groups(range(len(each)))) for each in (data.train, data.test)]
    assert data.info["item_group"] == "speaker" and set.union(*sides) == set("abcdefg")
    assert not set.intersection(*sides)


def test_built_in_groups_are_features_of_their_data():
    grouped = {name: make.ITEM_GROUP for name, make in BUILDERS.items() if make.ITEM_GROUP}
    assert grouped == {"film_reviews": "source", "spoken_words": "voice"}
    assert all(group in BUILDERS[name].FEATURES for name, group in grouped.items())


@pytest.mark.slow
def test_groups_of_a_built_in_data_set(reviews_wheel):
    data = load("film_reviews")
    assert set(data.test.groups(range(len(data.test)))) == {"imdb", "rotten_tomatoes"}
    assert data.info["item_group"] == "source"
    with pytest.raises(UserError, match="--item_group=author: film_reviews has no such column"):
        load("film_reviews", item_group="author")
