"""The line that says what became of every row of the user's files."""

import re

import numpy as np
import pytest

from fm.data.datasets import development_dataset, subset
from fm.data.decontamination import find_duplicates
from fm.data.file_counts import describe_files
from fm.data.load import load
from fm.study.tasks import draw_examples
from tests.data.helpers_files import reviews, write_table


def counted(line):
    """By file: its rows, and the sum of what they are used for."""
    found = {}
    for part in line.split("; "):
        name, rows, said = re.fullmatch(r"(.+?): ([\d,]+) \w+: (.+)", part).groups()
        numbers = re.findall(r"(?:^|, )([\d,]+) ", said)
        found[name] = int(rows.replace(",", "")), sum(int(n.replace(",", "")) for n in numbers)
    return found


@pytest.fixture
def data(tmp_path):
    words = " ".join(f"word{n}" for n in range(20))
    rows = [*reviews(60), {"text": "", "label": "no"}, {"text": "bare", "label": ""}]
    copies = [{"text": f"{words} {n}"} for n in range(5)]
    test = [*reviews(8, prefix="t"), {"text": f"so {words}", "label": "no"}]
    test.append({"text": "x", "label": ""})
    for name, own in (("a", rows), ("u", copies), ("t", test)):
        write_table(tmp_path / f"{name}.csv", own)
    return load(
        str(tmp_path / "a.csv"),
        unlabeled=str(tmp_path / "u.csv"),
        test=str(tmp_path / "t.csv"),
    )


def test_the_numbers_add_up_to_the_rows(data):
    drawn = draw_examples(data.train, 50)
    search = find_duplicates(drawn, data.test, "text")
    line = describe_files(data, drawn, search.duplicate_idx)
    assert counted(line) == {"a.csv": (62, 62), "u.csv": (5, 5), "t.csv": (10, 10)}
    assert (
        "beyond the profile's limit" in line
        and f"{len(search.duplicate_idx)} removed as near-dup" in line
    )
    assert "1 ignored (blank)" in line and "1 ignored (unlabeled test items)" in line
    assert "9 set aside for test" in line


def test_without_a_limit_and_duplicates(data):
    line = describe_files(data)
    assert "a.csv: 62 rows: 60 labeled for training, 1 unlabeled for training, 1 ign" in line
    assert "u.csv: 5 rows: 5 unlabeled for training" in line


def test_a_development_part_leaves_the_test_items_alone(data):
    line = describe_files(development_dataset(data))
    assert counted(line)["t.csv"] == (10, 10) and "9 test items left alone" in line
    assert "development items" in line


def test_built_in_data_has_no_such_line():
    assert describe_files(load("digits")) == ""


def test_numbers_and_label_sets_are_counted_as_labels(tmp_path):
    rows = [{"text": f"t {n}", "label": n if n % 2 else ""} for n in range(40)]
    data = load(write_table(tmp_path / "r.csv", rows), value_column="label")
    assert counted(describe_files(data)) == {"r.csv": (40, 40)}
    assert "20 unlabeled" in describe_files(data)
    rows = [{"text": f"t {n}", "label": ["a", "b"][: n % 3] or None} for n in range(42)]
    data = load(write_table(tmp_path / "r.jsonl", rows))
    assert "14 unlabeled" in describe_files(data)
    assert np.all(data.train.row_ids([0]) != data.train.row_ids([1]))


def test_a_limit_takes_labeled_examples_first(data):
    labeled = np.asarray(data.train.labels) >= 0
    drawn = draw_examples(data.train, 62, labeled)
    assert len(drawn) == 62 and int(np.sum(drawn.labels >= 0)) == 60
    assert draw_examples(data.train, 20, labeled).ids != drawn.ids[:20]
    assert min(draw_examples(data.train, 20, labeled).labels) == 0
    whole = subset(data.train, np.flatnonzero(labeled))
    same = draw_examples(whole, 20, np.ones(len(whole), bool))
    assert same.ids == draw_examples(whole, 20).ids
