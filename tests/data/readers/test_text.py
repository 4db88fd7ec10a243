import gzip
import json
import os
import unicodedata

import pytest

from fm.data.load import load
from fm.data.prepare import tell_once
from fm.data.readers.examples import ReadLog, TextFormat
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
            labels = [dataset.classes[label] if label >= 0 else None for label in split.labels]
        found += zip(split.inputs(range(len(split))), labels, strict=True)
    return sorted(found, key=str)


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
    assert len(dataset.train) == 3 and not len(dataset.test) and dataset.info["split"] == "none"


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
    "float.jsonl": (GOOD + '{"text": "b", "label": 1.5}\n', "line 2: 'label' is the decimal num"),
    "set.jsonl": (GOOD + '{"text": "b", "label": ["x"]}\n', "line 1: .* a list in other rows"),
    "object.jsonl": (GOOD + '{"text": "b", "label": {"x": 1}}\n', "line 2: 'label' is an object"),
    "quote.csv": ('text,label\n"a" b,x\n', "line 2: "),
    "single.csv": ("text,label\na,x\nb,x\nc,y\n", "label 'y' has only one example"),
    "rating.csv": ("text,label\na,4.5\nb,4.5\nc,3.7\n", "'3.7' has only.*--value_column=label pre"),
    "copies.csv": ("text,label\na,x\nb,x\nc,y\nc,y\n", "label 'y' has only one example"),
    "alike.csv": ("text,label\na,x\nb,x\n", "label 'x' is the only one"),
    "one.txt": ("just one", "only one example"),
    "json.jsonl": (GOOD + "{text}\n", "line 2: not JSON"),
    "list.jsonl": (GOOD + "[1]\n", "line 2: expected a JSON object"),
    "number.jsonl": (GOOD + '{"text": 1, "label": "x"}\n', "line 2: 'text' is missing or not"),
    "keys.jsonl": ('{"body": "a"}\n', "keys.jsonl has no column 'text'; it has: 'body'"),
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
    (example,) = read_text_file(path, TextFormat(), ReadLog(path, path.name, tmp_path))
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
        read_text_file(path, TextFormat(), ReadLog(path, path.name, tmp_path))


def test_a_tsv_and_what_is_compressed(tmp_path):
    table = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows())
    assert examples(load(write(tmp_path / "a.tsv", table))) == sorted(rows())
    for name, content in (
        ("b.csv.gz", table.replace("\t", ",")),
        ("b.TSV.GZ", table),
        ("b.jsonl.gz", "".join(f'{{"text": "{t}", "label": "{n}"}}\n' for t, n in rows())),
    ):
        path = write(tmp_path / name, gzip.compress(content.encode()))
        assert examples(load(path)) == sorted(rows())
    path = write(tmp_path / "c.txt.gz", gzip.compress(b"one\ntwo\nthree"))
    assert len(examples(load(path))) == 3


@pytest.mark.parametrize(
    ("field", "text"),
    [('"a, ""b""\tand\nc"', 'a, "b"\tand\nc'), ('6" pipe', '6" pipe'), ('"so" it', '"so" it')],
)
def test_quotes_of_a_tsv(tmp_path, field, text):
    lines = "".join(f"{n} x\t{n % 2}\n" for n in range(20))
    dataset = load(write(tmp_path / "a.tsv", f"text\tlabel\n{field}\t0\n{lines}"))
    assert (text, "0") in examples(dataset) and len(examples(dataset)) == 21


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "cp1252", "gb18030", "shift_jis"])
@pytest.mark.parametrize("ending", ["csv", "txt", "conll"])
def test_other_encodings(tmp_path, name, ending):
    word = "naïve – film" if name == "cp1252" else "映画"
    content = {
        "csv": "text,label\n" + "".join(f"{word} {n},{n % 2}\n" for n in range(20)),
        "txt": "".join(f"{word} {n}\n" for n in range(20)),
        "conll": "".join(f"{word.split()[0]} B-x\nn{n} O\n\n" for n in range(20)),
    }[ending]
    path = write(tmp_path / f"a.{ending}", content.encode(name))
    with pytest.raises(UserError, match=r"is not UTF-8 text: .*--encoding=.*(utf-16|cp1252)"):
        load(path)
    texts = [text for text, _ in examples(load(path, encoding=name))]
    assert len(texts) == 20 and all(text.startswith(word.split()[0]) for text in texts)
    with pytest.raises(UserError, match=r"a\..* is not ascii text: (byte|it holds NUL)"):
        load(path, encoding="ascii")


