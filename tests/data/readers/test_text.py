import json
import os

import pytest

from fm.data.load import load
from fm.data.readers.text import read_text_file
from fm.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(count=20):
    return [(f"text number {number}", ("no", "yes")[number % 2]) for number in range(count)]


def examples(dataset):
    """All (text, class name or None), sorted."""
    found = []
    for split in (dataset.train, dataset.test):
        labels = [None] * len(split)
        if split.labels is not None:
            labels = [dataset.classes[label] for label in split.labels]
        found += zip(split.inputs(range(len(split))), labels, strict=True)
    return sorted(found)


def test_csv(tmp_path):
    lines = [f'"{text}, with ""quotes"" and\na line",{label}' for text, label in rows()]
    path = write(tmp_path / "data.csv", "\ufefftext,label\r\n" + "\r\n".join(lines))
    dataset = load(path)
    assert dataset.classes == ("no", "yes") and dataset.modality == "text"
    assert examples(dataset) == sorted(
        (f'{text}, with "quotes" and\na line', label) for text, label in rows()
    )
    assert set(dataset.test.labels) == set(dataset.train.labels) == {0, 1}
    assert dataset.info["split"] == "by hash"


def test_csv_with_named_columns(tmp_path):
    content = "id,body,stars\n" + "".join(f"{i},text {i},{10 - i % 3}\n" for i in range(20))
    path = write(tmp_path / "data.csv", content)
    dataset = load(path, text_column="body", label_column="stars")
    assert dataset.classes == ("8", "9", "10"), "whole numbers go by value"
    assert load(path, text_column="body", label_column="").classes == ()


def test_csv_of_texts_alone_is_unlabelled(tmp_path):
    path = write(tmp_path / "data.csv", "text\n" + "".join(f"line {i}\n" for i in range(20)))
    assert load(path).train.labels is None


def test_jsonl(tmp_path):
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows()]
    dataset = load(write(tmp_path / "data.jsonl", "\n\n".join(lines)))
    assert examples(dataset) == sorted(rows())


def test_txt_by_paragraph_and_by_line(tmp_path):
    paragraphs = [f"first {number}\nsecond" for number in range(10)]
    dataset = load(write(tmp_path / "a.txt", "\n \n\n".join(paragraphs)))
    assert [text for text, _ in examples(dataset)] == paragraphs
    dataset = load(write(tmp_path / "b.txt", "one\ntwo\nthree\n"))
    assert [text for text, _ in examples(dataset)] == ["one", "three", "two"]
    assert len(dataset.train) and len(dataset.test)


def test_unicode_survives(tmp_path):
    texts = ["naïve 🎬 映画", "tab\there", "nul\0byte"]
    dataset = load(write(tmp_path / "a.txt", "\n".join(texts)))
    assert sorted(text for text, _ in examples(dataset)) == sorted(texts)


def test_changed_content_is_read_again(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo")
    before = load(path)
    assert load(path).info["fingerprint"] == before.info["fingerprint"]
    write(tmp_path / "a.txt", "one\ntwo\nthree")
    assert len(examples(load(path))) == 3


GOOD = '{"text": "a", "label": "x"}\n'
ERRORS = {
    "empty.txt": ("", "empty.txt is empty"),
    "blank.csv": (" \n\n", "blank.csv is empty"),
    "bytes.txt": (b"ab\xff", "not UTF-8 text: byte 2"),
    "table.xlsx": ("x", r"unknown ending '\.xlsx'; accepted: \.txt, \.jsonl, \.csv"),
    "bare": ("x", r"unknown ending ''; accepted: \.txt"),
    "notext.csv": ("body,label\na,b\n", "no column 'text'.*it has: 'body', 'label'"),
    "nolabel.csv": ("text,stars\na,b\n", "no column 'label'.*it has: 'text', 'stars'"),
    "header.csv": ("text,label\n", "holds no example"),
    "short.csv": ("text,label\na,x\nb\n", "line 3: expected 2 columns"),
    "long.csv": ("text,label\na,x,y\n", "line 2: expected 2 columns"),
    "unlabelled.csv": ("text,label\na,x\nb,\n", "line 3: 'label' is missing"),
    "quote.csv": ('text,label\n"a" b,x\n', "line 2: "),
    "single.csv": ("text,label\na,x\nb,x\nc,y\n", "label 'y' has only one example"),
    "copies.csv": ("text,label\na,x\nb,x\nc,y\nc,y\n", "label 'y' has only one example"),
    "alike.csv": ("text,label\na,x\nb,x\n", "label 'x' is the only one"),
    "one.txt": ("just one", "only one example"),
    "json.jsonl": (GOOD + "{text}\n", "line 2: not JSON"),
    "list.jsonl": (GOOD + "[1]\n", "line 2: expected a JSON object"),
    "number.jsonl": (GOOD + '{"text": 1, "label": "x"}\n', "line 2: 'text' is missing or not"),
    "null.jsonl": (GOOD + '{"text": "b", "label": null}\n', "line 2: 'label' is missing"),
    "keys.jsonl": ('{"body": "a"}\n', "line 1: no column 'text'.*it has: 'body'"),
    "half.jsonl": (GOOD + r'{"text": "\ud800", "label": "x"}', "line 2: .*surrogate"),
    "deep.jsonl": ("[" * 100_000 + "\n", "line 1: not JSON"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, tmp_path, empty_cache):
    content, expected = ERRORS[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=expected) as raised:
        load(path)
    assert name in str(raised.value) and "\n" not in str(raised.value)
    assert not list(empty_cache.rglob("*.array_record*")), "nothing half-written"


def test_unreadable(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "one\ntwo")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied"):
        load(path)


def test_a_line_of_csv_ends_where_files_do_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\none\u2028two\x0bthree\x85four,a\n", encoding="utf-8")
    (example,) = read_text_file(path, "text", "label")
    assert example.content == "one\u2028two\x0bthree\x85four" and example.label == "a"


def test_a_name_of_a_class_is_one_line(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f'text {n},"a\n b"\ntext {n} x,c\n' for n in range(30)]
    path.write_text("text,label\n" + "".join(rows))
    dataset = load(str(path))
    assert dataset.classes == ("a b", "c")
    for split in (dataset.train, dataset.test):
        texts = split.inputs(range(len(split)))
        assert [int(text.endswith("x")) for text in texts] == split.labels.tolist()


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl", "a.zip", "a.tar.gz", "a.conll"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="a pipe, socket or device, not a file"):
        load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x.png", "x.txt", "x.wav", "x.gif"])
def test_nor_is_one_among_files(tmp_path, name):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.txt").write_text(label)
    os.mkfifo(tmp_path / "a" / name)
    with pytest.raises(UserError, match="a pipe, socket or device, not a file"):
        load(str(tmp_path))


def test_devices_and_loops(tmp_path):
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for path in ("/dev/zero", "/dev/null", tmp_path / "loop.csv"):
        with pytest.raises(UserError):
            load(str(path))


def test_a_file_whose_name_is_no_unicode(tmp_path):
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"n\xff.csv"))  # noqa: PTH118
    with open(path, "w") as file:  # noqa: PTH123
        file.write("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(40)))
    assert load(path).classes == ("0", "1")


def test_a_label_with_half_a_surrogate_pair(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "\\ud800"}\n')
    with pytest.raises(UserError, match="'label' holds half a surrogate pair"):
        read_text_file(path, "text", "label")
