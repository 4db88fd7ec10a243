"""Reads examples from .txt, .jsonl, .csv and .tsv files, plain or compressed by gzip."""

import codecs
import contextlib
import csv
import dataclasses
import gzip
import io
import json
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

from fm.errors import UserError
from fm.files import read_bytes

TEXT_EXTENSIONS = (".txt", ".jsonl", ".csv", ".tsv")
GZIP_EXTENSION = ".gz"
ACCEPTED_TEXT_FILES = f"{', '.join(TEXT_EXTENSIONS)} (each also with {GZIP_EXTENSION})"

# Of an uncompressed file, as for archives: real text rarely shrinks to a hundredth.
_MAX_RATIO, _ALWAYS_ALLOWED_BYTES = 200, 2**30
# A file of few, long blocks is a list of lines in which some are blank, not a list of paragraphs.
_MIN_PARAGRAPHS, _MAX_LINES_PER_PARAGRAPH = 10, 10
_SAMPLE_BYTES, _MIN_CONLL_LINES = 2**16, 3
# Also of schemes that `fm.data.readers.conll` refuses by name, such as IOBES.
_ENTITY_TAG = re.compile(r"O|[BIELSU]-\S+")
_FORMATS_BY_FIRST_BYTES = {
    b"\x1f\x8b": "a gzip file, which must end in .gz",
    b"PK\x03\x04": "a zip file (as .xlsx files are)",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite file",
}


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How text files are read: their encoding, and the names of their columns.

    Attributes:
        text_column: the CSV or TSV column or JSON key of the text.
        label_column: that of the label; "" for unlabeled data.
        target_column: that of a target text, instead of a label; "" for none.
        encoding: a name that Python's `codecs` knows.
        group_column: that of the group that an example belongs to; "" for none.
    """

    text_column: str = "text"
    label_column: str = "label"
    target_column: str = ""
    encoding: str = "utf-8"
    group_column: str = ""

    @property
    def second_column(self) -> str:
        """Returns the column of the target or label; "" for none."""
        return self.target_column or self.label_column


@dataclasses.dataclass(frozen=True)
class Example:
    """An example from the user's files: its text or media path, its label and its group.

    Attributes:
        content: its text; or the file (or folder) with its image, sound or clip.
        label: None if unlabeled.
        group: which no two splits may share, e.g. a speaker; None for a split by content.
        item_group: for statistics by group; both splits may have it.
    """

    content: str | pathlib.Path
    label: str | None = None
    group: str | None = None
    item_group: str | None = None


def text_extension(path: pathlib.Path) -> str:
    """Returns which of `TEXT_EXTENSIONS` a file has, before .gz if it has that; "" for none."""
    name = path.name.lower().removesuffix(GZIP_EXTENSION)
    return next((each for each in TEXT_EXTENSIONS if name.endswith(each)), "")


def read_text_file(path: pathlib.Path, form: TextFormat, notices: list[str]) -> list[Example]:
    """Returns the non-blank examples of a .txt, .jsonl, .csv or .tsv file, also with .gz.

    Args:
        path: a .txt file (unlabeled; paragraphs separated by blank lines, or one example per line
            if there are none or few), a .jsonl, a .csv or a .tsv file.
        form: its encoding and columns.
        notices: a line is added for each choice that the file left open.

    Raises:
        UserError: the file does not have the format of its extension; the message names the line.
    """
    extension = text_extension(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a pipe, socket or device, not a file")
    if not extension:
        raise UserError(
            f"{path}: unknown ending {path.suffix!r}; accepted: {ACCEPTED_TEXT_FILES}, .conll and "
            ".bio files, and archives (.zip, .tar, .tar.gz) and folders of these or of media"
        )
    content = read_text(path, form.encoding)
    if not content.strip():
        raise UserError(f"{path} is empty")
    if extension == ".txt":
        return _parse_txt(path, content, notices)
    parse = _parse_jsonl if extension == ".jsonl" else _parse_table
    examples = parse(path, content, form, notices)
    return _without_blank_texts(path, examples, form, notices)


def read_text(path: pathlib.Path, encoding: str = "utf-8") -> str:
    """Returns a file's text with "\\n" line ends and without a byte order mark; reads .gz too.

    Raises:
        UserError: it cannot be read, or is not text in this encoding.
    """
    is_utf8 = _codec_name(encoding) == "utf-8"
    try:
        content = _read_uncompressed(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    name = "UTF-8" if is_utf8 else encoding
    try:
        text = content.decode("utf-8-sig" if is_utf8 else encoding).removeprefix("\ufeff")
        if not is_utf8:
            text.encode()  # some codecs let half a surrogate pair pass
    except UnicodeError as error:
        decoding = isinstance(error, UnicodeDecodeError)
        place = f"byte {error.start} is invalid" if decoding else str(error)
        raise UserError(f"{path} is not {name} text: {place}{_advice(content)}") from error
    if text.count("\0") > len(text) // 4:
        raise UserError(f"{path} is not {name} text: it holds NUL characters{_advice(content)}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def looks_like_conll(path: pathlib.Path) -> bool:
    """Returns whether a text file's lines are columns, of which the last holds entity tags."""
    if not path.is_file():
        return False
    compressed = path.name.lower().endswith(GZIP_EXTENSION)
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            sample = file.read(_SAMPLE_BYTES).decode("utf-8-sig", "replace")
    except (OSError, EOFError, zlib.error):
        return False
    return _is_conll(sample.replace("\r", "\n").rpartition("\n")[0] or sample)


