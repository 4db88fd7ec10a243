"""Documents of spans are those that the way through memory reads, whatever the cuts."""

import datetime
import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fm.data.readers.examples import ReadLog, TextFormat
from fm.data.readers.text import read_text_file
from fm.data.streaming import documents
from fm.data.streaming.documents import read_documents
from fm.data.streaming.sources import cut_into_spans, plan_text
from fm.errors import UserError

TEXTS = [f"text {n}, über ☃ {'word ' * (n % 7)}end" for n in range(300)]
LABELS = ["good" if n % 3 else "" for n in range(300)]
FORM = TextFormat(label_column="")


def streamed(path, part_bytes=10**9, form=FORM):
    """Texts of all parts, in order, and counts."""
    plan, counts = plan_text(path, form), Counter()
    parts = cut_into_spans(plan, part_bytes)
    found = [
        each
        for part in parts
        for span in part
        for each in read_documents(span, plan.columns, counts)
    ]
    return [each.text for each in found], [each.labeled for each in found], counts, len(parts)


def in_memory(path, form=FORM):
    log = ReadLog(path.parent, path.name, path.parent)
    return [example.content for example in read_text_file(path, form, log)]


def as_csv(texts, labels, delimiter=","):
    rows = [
        delimiter.join('"' + each.replace('"', '""') + '"' for each in row)
        for row in zip(texts, labels, strict=True)
    ]
    return "\n".join([delimiter.join(["text", "label"]), *rows]) + "\n"


def write_files(folder):
    """Writes the texts in every format; returns the paths."""
    multiline = [text.replace(", ", ',\n"quoted"\r\n') for text in TEXTS]
    objects = [
        json.dumps({"text": t, "label": y or None}) for t, y in zip(TEXTS, LABELS, strict=True)
    ]
    contents = {
        "lines.txt": "\n".join(TEXTS),
        "crlf.txt": "\r\n".join(TEXTS) + "\r\n",
        "bom.txt": "\ufeff" + "\n".join(TEXTS),
        "paragraphs.txt": "\n \n\n".join(text.replace(", ", "\n") for text in TEXTS),
        "rows.jsonl": "\n\n".join(objects),
        "rows.csv": as_csv(multiline, LABELS),
        "rows.tsv": as_csv(TEXTS, LABELS, "\t"),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, newline="")
        (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    table = pa.table({"text": TEXTS, "label": LABELS})
    pq.write_table(table, folder / "rows.parquet", row_group_size=40)
    for name, make in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with make(folder / name, table.schema) as writer:
            writer.write_table(table, 40)
    return sorted(each for each in folder.iterdir())


def test_texts_are_those_read_into_memory(tmp_path):
    paths = write_files(tmp_path)
    assert len(paths) == 17
    for path in paths:
        expected = in_memory(path)
        assert len(expected) == 300, path
        for part_bytes in (10**9, 700, 97):
            found, labeled, counts, num_parts = streamed(path, part_bytes)
            assert found == expected, (path, part_bytes)
            assert not any(labeled) and not counts
            whole = path.suffix == ".gz" or path.name == "stream.arrow"
            assert (num_parts > 5) == (part_bytes < 1000 and not whole), (path, num_parts)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "file.arrow"])
def test_labels_are_seen(tmp_path, name):
    write_files(tmp_path)
    _, labeled, _, _ = streamed(tmp_path / name, 700, TextFormat())
    assert labeled == [bool(each) for each in LABELS]


def test_blank_texts_are_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,x\n" ",x\n,\nb,y\n')
    texts, _, counts, _ = streamed(path)
    assert texts == ["a", "b"] and counts == {"blank": 2}


def test_a_long_document_is_cut_at_white_space(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_CHARS", 20)
    text = " ".join(f"w{n}" for n in range(40))
    for name, content in (("a.txt", text), ("a.jsonl", json.dumps({"text": text}))):
        (tmp_path / name).write_text(content)
        texts, _, counts, _ = streamed(tmp_path / name)
        assert len(texts) > 5 and all(len(each) <= 20 for each in texts)
        assert " ".join(" ".join(texts).split()) == text
        assert counts["cut"] == (1 if name == "a.jsonl" else 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 7}', "line 2: 'text' is not a string, but 7"),
        ("a.jsonl", b'{"txt": "a"}', "no column 'text'; it has: 'txt'"),
        ("a.csv", b"text,label\na,b\nc\n", "line 3: expected 2 columns"),
        ("a.csv", b"txt,label\na,b\n", "no column 'text'; it has: 'txt', 'label'"),
        ("a.csv", b'text,label\n"a,b\n', "line 2: "),
        ("a.txt", b"good\n\xff\xfe bad\n", "is not UTF-8 text"),
        ("a.parquet", b"PAR1 noise", "is not a readable Parquet file"),
        ("a.txt.gz", b"noise", "cannot read"),
    ],
)
def test_what_is_damaged_is_told_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        streamed(tmp_path / name, form=TextFormat())
    assert name in str(caught.value)


def test_a_column_that_holds_no_text(tmp_path):
    pq.write_table(pa.table({"text": [datetime.date(2026, 1, 1)]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the column 'text' holds date32"):
        streamed(tmp_path / "a.parquet")