@pytest.mark.parametrize("name", ["", "klingon", "hex", "a\0b"])
def test_an_encoding_that_is_none(tmp_path, name):
    with pytest.raises(UserError, match=r"--encoding=.*takes the name of a text encoding"):
        load(write(tmp_path / "a.txt", "one\ntwo"), encoding=name)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xlsx", b"PK\3\4", r"unknown ending '\.xlsx'; accepted: \.txt.*\.zip.*folders"),
        ("a.parquet", b"PAR1", "is not a readable Parquet file"),
        ("a.csv", b"PAR1\xff", r"it is a Parquet file, which must end in \.parquet"),
        ("a.csv.bz2", b"BZh", r"unknown ending '\.bz2'"),
        ("a.gz", gzip.compress(b"a", mtime=0), r"unknown ending '\.gz'"),
        ("a.csv", b"PK\3\4\xff", "not UTF-8 text: byte 4 is invalid; it is a zip file"),
        ("a.csv", gzip.compress(b"a", mtime=0), r"it is a gzip file, which must end in \.gz"),
        ("a.csv.gz", b"text,label", "is not a readable gzip file"),
        ("a.csv.gz", gzip.compress(b"text" * 999, mtime=0)[:-9], "is not a readable gzip file"),
        ("a.csv", b"text;label\na;b\n", "columns are separated by commas in .csv"),
        ("a.csv", b"text,text,label\na,b,c\n", "2 columns are called 'text'"),
        ("a.csv", b"text\na\nb\n", "no column 'stars'"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, content, expected):
    with pytest.raises(UserError, match=expected) as raised:
        load(
            write(tmp_path / name, content), label_column="stars" if b"\nb" in content else "label"
        )
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_a_gzip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("fm.data.readers.text._ALWAYS_ALLOWED_BYTES", 2**20)
    path = write(tmp_path / "a.txt.gz", gzip.compress(bytes(2**21)))
    with pytest.raises(UserError, match=r"a\.txt\.gz would unpack to over 1 MB"):
        load(path)


@pytest.mark.parametrize("missing", [0, 9, 59])
@pytest.mark.parametrize("row", [{}, {"label": None}, {"other": 1}, {"label": " "}])
def test_a_json_line_without_label_is_unlabeled(tmp_path, missing, row):
    lines = [{"text": f"text {n}", "label": n % 2} for n in range(60)]
    lines[missing] = {"text": "bare"} | row
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert ("bare", None) in examples(load(path))
    assert load(path, label_column="").classes == ()


def test_json_lines_without_any_label(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(f'{{"text": "t{n}"}}\n' for n in range(20)))
    assert load(path).classes == ()
    write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "stars": 1}\n')
    with pytest.raises(
        UserError, match=r"no column 'label'; it has: 'text', 'stars' .*--label_column="
    ):
        load(path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("classes", ["ab", "abc"])
def test_a_class_of_blank_texts_is_told(tmp_path, capsys, ending, classes):
    own = [
        (" " if n % len(classes) == 0 else f"t{n}", classes[n % len(classes)]) for n in range(30)
    ]
    if ending == "jsonl":
        content = "\n".join(json.dumps({"text": text, "label": label}) for text, label in own)
    else:
        comma = "," if ending == "csv" else "\t"
        content = f"text{comma}label\n" + "".join(f"{t}{comma}{label}\n" for t, label in own)
    path = write(tmp_path / f"{classes}.{ending}", content)
    said = f"{30 // len(classes)} of 30 texts are blank and left out, among them all of label 'a'"
    if len(classes) == 2:
        with pytest.raises(UserError, match=f"{said}; texts of at least two labels"):
            load(path)
    else:
        assert load(path).classes == ("b", "c")
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "count", "unit"),
    [
        ("\n".join([*(f"l{n}" for n in range(30)), "", *(f"m{n}" for n in range(30))]), 60, "line"),
        ("title\n\n" + "\n".join(f"line {n}" for n in range(40)), 41, "line"),
        ("\n\n".join(f"a {n}\nb" for n in range(3)), 3, "paragraph"),
        ("\n\n\n".join("\n".join(f"{d} {n}" for n in range(30)) for d in range(12)), 12, "para"),
    ],
)
def test_lines_and_paragraphs_are_told_apart(tmp_path, capsys, content, count, unit):
    path = write(tmp_path / "a.txt", content)
    assert len(examples(load(path))) == count
    assert f"read as {count} examples, one a {unit}" in capsys.readouterr().err


def test_tabs_in_every_line_of_a_txt_are_told(tmp_path, capsys):
    load(write(tmp_path / "a.txt", "".join(f"ham\ttext {n}\n" for n in range(9))))
    assert "every line has 2 columns separated by tabs" in capsys.readouterr().err


def test_labels_and_columns_in_two_unicode_forms(tmp_path, capsys):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    content = f"text,{forms[1]}\n" + "".join(f"t{n},{(*forms, 'bar')[n % 3]}\n" for n in range(60))
    dataset = load(write(tmp_path / "a.csv", content), label_column=forms[0])
    assert dataset.classes == ("bar", forms[0])
    assert "2 spellings of the label 'café'" in capsys.readouterr().err


def test_what_was_told_is_told_by_the_next_process_too(tmp_path, capsys):
    path = write(tmp_path / "a.txt", "one\n\ntwo\n\nthree")
    for _ in range(2):
        load(path)
        assert capsys.readouterr().err.count("one a paragraph") == 1
        tell_once.cache_clear()
    load(path)
    load(path)
    assert capsys.readouterr().err.count("one a paragraph") == 1
