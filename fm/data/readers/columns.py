"""Turns the rows of a table into examples: text, label, number, group and id by column name."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from fm.data.readers.examples import Example, Label, ReadLog, TextFormat, to_nfc
from fm.data.readers.tables import Row, Table
from fm.errors import UserError

_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
# The first bytes of the media that tables hold, and the ending of such files.
_MEDIA_BYTES = (
    (rb"\x89PNG", ".png"),
    (rb"\xff\xd8\xff", ".jpg"),
    (rb"GIF8", ".gif"),
    (rb"RIFF....WAVE", ".wav"),
    (rb"RIFF....WEBP", ".webp"),
    (rb"BM", ".bmp"),
    (rb"II\*\x00|MM\x00\*", ".tiff"),
    (rb"....ftyp", ".mp4"),
)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The columns of one table that are read; "" for those that are not."""

    text: str
    labels: tuple[str, ...]
    group: str
    item_group: str
    row_id: str
    second_text: str


def read_rows(
    path: pathlib.Path, table: Table, form: TextFormat, log: ReadLog, *, unlabeled: bool = False
) -> list[Example]:
    """Returns the examples of a table's rows; rows with a blank text are none, and are counted.

    Args:
        path: of the table, for messages and ids.
        table: its rows.
        form: which columns to read.
        log: of the reading.
        unlabeled: whether the rows are unlabeled data, which need no column of groups, ids or
            second texts.

    Raises:
        UserError: a column is missing, or a value is not what its column has to hold.
    """
    columns = _find_columns(table, form, unlabeled=unlabeled)
    file = log.name(path)
    examples = []
    blank: list[Label | None] = []
    as_sets = _holds_sets(table, columns, form)
    for number, row in enumerate(table.rows, start=1):
        content, second = _content(path, number, row, columns, form, log)
        label = None if not columns.labels else _label(row, columns.labels, form, as_sets=as_sets)
        if content is None:
            blank.append(label)
            continue
        default_id = f"{file}:{number}"
        if form.file_column:
            assert isinstance(content, pathlib.Path)
            default_id = log.name(content)
        examples.append(
            Example(
                content=content,
                label=label,
                group=_text(row, "group_column", columns.group),
                item_group=_text(row, "item_group", columns.item_group),
                row_id=_text(row, "id_column", columns.row_id) or default_id,
                file=file,
                second_text=second,
            )
        )
    _tell_blank(path, examples, blank, form, log)
    return examples


def _tell_blank(
    path: pathlib.Path,
    examples: list[Example],
    blank: list[Label | None],
    form: TextFormat,
    log: ReadLog,
) -> None:
    if not examples:
        raise UserError(f"{path} holds no example with text")
    if not blank:
        return
    log.ignore(examples[0].file, "blank", len(blank))
    line = f"{len(blank)} of {len(blank) + len(examples)} texts are blank and left out"
    kept = {example.label for example in examples}
    lost = {label for label in blank if isinstance(label, str)} - kept
    if lost and not form.target_column:
        line += f", among them all of label {', '.join(sorted(map(repr, lost)))}"
        if len(kept - {None}) < 2:
            raise UserError(f"{path}: {line}; texts of at least two labels are needed")
    log.notices.append(f"{path.name}: {line}")


def _find_columns(table: Table, form: TextFormat, *, unlabeled: bool) -> _Columns:
    """Returns the columns to read; raises UserError if one is not there, or there twice."""
    text = _text_column(table, form)
    labels = _label_columns(table, form, text)
    others = {
        flag: to_nfc(getattr(form, flag))
        for flag in ("group_column", "item_group", "id_column", "second_text_column")
    }
    if unlabeled:
        others = {flag: name if name in table.columns else "" for flag, name in others.items()}
    for flag, name in others.items():
        if name:
            _check_column(table, flag, name)
    return _Columns(
        text,
        labels,
        others["group_column"],
        others["item_group"],
        others["id_column"],
        others["second_text_column"],
    )


def _text_column(table: Table, form: TextFormat) -> str:
    if form.file_column:
        name = to_nfc(form.file_column)
        _check_column(table, "file_column", name)
        return name
    name = to_nfc(form.text_column)
    if name not in table.columns and form.text_column == TextFormat.text_column:
        media = [
            column
            for column in table.columns
            if any(_is_media(row.values.get(column)) for row in table.rows[:10])
        ]
        if len(media) == 1:
            return media[0]
    hint = ""
    if len(table.columns) == 1 and re.search("[;\t|]", table.columns[0]):
        hint = "; columns are separated by commas in .csv and by tabs in .tsv files"
    _check_column(table, "text_column", name, hint)
    return name


