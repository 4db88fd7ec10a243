"""Reads the rows of .csv, .tsv and .jsonl text; `Row` is the form of all tables' rows."""

import csv
import dataclasses
import io
import json
import pathlib
import re
from typing import Any

from fm.data.readers.examples import TextFormat, to_nfc
from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: its values by column, and where it stands.

    Attributes:
        where: file and line (or row), for messages.
        values: by column name; a JSON key that is missing is absent.
    """

    where: str
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file, and its columns in order.

    Attributes:
        where: the file, for messages about columns.
        columns: names in NFC; a name may stand twice.
        rows: of the file.
    """

    where: str
    columns: list[str]
    rows: list[Row]


def parse_separated(path: pathlib.Path, content: str, delimiter: str, notices: list[str]) -> Table:
    """Parses the text of a .csv or .tsv file; its first line names the columns.

    Args:
        path: of the file, for messages.
        content: its text.
        delimiter: "," or a tab.
        notices: a line is added for each choice that the file left open.

    Raises:
        UserError: a row has another number of columns, or its quotation marks are broken.
    """
    # The default limit, 131,072 characters, is too short for a book in a column.
    csv.field_size_limit(2**31 - 1)
    quoting: Any = csv.QUOTE_MINIMAL
    if delimiter == "\t":
        quoting = tsv_quoting(path, content, notices)
    # Not `splitlines`, which splits at other Unicode line separators, too.
    lines = io.StringIO(content, newline="")
    reader = csv.DictReader(lines, restkey="", strict=True, delimiter=delimiter, quoting=quoting)
    rows = []
    try:
        columns = reader.fieldnames = [to_nfc(name) for name in reader.fieldnames or []]
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            # A short row has None values, a long one a list under the key "".
            if None in values.values() or isinstance(values.get(""), list):
                raise UserError(f"{where}: expected {len(columns)} columns as in the header")
            rows.append(Row(where, values))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from error
    return Table(str(path), columns, rows)


def tsv_quoting(path: pathlib.Path, content: str, notices: list[str]) -> Any:
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


def parse_json_lines(path: pathlib.Path, content: str, form: TextFormat) -> Table:
    """Parses the text of a .jsonl file: a JSON object a line; blank lines are passed over.

    Raises:
        UserError: a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object like {{{form.text_column!r}: ...}}")
        rows.append(Row(where, {to_nfc(key): value for key, value in row.items()}))
    columns = list(dict.fromkeys(key for row in rows for key in row.values))
    return Table(str(path), columns, rows)
