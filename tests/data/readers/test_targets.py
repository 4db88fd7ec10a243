"""Numbers, label sets and pairs of texts from tables."""

import math

import numpy as np
import pytest

from fm.data.load import load
from fm.errors import UserError
from fm.study.task_types import task_type_of
from tests.data.helpers_files import column, reviews, write_table


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_number_to_predict(tmp_path, name):
    rows = [{"text": f"t {n}", "stars": n / 4 if n % 5 else ""} for n in range(60)]
    if name.endswith("jsonl"):
        rows = [row | {"stars": None if row["stars"] == "" else row["stars"]} for row in rows]
    data = load(write_table(tmp_path / name, rows), value_column="stars")
    assert data.classes == () and data.info["target"] == "value" and data.train.labels is None
    found = column(data.train, "values") | column(data.test, "values")
    for row in rows:
        expected = row["stars"]
        missing = expected in ("", None)
        assert math.isnan(found[row["text"]]) if missing else found[row["text"]] == expected
    assert not np.isnan(data.test.values(range(len(data.test)))).any()
    assert 4 <= len(data.test) <= 20
    changed = [row | {"stars": 9} for row in rows]
    again = load(write_table(tmp_path / name, changed), value_column="stars")
    assert again.info["fingerprint"] != data.info["fingerprint"]


SETS = [("a", "b"), ("b",), (), None, ("a", "c")]


def _set_rows(kind, count=60):
    rows = []
    for n in range(count):
        own = SETS[n % len(SETS)]
        row = {"text": f"t {n}"}
        if kind == "columns":
            row |= {name: "" if own is None else int(name in own) for name in "abc"}
        elif kind == "separator":
            row["label"] = "" if own is None else ("; ".join(own) or ";")
        else:
            row["label"] = own
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("kind", "name", "flags"),
    [
        ("columns", "r.csv", {"label_column": "a,b,c"}),
        ("separator", "r.tsv", {"label_separator": ";"}),
        ("lists", "r.jsonl", {}),
    ],
)
def test_label_sets(tmp_path, kind, name, flags):
    rows = _set_rows(kind)
    data = load(write_table(tmp_path / name, rows), **flags)
    assert data.classes == ("a", "b", "c") and data.info["target"] == "label_set"
    assert data.train.labels is None
    found = column(data.train, "label_sets") | column(data.test, "label_sets")
    for n, row in enumerate(rows):
        own = SETS[n % len(SETS)]
        indices = None if own is None else tuple("abc".index(name) for name in own)
        assert found[row["text"]] == indices
    assert None not in data.test.label_sets(range(len(data.test))) and len(data.test)
    used = {each for own in data.train.label_sets(range(len(data.train))) for each in own or ()}
    assert used == {0, 1, 2}


def test_a_class_of_one_example_in_label_sets_is_in_training(tmp_path):
    rows = [{"text": f"t {n}", "label": ["x"] if n % 2 else ["y"]} for n in range(60)]
    for n in range(60):
        own = [row | {"label": [*row["label"], "rare"]} if k == n else row
               for k, row in enumerate(rows)]  # fmt: skip
        data = load(write_table(tmp_path / "r.jsonl", own))
        rare = data.classes.index("rare")
        assert any(rare in each for each in data.train.label_sets(range(len(data.train))))
        if n > 12:
            break


def test_pairs_of_texts(tmp_path):
    rows = [row | {"hypothesis": f"second {n}"} for n, row in enumerate(reviews(40))]
    rows.append({"text": "lone", "label": "no", "hypothesis": " "})
    path = write_table(tmp_path / "r.csv", rows)
    data = load(path, second_text_column="hypothesis")
    found = column(data.train, "second_texts") | column(data.test, "second_texts")
    assert found == {f"{r['text']}\n\n{r['hypothesis']}": r["hypothesis"] for r in rows[:-1]}
    assert data.info["files"][0]["ignored"] == {"blank": 1}
    assert data.info["fingerprint"] != load(path).info["fingerprint"]


def test_rows_without_a_target_text_are_unlabeled(tmp_path):
    rows = [{"text": f"t {n}", "short": f"s {n}" if n % 2 else ""} for n in range(40)]
    data = load(write_table(tmp_path / "r.csv", rows), target_column="short")
    found = column(data.train, "targets") | column(data.test, "targets")
    assert found == {row["text"]: row["short"] for row in rows} and data.info["target"] == "text"
    assert all(data.test.targets(range(len(data.test))))
    task_type = task_type_of(data)
    assert task_type.max_labels(data) == 20 - len(data.test) and task_type.min_labels(data) == 1


BAD = {
    "text": ({"v": "many"}, {"value_column": "v"}, "--value_column=v: .*line 2: 'many' is not a"),
    "infinite": ({"v": "inf"}, {"value_column": "v"}, "--value_column=v: .*'inf' is not a number"),
    "missing": ({"w": 1}, {"value_column": "v"}, "--value_column=v: .*no column 'v'.*'text', 'w'"),
    "empty": ({"v": ""}, {"value_column": "v"}, "--value_column=v: .*no example with anything"),
    "two": ({"a": "2", "b": 1}, {"label_column": "a,b"}, "'a' is '2'; one of several label col"),
    "half": ({"a": "", "b": 1}, {"label_column": "a,b"}, "'a' is empty and others are not"),
    "absent": ({"a": 1}, {"label_column": "a,b"}, "--label_column=b: .* no column 'b'"),
    "second": ({"label": 1}, {"second_text_column": "s"}, "--second_text_column=s: .*'label'"),
    "both": (
        {"v": 1, "w": 2},
        {"value_column": "v", "label_column": "w"},
        "--label_column=w and --value_column=v: each says what to learn; give one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_columns_that_do_not_fit_are_refused(tmp_path, case):
    row, flags, says = BAD[case]
    path = write_table(tmp_path / "r.csv", [{"text": "a"} | row, {"text": "b"} | row])
    with pytest.raises(UserError, match=says) as raised:
        load(path, **flags)
    assert "\n" not in str(raised.value)


def test_lists_and_classes_in_two_files_are_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    write_table(path, [{"text": f"a {n}", "label": ["x"]} for n in range(9)])
    test = write_table(tmp_path / "test.csv", reviews(4))
    with pytest.raises(UserError, match=r"has one class and .* has a list of them|has a list"):
        load(str(path), test=test)
