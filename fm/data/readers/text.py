"""Reads examples from .txt, .jsonl and .csv files."""

import csv
import dataclasses
import io
import json
import pathlib
import re
from typing import Any

from fm.errors import UserError
from fm.files import read_bytes

TEXT_EXTENSIONS = (".txt", ".jsonl", ".csv")


@dataclasses.dataclass(frozen=True)
class Example:
    """An example from the user's files: its text or media path, its label and its group.

    Attributes:
        content: its text; or the file (or folder) with its image, sound or clip.
        label: None if unlabeled.
        group: which no two splits may share, e.g. a speaker; None for a split by content.
    """

    content: str | pathlib.Path
    label: str | None = None
    group: str | None = None


def read_text_file(path: pathlib.Path, text_column: str, label_column: str) -> list[Example]:
    """Returns the non-blank examples of a UTF-8 .txt, .jsonl or .csv file.

    Args:
        path: a .txt file (unlabeled; paragraphs separated by blank lines, or one example per line
            if there are no blank lines), a .jsonl or a .csv file.
        text_column: the CSV column or JSON key of the text.
        label_column: that of the label, or of a target text; "" for unlabeled data.

    Raises:
        UserError: the file does not have the format of its extension; the message names the line.
    """
    content = read_utf8(path)
    if not content.strip():
        raise UserError(f"{path} is empty")
    match path.suffix.lower():
        case ".txt":
            examples = _parse_txt(content)
        case ".jsonl":
            examples = _parse_jsonl(path, content, text_column, label_column)
        case ".csv":
            examples = _parse_csv(path, content, text_column, label_column)
        case other:
            accepted = ", ".join(TEXT_EXTENSIONS)
            raise UserError(f"{path}: unknown ending {other!r}; accepted: {accepted}")
    examples = [example for example in examples if str(example.content).strip()]
    if not examples:
        raise UserError(f"{path} holds no example with text")
    return examples


def read_utf8(path: pathlib.Path) -> str:
    """Returns a file's text with "\\n" line ends and without a byte order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is invalid") from error


def _parse_txt(content: str) -> list[Example]:
    paragraphs = re.split(r"\n[^\S\n]*\n", content.strip())
    texts = paragraphs if len(paragraphs) > 1 else content.split("\n")
    return [Example(text.strip()) for text in texts]


def _parse_csv(
    path: pathlib.Path, content: str, text_column: str, label_column: str
) -> list[Example]:
    # The default limit, 131,072 characters, is too short for a book in a column.
    csv.field_size_limit(2**31 - 1)
    # Not `splitlines`, which splits at other Unicode line separators, too.
    reader = csv.DictReader(io.StringIO(content, newline=""), restkey="", strict=True)
    examples = []
    try:
        columns = list(reader.fieldnames or [])
        label_column = _check_columns(str(path), columns, text_column, label_column)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            # A short row has None values, a long one a list under the key "".
            if None in row.values() or isinstance(row.get(""), list):
                raise UserError(f"{where}: expected {len(columns)} columns as in the header")
            label = _label(where, label_column, row[label_column]) if label_column else None
            examples.append(Example(row[text_column], label))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from error
    return examples


def _parse_jsonl(
    path: pathlib.Path, content: str, text_column: str, label_column: str
) -> list[Example]:
    examples: list[Example] = []
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
        if not examples:
            label_column = _check_columns(where, list(row), text_column, label_column)
        text = row.get(text_column)
        if not isinstance(text, str):
            raise UserError(f"{where}: {text_column!r} is missing or not a string")
        _check_unicode(where, text_column, text)
        label = _label(where, label_column, row.get(label_column)) if label_column else None
        examples.append(Example(text, label))
    return examples


def _check_columns(where: str, columns: list[str], text_column: str, label_column: str) -> str:
    """Returns the label column, or "" if the text is the only column."""
    listed = ", ".join(map(repr, columns)) or "none"
    if text_column not in columns:
        raise UserError(f"{where}: no column {text_column!r} for the text; it has: {listed}")
    if columns == [text_column]:
        return ""
    if label_column and label_column not in columns:
        raise UserError(
            f"{where}: no column {label_column!r}; it has: {listed} "
            '(give the label column as "" for unlabeled data)'
        )
    return label_column


def _label(where: str, label_column: str, value: Any) -> str:
    if isinstance(value, bool | int | str) and str(value).strip():
        _check_unicode(where, label_column, str(value))
        return str(value).strip()
    raise UserError(f"{where}: {label_column!r} is missing or not a string or whole number")


def _check_unicode(where: str, column: str, text: str) -> None:
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{where}: {column!r} holds half a surrogate pair, not Unicode")
