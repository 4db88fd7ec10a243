"""Reads .parquet, .arrow and .feather files, and folders that `datasets` saved, with pyarrow."""

import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

from fm.data.readers.examples import to_nfc
from fm.data.readers.tables import Row, Table
from fm.errors import UserError
from fm.files import read_bytes

ARROW_EXTENSIONS = (".parquet", ".arrow", ".feather")
_SPLITS_FILE, _STATE_FILE = "dataset_dict.json", "state.json"
_FEATHER_MAGIC = b"ARROW1"


def read_arrow_file(path: pathlib.Path) -> Table:
    """Returns the rows of a Parquet, Arrow (file or stream) or Feather file.

    Classes that `datasets` stored as numbers come by their names.

    Raises:
        UserError: the file is damaged, or of another format.
    """
    try:
        content = read_bytes(path)
        if path.suffix.lower() == ".parquet":
            found = pyarrow.parquet.ParquetFile(pa.BufferReader(content)).read()
        else:
            is_file = content.startswith(_FEATHER_MAGIC)
            opened: Any = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
            found = opened(content).read_all()
        # Damaged offsets would be followed out of the buffer.
        found.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        kind = path.suffix.lower().removeprefix(".").capitalize()
        raise UserError(f"{path} is not a readable {kind} file: {reason}") from error
    names = class_names(found.schema.metadata)
    columns = {}
    for index, column in enumerate(found.column_names):
        values = found.column(index).to_pylist()
        if column in names:
            values = [_named(value, names[column]) for value in values]
        columns[to_nfc(column)] = values
    rows = [
        Row(f"{path}, row {number}", dict(zip(columns, values, strict=True)))
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    return Table(str(path), [to_nfc(column) for column in found.column_names], rows)


def saved_splits(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns {split: Arrow files} of a folder that `datasets` saved; {} if it is none.

    A data set without splits is under "all".

    Raises:
        UserError: files that it names are missing, or its JSON is broken.
    """
    if (folder / _SPLITS_FILE).is_file():
        names = _read_json(folder / _SPLITS_FILE).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{folder / _SPLITS_FILE} has no list of splits")
        return {name: _data_files(_inside(folder, name)) for name in names}
    if (folder / _STATE_FILE).is_file():
        return {"all": _data_files(folder)}
    return {}


def _data_files(folder: pathlib.Path) -> list[pathlib.Path]:
    listed: Any = _read_json(folder / _STATE_FILE).get("_data_files")
    try:
        paths = [_inside(folder, each["filename"]) for each in listed]
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder / _STATE_FILE} lists no data files") from error
    return paths


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / name
    if pathlib.PurePath(name).name != name or not path.exists():
        raise UserError(f"{folder} has no {name!r}, which its JSON names")
    return path


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Returns the class names of columns, as `datasets` writes them into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        items = dict(features).items()
    except (KeyError, TypeError, ValueError):
        return {}
    found = {}
    for column, feature in items:
        for inner in (feature, *_inner_features(feature)):
            if not isinstance(inner, dict) or inner.get("_type") != "ClassLabel":
                continue
            if isinstance(names := inner.get("names"), list):
                found[column] = list(map(str, names))
    return found


def _inner_features(feature: Any) -> list[Any]:
    """Returns the feature of a list's elements, in the forms of `datasets` 2 to 5."""
    if isinstance(feature, list):
        return feature[:1]
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return [feature.get("feature")]
    return []


def _named(value: Any, names: list[str]) -> Any:
    """Returns the name of a class, or the names of a list of them; -1 (withheld) is None."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