def check_encoding(encoding: str) -> None:
    """Raises UserError unless Python can decode text of this encoding."""
    _codec_name(encoding)


def to_nfc(name: str) -> str:
    """Returns a name in Unicode NFC, so that composed and decomposed spellings are equal."""
    return unicodedata.normalize("NFC", name)


def _codec_name(encoding: str) -> str:
    try:
        with contextlib.suppress(UnicodeError):
            bytes(4).decode(encoding)  # fails for codecs of bytes, which `lookup` finds
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise UserError(
            f"--encoding={encoding}: takes the name of a text encoding, such as utf-8, cp1252, "
            "utf-16, gb18030 or shift_jis"
        ) from error


def _advice(content: bytes) -> str:
    for first, description in _FORMATS_BY_FIRST_BYTES.items():
        if content.startswith(first):
            return f"; it is {description}"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "; it begins like UTF-16, which --encoding=utf-16 reads"
    if content[:400].count(0) > len(content[:400]) // 4:
        little = content[1:400:2].count(0) > content[0:400:2].count(0)
        return f"; --encoding=utf-16-{'le' if little else 'be'} may read it"
    return "; --encoding=NAME reads another encoding, such as cp1252 or utf-16"


def _read_uncompressed(path: pathlib.Path) -> bytes:
    content = read_bytes(path)
    if not path.name.lower().endswith(GZIP_EXTENSION):
        return content
    limit = max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * len(content))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as opened:
            content = opened.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a readable gzip file: {error}") from error
    if len(content) > limit:
        raise UserError(
            f"{path} would unpack to over {limit // 2**20:,} MB, like a decompression bomb; if it "
            "is none, unpack it yourself"
        )
    return content


def _is_conll(content: str) -> bool:
    lines = [line for line in content.split("\n") if line.strip()]
    rows = [line.split() for line in lines if not line.startswith(("-DOCSTART-", "# "))]
    return (
        len(rows) >= _MIN_CONLL_LINES
        and all(len(row) > 1 and _ENTITY_TAG.fullmatch(row[-1]) for row in rows)
        and any(row[-1] != "O" for row in rows)
    )


def _parse_txt(path: pathlib.Path, content: str, notices: list[str]) -> list[Example]:
    if _is_conll(content[:_SAMPLE_BYTES].rpartition("\n")[0] or content):
        raise UserError(
            f"{path} holds words with entity tags (CoNLL) among files read as plain text; accepted "
            "is one such file, or a folder of a train and a test file"
        )
    lines = [line for line in content.split("\n") if line.strip()]
    paragraphs = re.split(r"\n(?:[^\S\n]*\n)+", content.strip())
    texts = lines
    if len(paragraphs) > 1:
        by_paragraph = len(paragraphs) >= _MIN_PARAGRAPHS or len(
            lines
        ) <= _MAX_LINES_PER_PARAGRAPH * len(paragraphs)
        texts = paragraphs if by_paragraph else lines
        unit = "paragraph between blank lines" if by_paragraph else "line"
        notices.append(
            f"{path.name}: {len(lines)} lines, with blank lines in {len(paragraphs) - 1} places; "
            f"read as {len(texts)} examples, one a {unit}"
        )
    columns = {line.count("\t") + 1 for line in lines}
    if len(columns) == 1 and (count := columns.pop()) > 1:
        notices.append(
            f"{path.name}: every line has {count} columns separated by tabs, read as plain text; "
            "a table needs a first line with their names and the ending .tsv"
        )
    return [Example(text.strip()) for text in texts]


def _without_blank_texts(
    path: pathlib.Path, examples: list[Example], form: TextFormat, notices: list[str]
) -> list[Example]:
    kept = [example for example in examples if str(example.content).strip()]
    if not kept:
        raise UserError(f"{path} holds no example with text")
    if len(kept) < len(examples):
        lost = {example.label for example in examples} - {example.label for example in kept}
        line = f"{len(examples) - len(kept)} of {len(examples)} texts are blank and left out"
        if lost and not form.target_column:
            line += f", among them all of label {', '.join(sorted(map(repr, lost)))}"
            if len({example.label for example in kept}) < 2:
                raise UserError(f"{path}: {line}; texts of at least two labels are needed")
        notices.append(f"{path.name}: {line}")
    return kept