def _label_columns(table: Table, form: TextFormat, text: str) -> tuple[str, ...]:
    """Returns the columns of the label, the number or the target; () if the text stands alone."""
    flag = next(
        (each for each in ("target_column", "value_column") if getattr(form, each)), "label_column"
    )
    name = to_nfc(getattr(form, flag))
    is_default = flag == "label_column" and name == TextFormat.label_column
    if not name or (set(table.columns) == {text} and is_default and not form.label_separator):
        return ()
    if flag == "label_column" and name not in table.columns and "," in name:
        parts = tuple(part.strip() for part in name.split(","))
        for part in parts:
            _check_column(table, flag, part)
        return parts
    hint = " (for unlabeled data: --label_column=)" if flag == "label_column" else ""
    _check_column(table, flag, name, hint)
    return (name,)


def _check_column(table: Table, flag: str, name: str, hint: str = "") -> None:
    listed = ", ".join(map(repr, dict.fromkeys(table.columns))) or "none"
    if name not in table.columns:
        raise UserError(
            f"--{flag}={name}: {table.where} has no column {name!r}; it has: {listed}{hint}"
        )
    if table.columns.count(name) > 1:
        count = table.columns.count(name)
        raise UserError(f"--{flag}={name}: {table.where}: {count} columns are called {name!r}")


def _content(
    path: pathlib.Path,
    number: int,
    row: Row,
    columns: _Columns,
    form: TextFormat,
    log: ReadLog,
) -> tuple[str | pathlib.Path | None, str | None]:
    """Returns a row's input, None if it is blank, and the second text of a pair."""
    value = row.values.get(columns.text)
    if form.file_column:
        return _named_file(path, row, columns.text, value, log), None
    if _is_media(value):
        return _stored_file(path, number, row, columns.text, value, log), None
    second = None
    if columns.second_text:
        second = _string(row, columns.second_text, row.values.get(columns.second_text))
    text = _string(row, columns.text, value)
    if text is None or (columns.second_text and second is None):
        return None, None
    return (text if second is None else f"{text}\n\n{second}"), second


def _string(row: Row, column: str, value: Any) -> str | None:
    """Returns a text as it stands; None if it is blank or missing."""
    if value is None or _is_nan(value):
        return None
    if not isinstance(value, str):
        raise UserError(
            f"{row.where}: {column!r} is missing or not a string, but {_described(value)}"
        )
    _check_unicode(row, column, value)
    return value if value.strip() else None


def _label(row: Row, columns: tuple[str, ...], form: TextFormat, *, as_sets: bool) -> Label | None:
    if len(columns) > 1:
        return _flagged_classes(row, columns)
    column = next(iter(columns))
    value = row.values.get(column)
    if form.value_column:
        return _number(row, column, value)
    if form.target_column:
        return _string(row, column, value)
    if as_sets:
        return _class_set(row, column, value, form.label_separator)
    return _class(row, column, value)


def _holds_sets(table: Table, columns: _Columns, form: TextFormat) -> bool:
    """Returns whether the labels are sets: with a separator, or as lists."""
    if form.value_column or form.target_column or len(columns.labels) != 1:
        return False
    lists = any(isinstance(row.values.get(columns.labels[0]), list) for row in table.rows)
    return bool(form.label_separator) or lists


