"""Reads the documents of a span of a file one by one, whatever the size of the file.

A span is a range of a file: bytes of text, row groups of Parquet, record batches of Arrow, examples
of TFDS. What reads it imports no more than its format takes, since each process that tokenizes
does.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
import pathlib
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fm.errors import UserError

# A longer document is cut at white space, so that one without end does not fill the memory.
MAX_DOCUMENT_CHARS = 2**22
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Span:
    """A range of a file.

    Attributes:
        path: of the file; of TFDS, the prepared folder.
        kind: "lines", "paragraphs" or "file" (text), "jsonl", "csv", "tsv", "tsv_plain" (whose
            quotation marks are text), "parquet", "arrow" or "tfds".
        start: first byte, row group, record batch or example.
        end: one past the last; None for the end of the file.
        labeled: whether its folder is a class.
        columns: of a table of text, in order.
    """

    path: str
    kind: str
    start: int = 0
    end: int | None = None
    labeled: bool = False
    columns: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Span:
        """Inverse of `to_dict`."""
        return cls(**{**saved, "columns": tuple(saved["columns"])})


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns are read, and the encoding of text.

    Attributes:
        text: column of the text.
        label: column that says whether a row is labeled; "" for none.
        encoding: of text files.
    """

    text: str = "text"
    label: str = "label"
    encoding: str = "utf-8"


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and whether it has a label."""

    text: str
    labeled: bool


def read_documents(span: Span, columns: Columns, counts: Counter[str]) -> Iterator[Document]:
    """Yields the documents of a span that are not blank.

    Args:
        span: what to read.
        columns: of tables.
        counts: "blank" texts of tables, and documents that were "cut", are counted here.

    Raises:
        UserError: the file is not what its ending says; the message names the place.
    """
    read = _READERS[span.kind]
    try:
        for text, labeled in read(span, columns):
            if text is None or not text.strip():
                counts["blank"] += 1
            elif len(text) <= MAX_DOCUMENT_CHARS:
                yield Document(text, labeled)
            else:
                counts["cut"] += 1
                for piece in _pieces(text):
                    yield Document(piece, labeled)
    except UnicodeDecodeError as error:
        name = "UTF-8" if columns.encoding.lower() in ("utf-8", "utf8") else columns.encoding
        raise UserError(
            f"{span.path} is not {name} text: {error.reason}{_place(span)}; --encoding=NAME reads "
            "another encoding, such as cp1252 or utf-16"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {span.path}: {reason}") from error


def _place(span: Span) -> str:
    return f" in or after byte {span.start:,}" if span.start else ""


def _pieces(text: str) -> Iterator[str]:
    """Cuts a text before white space into pieces of at most `MAX_DOCUMENT_CHARS`."""
    start = 0
    while len(text) - start > MAX_DOCUMENT_CHARS:
        end = start + MAX_DOCUMENT_CHARS
        space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        end = space if space > start else end
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


class _Range(io.RawIOBase):
    """Bytes `start` to `end` of a file."""

    def __init__(self, path: str, start: int, end: int | None):
        self._file = pathlib.Path(path).open("rb", buffering=0)  # noqa: SIM115
        self._file.seek(start)
        self._left = math.inf if end is None else end - start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = int(min(len(buffer), self._left))
        count = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_text(span: Span, encoding: str) -> io.TextIOWrapper:
    """Returns the text of a span of bytes, with "\\n" line ends and without a byte order mark."""
    raw: Any
    if span.path.lower().endswith(".gz"):
        raw = gzip.open(span.path)  # noqa: SIM115
    else:
        raw = io.BufferedReader(_Range(span.path, span.start, span.end), 2**20)
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8") and span.start == 0:
        encoding = "utf-8-sig"
    return io.TextIOWrapper(raw, encoding)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """Yields lines; one that is too long comes in pieces that end before white space."""
    kept = ""
    while line := file.readline(MAX_DOCUMENT_CHARS - len(kept)):
        line, kept = kept + line, ""
        if not line.endswith("\n") and len(line) >= MAX_DOCUMENT_CHARS:
            space = line.rfind(" ")
            if space > 0:
                line, kept = line[:space], line[space:]
        yield line
    if kept:
        yield kept


def _read_lines(span: Span, columns: Columns) -> Iterator[tuple[str, bool]]:
    with _open_text(span, columns.encoding) as file:
        for line in _lines(file):
            if line.strip():
                yield line.strip(), span.labeled


def _read_paragraphs(span: Span, columns: Columns) -> Iterator[tuple[str, bool]]:
    held: list[str] = []
    size = 0
    with _open_text(span, columns.encoding) as file:
        for line in _lines(file):
            if held and (not line.strip() or size > MAX_DOCUMENT_CHARS):
                yield "".join(held).strip(), span.labeled
                held, size = [], 0
            if line.strip():
                held.append(line)
                size += len(line)
    if held:
        yield "".join(held).strip(), span.labeled


def _read_file(span: Span, columns: Columns) -> Iterator[tuple[str, bool]]:
    with _open_text(span, columns.encoding) as file:
        while text := file.read(MAX_DOCUMENT_CHARS):
            yield text.strip(), span.labeled


def _read_json_lines(span: Span, columns: Columns) -> Iterator[tuple[str | None, bool]]:
    with _open_text(span, columns.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = _where(span, number)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected a JSON object like {{{columns.text!r}: ...}}")
            yield _text(row.get(columns.text), where, columns), _is_label(row.get(columns.label))


def _where(span: Span, number: int) -> str:
    after = f" after byte {span.start:,}" if span.start else ""
    return f"{span.path}, line {number:,}{after}"


def _read_separated(span: Span, columns: Columns) -> Iterator[tuple[str, bool]]:
    # The default limit, 131,072 characters, is too short for a book in a column.
    csv.field_size_limit(2**31 - 1)
    text = span.columns.index(columns.text)
    label = span.columns.index(columns.label) if columns.label in span.columns else None
    quoting: Any = csv.QUOTE_NONE if span.kind == "tsv_plain" else csv.QUOTE_MINIMAL
    delimiter = "," if span.kind == "csv" else "\t"
    with _open_text(span, columns.encoding) as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter, quoting=quoting)
        try:
            for number, row in enumerate(reader):
                if not row or (number == 0 and span.start == 0):  # the names of the columns
                    continue
                if len(row) != len(span.columns):
                    raise UserError(
                        f"{_where(span, reader.line_num)}: expected {len(span.columns)} columns as "
                        "in the header"
                    )
                yield row[text], label is not None and _is_label(row[label])
        except csv.Error as error:
            raise UserError(f"{_where(span, reader.line_num)}: {error}") from error


def _read_parquet(span: Span, columns: Columns) -> Iterator[tuple[str | None, bool]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(span.path, pre_buffer=False) as file:
            names = [name for name in file.schema_arrow.names if name in _named(columns)]
            end = file.num_row_groups if span.end is None else span.end
            groups = list(range(span.start, end))
            classes = _classes(file.schema_arrow, columns)
            batches = file.iter_batches(_BATCH, row_groups=groups, columns=names, use_threads=False)
            for batch in batches:
                yield from _batch_rows(batch, span, columns, classes)
    except (pa.ArrowException, ValueError) as error:
        raise _unreadable(span, error) from error


def _read_arrow(span: Span, columns: Columns) -> Iterator[tuple[str | None, bool]]:
    import pyarrow as pa

    try:
        with pa.OSFile(span.path) as file:
            if is_arrow_file(span.path):
                opened = pa.ipc.open_file(file)
                end = opened.num_record_batches if span.end is None else span.end
                batches = (opened.get_batch(n) for n in range(span.start, end))
            else:
                opened = pa.ipc.open_stream(file)
                batches = iter(opened)
            classes = _classes(opened.schema, columns)
            for batch in batches:
                # Damaged offsets would be followed out of the buffer.
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _BATCH):
                    yield from _batch_rows(batch.slice(start, _BATCH), span, columns, classes)
    except (pa.ArrowException, ValueError) as error:
        raise _unreadable(span, error) from error


def is_arrow_file(path: str) -> bool:
    """Returns whether an Arrow file has an index of its batches, rather than being a stream."""
    with pathlib.Path(path).open("rb") as file:
        return file.read(6) == b"ARROW1"


def _named(columns: Columns) -> tuple[str, ...]:
    return (columns.text, columns.label)


def _classes(schema: Any, columns: Columns) -> list[str] | None:
    """Returns the names of the classes, where `datasets` stored them as numbers."""
    from fm.data.readers.arrow import class_names

    return class_names(schema.metadata).get(columns.label)


def _batch_rows(
    batch: Any, span: Span, columns: Columns, classes: list[str] | None
) -> Iterator[tuple[str | None, bool]]:
    texts = batch.column(columns.text).to_pylist()
    labels = [None] * len(texts)
    if columns.label in batch.schema.names:
        labels = batch.column(columns.label).to_pylist()
    for text, label in zip(texts, labels, strict=True):
        withheld = classes is not None and isinstance(label, int) and label < 0
        yield _text(text, span.path, columns), _is_label(label) and not withheld


def _unreadable(span: Span, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    kind = span.kind.capitalize()
    return UserError(f"{span.path} is not a readable {kind} file: {reason}")


def _read_tfds(span: Span, columns: Columns) -> Iterator[tuple[str | None, bool]]:
    from fm.data import tfds_safety

    with tfds_safety.damage_as_user_error(span.path):
        builder = tfds_safety.open_prepared(pathlib.Path(span.path))
        source: Any = builder.as_data_source("train")
        end = len(source) if span.end is None else span.end
        for start in range(span.start, end, _BATCH):
            for row in source.__getitems__(list(range(start, min(start + _BATCH, end)))):
                text, label = row[columns.text], row.get(columns.label)
                if isinstance(text, bytes):
                    text = text.decode("utf-8", "replace")
                labeled = label is not None and _is_label(label) and label != -1
                yield _text(text, span.path, columns), bool(labeled)


def _text(value: Any, where: str, columns: Columns) -> str | None:
    """Returns a text as it stands, None if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {columns.text!r} is not a string, but {value!r:.60}")
    return value


def _is_label(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return bool(value.strip()) if isinstance(value, str) else True


_READERS: dict[str, Any] = {
    "lines": _read_lines,
    "paragraphs": _read_paragraphs,
    "file": _read_file,
    "jsonl": _read_json_lines,
    "csv": _read_separated,
    "tsv": _read_separated,
    "tsv_plain": _read_separated,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "tfds": _read_tfds,
}