def _parse_table(
    path: pathlib.Path, content: str, form: TextFormat, notices: list[str]
) -> list[Example]:
    """Parses a .csv or .tsv file; its first line names the columns."""
    # The default limit, 131,072 characters, is too short for a book in a column.
    csv.field_size_limit(2**31 - 1)
    delimiter, quoting = ",", csv.QUOTE_MINIMAL
    if text_extension(path) == ".tsv":
        delimiter, quoting = "\t", _tsv_quoting(path, content, notices)
    # Not `splitlines`, which splits at other Unicode line separators, too.
    lines = io.StringIO(content, newline="")
    reader = csv.DictReader(lines, restkey="", strict=True, delimiter=delimiter, quoting=quoting)
    text_column = to_nfc(form.text_column)
    examples = []
    try:
        columns = reader.fieldnames = [to_nfc(name) for name in reader.fieldnames or []]
        label_column = _check_columns(str(path), columns, form)
        group_column = _check_group_column(str(path), columns, form)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            # A short row has None values, a long one a list under the key "".
            if None in row.values() or isinstance(row.get(""), list):
                raise UserError(f"{where}: expected {len(columns)} columns as in the header")
            label = _label(where, label_column, row[label_column]) if label_column else None
            group = _label(where, group_column, row[group_column]) if group_column else None
            examples.append(Example(row[text_column], label, item_group=group))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from error
    return examples


def _tsv_quoting(path: pathlib.Path, content: str, notices: list[str]) -> Any:
    """Returns whether `csv` should take quotes for quotes; in many .tsv files they are text."""
    plain = [line.split("\t") for line in content.split("\n") if line]
    halves = [
        field
        for row in plain
        for field in row
        if '"' in field and not re.fullmatch(r'"(?:[^"]|"")*"', field)
    ]
    if not halves or len({len(row) for row in plain}) > 1:
        return csv.QUOTE_MINIMAL
    try:
        rows = csv.reader(io.StringIO(content, newline=""), strict=True, delimiter="\t")
        quoted = len({len(row) for row in rows if row}) == 1 and halves[0].startswith('"')
    except csv.Error:
        quoted = False
    how = "quote texts of several lines" if quoted else "are read as text, as not all come in pairs"
    notices.append(f"{path.name}: its quotation marks {how}")
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def _parse_jsonl(
    path: pathlib.Path, content: str, form: TextFormat, notices: list[str]
) -> list[Example]:
    del notices
    text_column = to_nfc(form.text_column)
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object like {{{text_column!r}: ...}}")
        rows.append((where, {to_nfc(key): value for key, value in row.items()}))
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    label_column = _check_columns(rows[0][0], columns, form)
    group_column = _check_group_column(rows[0][0], columns, form)
    num_labeled = sum(row.get(label_column) is not None for _, row in rows)
    examples = []
    for where, row in rows:
        text = row.get(text_column)
        if not isinstance(text, str):
            raise UserError(f"{where}: {text_column!r} is missing or not a string")
        _check_unicode(where, text_column, text)
        label = None
        if label_column:
            remark = f"; {num_labeled} of {len(rows)} lines have it"
            label = _label(where, label_column, row.get(label_column), remark)
        group = _label(where, group_column, row.get(group_column)) if group_column else None
        examples.append(Example(text, label, item_group=group))
    return examples


def _check_columns(where: str, columns: Sequence[str], form: TextFormat) -> str:
    """Returns the column of the label or target, or "" if the text is the only column."""
    text_column, label_column = map(to_nfc, (form.text_column, form.second_column))
    listed = ", ".join(map(repr, columns)) or "none"
    if text_column not in columns:
        hint = ""
        if len(columns) == 1 and re.search("[;\t|]", columns[0]):
            hint = "; columns are separated by commas in .csv and by tabs in .tsv files"
        raise UserError(f"{where}: no column {text_column!r} for the text; it has: {listed}{hint}")
    if list(columns) == [text_column] and label_column in ("", TextFormat.label_column):
        return ""
    if label_column and label_column not in columns:
        raise UserError(
            f"{where}: no column {label_column!r}; it has: {listed} "
            '(give the label column as "" for unlabeled data)'
        )
    for name in (text_column, label_column):
        if columns.count(name) > 1:
            raise UserError(f"{where}: {columns.count(name)} columns are called {name!r}: {listed}")
    return label_column


def _check_group_column(where: str, columns: Sequence[str], form: TextFormat) -> str:
    """Returns the column of the group, "" for none; raises UserError if it is not there once."""
    column = to_nfc(form.group_column)
    if column and columns.count(column) != 1:
        listed = ", ".join(map(repr, columns)) or "none"
        count = "no column" if column not in columns else f"{columns.count(column)} columns"
        raise UserError(
            f"--item_group={column}: {where} has {count} of that name; it has: {listed}"
        )
    return column


def _label(where: str, label_column: str, value: Any, remark: str = "") -> str:
    if isinstance(value, bool | int | str) and str(value).strip():
        _check_unicode(where, label_column, str(value))
        return str(value).strip()
    raise UserError(f"{where}: {label_column!r} is missing or not a string or whole number{remark}")


def _check_unicode(where: str, column: str, text: str) -> None:
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{where}: {column!r} holds half a surrogate pair, not Unicode")