def _class(row: Row, column: str, value: Any) -> str | None:
    """Returns the name of a class, None if it is empty."""
    if value is None or _is_nan(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():  # pandas turns integers beside gaps so
        value = int(value)
    if isinstance(value, bool | int | str):
        _check_unicode(row, column, str(value))
        return str(value).strip()
    if isinstance(value, float):
        raise UserError(
            f"{row.where}: {column!r} is the decimal number {value}; a class is a text or a whole "
            f"number, and --value_column={column} predicts numbers"
        )
    raise UserError(
        f"{row.where}: {column!r} is {_described(value)}; a class is a text or a whole number"
    )


def _class_set(row: Row, column: str, value: Any, separator: str) -> tuple[str, ...] | None:
    """Returns the sorted classes of a label set, None if it is empty; `[]` is the empty set."""
    if isinstance(value, list):
        classes = [_class(row, column, each) for each in value]
        if None in classes:
            raise UserError(f"{row.where}: {column!r} is a list with an empty class")
        return tuple(sorted({str(each) for each in classes}))
    if value is None or _is_nan(value) or (isinstance(value, str) and not value.strip()):
        return None
    if not separator:
        raise UserError(
            f"{row.where}: {column!r} is {_described(value)}, but a list in other rows; a label "
            "set is a list in every row, or null"
        )
    parts = [part.strip() for part in str(_class(row, column, value)).split(separator)]
    return tuple(sorted({part for part in parts if part}))


def _flagged_classes(row: Row, columns: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the classes whose column says 1 or true, None if all are empty."""
    found: dict[str, bool | None] = {}
    for column in columns:
        value = row.values.get(column)
        text = "" if value is None or _is_nan(value) else str(value).strip().lower()
        if text not in (*_TRUE, *_FALSE, ""):
            raise UserError(
                f"--label_column={','.join(columns)}: {row.where}: {column!r} is {value!r:.60}; "
                "one of several label columns holds 0 or 1, or true or false"
            )
        found[column] = None if not text else text in _TRUE
    if all(each is None for each in found.values()):
        return None
    if None in found.values():
        empty = next(column for column, each in found.items() if each is None)
        raise UserError(
            f"--label_column={','.join(columns)}: {row.where}: {empty!r} is empty and others are "
            "not; in a row all are filled, or all are empty (unlabeled)"
        )
    return tuple(sorted(column for column, each in found.items() if each))


def _number(row: Row, column: str, value: Any) -> float | None:
    """Returns the number to predict, None if it is empty."""
    if value is None or _is_nan(value) or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"--value_column={column}: {row.where}: {value!r:.60} is not a number, such as 3 or "
            "-0.5"
        )
    return number


def _text(row: Row, flag: str, column: str) -> str | None:
    """Returns the group or id of a row as text, None if no column is asked for."""
    if not column:
        return None
    value = row.values.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int | str) and str(value).strip():
        _check_unicode(row, column, str(value))
        return str(value).strip()
    raise UserError(
        f"--{flag}={column}: {row.where}: {column!r} is missing, empty or not a text or whole "
        "number"
    )


def _named_file(
    path: pathlib.Path, row: Row, column: str, value: Any, log: ReadLog
) -> pathlib.Path:
    """Returns the file that a row names, relative to the folder of its table."""
    name = _text(row, "file_column", column)
    file = path.parent / str(name)
    inside = file.resolve().is_relative_to(log.root.resolve())
    if log.only_inside and not inside:
        raise UserError(f"{row.where}: {name!r} lies outside the archive")
    if not file.exists():
        raise UserError(f"--file_column={column}: {row.where}: there is no file {name!r}")
    return file


def _is_media(value: Any) -> bool:
    """Returns whether a table's value holds a file: bytes, or bytes and path as `datasets` do."""
    return isinstance(value, bytes) or (isinstance(value, dict) and set(value) == {"bytes", "path"})


def _stored_file(
    path: pathlib.Path, number: int, row: Row, column: str, value: Any, log: ReadLog
) -> pathlib.Path:
    """Writes an image or sound that a table holds to the scratch folder and returns its path."""
    stored = value if isinstance(value, dict) else {"bytes": value, "path": None}
    content, name = stored["bytes"], stored["path"] or ""
    if content is None:
        if not name:
            raise UserError(f"{row.where}: {column!r} holds neither bytes nor a path")
        file = path.parent / name
        if not file.is_file():
            raise UserError(f"{row.where}: {column!r} has no bytes, and there is no file {name!r}")
        return file
    extension = next(
        (each for magic, each in _MEDIA_BYTES if re.match(magic, content[:16], re.DOTALL)),
        pathlib.PurePath(name).suffix,
    )
    file = log.scratch / f"{len(log.files):04d}" / f"{number:09d}{extension}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _described(value: Any) -> str:
    kinds = ((bool, "true or false"), (list, "a list"), (dict, "an object"))
    kind = next((name for each, name in kinds if isinstance(value, each)), None)
    return kind or f"{value!r:.60}"


def _check_unicode(row: Row, column: str, text: str) -> None:
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{row.where}: {column!r} holds half a surrogate pair, not Unicode")
