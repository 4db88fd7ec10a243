"""Reads files of predictions from any framework and aligns them by seed and test item."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fm.data.readers.text import read_text
from fm.errors import UserError
from fm.evaluation.design import MIN_EFFECTIVE_GROUPS, MIN_GROUPS

REQUIRED = ("item", "truth", "prediction")
OPTIONAL = ("seed", "group", "probability", "truth_probability")
ACCEPTED = (
    f"takes a table with the columns {', '.join(REQUIRED)} and, if wanted, {', '.join(OPTIONAL)}"
)
_PROBABILITIES = ("probability", "truth_probability")
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+")
_MISSING = ("", "nan")
# Between the classes of a set.
SEPARATOR = ";"


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionFile:
    """The predictions of one file for S seeds and N items, in the order of `AlignedPredictions`.

    Attributes:
      name: of the file in tables: its stem, or its path where two files share a stem.
      path: as given.
      prediction_SN: [S, N] predicted classes (text), numbers or scores (float64), or sets of
        classes (frozenset of text).
      probabilities: `probability` (of the predicted class) and `truth_probability` (of the true
        class), float64 [S, N] each, as far as the file has them.
      unused_columns: columns that are not read.
    """

    name: str
    path: pathlib.Path
    prediction_SN: np.ndarray
    probabilities: dict[str, np.ndarray]
    unused_columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedPredictions:
    """Files of predictions for the same seeds and test items.

    Attributes:
      files: in the order given.
      seeds: S names; one empty name where the files have no column `seed`.
      items: N names.
      truth_N: what is true, [N], of the type of predictions; None where the files hold scores.
      group_N: numbers of the items' groups, int [N]; None without a column `group`.
    """

    files: tuple[PredictionFile, ...]
    seeds: tuple[str, ...]
    items: tuple[str, ...]
    truth_N: np.ndarray | None
    group_N: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class CellKind:
    """What the columns `truth` and `prediction` hold.

    Attributes:
      parse: a cell as it is compared.
      dtype: of arrays of them.
      is_number: whether a cell must be a finite number.
      may_be_empty: whether a cell may be empty.
      has_truth: whether the column `truth` is read.
    """

    parse: Callable[[str], Any]
    dtype: type = object
    is_number: bool = False
    may_be_empty: bool = False
    has_truth: bool = True


def _label(text: str) -> str:
    """Returns a class name, a whole number such as 1.0 as 1."""
    whole = _WHOLE_NUMBER.fullmatch(text)
    return whole[1] if whole else text


def _label_set(text: str) -> frozenset[str]:
    """Returns the classes of a set, which semicolons separate."""
    return frozenset(filter(None, (_label(each.strip()) for each in text.split(SEPARATOR))))


CLASSES = CellKind(_label)
SETS = CellKind(_label_set, may_be_empty=True)
NUMBERS = CellKind(float, float, is_number=True)
SCORES = CellKind(float, float, is_number=True, has_truth=False)


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of a file: its number and its cells, stripped, by column."""

    number: int
    cells: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Table:
    path: pathlib.Path
    columns: tuple[str, ...]
    lines: dict[tuple[str, str], _Line]

    def items(self, seed: str) -> list[str]:
        """Returns the items of a seed in the order of the file."""
        return [item for own, item in self.lines if own == seed]

    @property
    def seeds(self) -> list[str]:
        return list(dict.fromkeys(seed for seed, _ in self.lines))


def read_predictions(
    paths: Sequence[pathlib.Path], *, kind: CellKind = CLASSES, encoding: str = "utf-8"
) -> AlignedPredictions:
    """Reads two or more files of predictions and aligns them by seed and item.

    A file is CSV (commas, semicolons or tabs; also .csv.gz) whose first line names its columns.
    Its columns are found by name, in any order. Classes are compared as text; a whole number may
    be written 1 or 1.0.

    Args:
      paths: the files.
      kind: `CLASSES`, `NUMBERS`, `SETS` (separated by semicolons), or `SCORES`, which are higher
        better and leave out `truth`.
      encoding: of the files, a name that Python's `codecs` knows.

    Raises:
      UserError: a file is not such a table, has an item twice, or differs from the first in its
        seeds, items, truths or groups; the message names the file and, where there is one, the
        line.
    """
    if len(paths) < 2:
        raise UserError(
            f"{len(paths)} files of predictions given; takes two or more, such as a.csv b.csv"
        )
    for path in paths:
        if list(paths).count(path) > 1:
            raise UserError(f"{path} is given twice; takes different files")
    tables = [_read_table(path, kind=kind, encoding=encoding) for path in paths]
    first = tables[0]
    seeds = first.seeds
    items = first.items(seeds[0])
    for table in tables:
        _check_same_seeds(table, first)
        for seed in seeds:
            _check_same_items(table, seed, items, first)
    if len(items) < 2:
        raise UserError(f"{first.path} has one item; an interval needs at least 2")
    truths = _common_cells("truth", tables, items, kind.parse) if kind.has_truth else None
    groups = None
    grouped = ["group" in table.columns for table in tables]
    if any(grouped):
        for table in tables:
            if "group" not in table.columns:
                other = tables[grouped.index(True)].path
                raise UserError(
                    f"{table.path} has no column group, which {other} has; takes it in every "
                    "file or in none"
                )
        groups = _common_cells("group", tables, items, _label)
        _check_groups(first.path, groups)
    names = _names(paths)
    return AlignedPredictions(
        files=tuple(
            _prediction_file(name, table, seeds, items, kind)
            for name, table in zip(names, tables, strict=True)
        ),
        seeds=tuple(seeds),
        items=tuple(items),
        truth_N=None if truths is None else _array(truths, kind),
        group_N=None if groups is None else np.unique(groups, return_inverse=True)[1],
    )


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    stems = [re.sub(r"\.(csv|tsv|txt)?(\.gz)?$", "", path.name) or path.name for path in paths]
    unique = len(set(stems)) == len(stems)
    return stems if unique else [str(path) for path in paths]


def _read_table(path: pathlib.Path, *, kind: CellKind, encoding: str) -> _Table:
    text = read_text(path, encoding)
    if not text.strip():
        raise UserError(f"{path} is empty; {ACCEPTED}")
    rows = _rows(path, text)
    _, header = next(rows)
    columns = tuple(cell.strip() for cell in header)
    required = [name for name in REQUIRED if kind.has_truth or name != "truth"]
    for name in required:
        if name not in columns:
            raise UserError(
                f"{path}, line 1: no column {name} among {_short(', '.join(columns), 200)}; "
                f"{ACCEPTED}"
            )
    for name in (*REQUIRED, *OPTIONAL):
        if columns.count(name) > 1:
            raise UserError(f"{path}, line 1: the column {name} is there twice; {ACCEPTED}")
    known = [name for name in (*REQUIRED, *OPTIONAL) if name in columns]
    lines: dict[tuple[str, str], _Line] = {}
    for number, row in rows:
        if len(row) != len(columns):
            raise UserError(
                f"{path}, line {number}: has {len(row)} cells, but line 1 names {len(columns)} "
                "columns; takes a cell for each column"
            )
        by_name = dict(zip(columns, row, strict=True))
        line = _Line(number, {name: by_name[name].strip() for name in known})
        _check_cells(path, line, kind)
        key = line.cells.get("seed", ""), line.cells["item"]
        if key in lines:
            seed = f" of seed {_shown(key[0])}" if "seed" in columns else ""
            raise UserError(
                f"{path}, line {number}: item {_shown(key[1])}{seed} is also on line "
                f"{lines[key].number}; takes each item once"
                + ("" if "seed" in columns else ", or once for each value of a column seed")
            )
        lines[key] = line
    if not lines:
        raise UserError(f"{path} has no line below its column names; {ACCEPTED}")
    return _Table(path, columns, lines)


def _rows(path: pathlib.Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, cells) of every line that is not blank."""
    first_line = text[: text.find("\n")] if "\n" in text else text
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {number}: not CSV ({error}); {ACCEPTED}") from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield number, row


def _check_cells(path: pathlib.Path, line: _Line, kind: CellKind) -> None:
    """Raises UserError if a cell is missing or is not the number that its column takes."""
    for name, cell in line.cells.items():
        is_answer = name in ("truth", "prediction")
        numeric = name in _PROBABILITIES or (kind.is_number and is_answer)
        if (name == "truth" and not kind.has_truth) or (is_answer and kind.may_be_empty):
            continue
        if cell.lower() in _MISSING and (name in ("truth", "prediction") or numeric or not cell):
            what = f"is {cell}" if cell else "is empty"
            raise UserError(
                f"{path}, line {line.number}: {name} {what}; takes a value on each line"
            )
        if numeric:
            value = _float(cell)
            if name in _PROBABILITIES and not 0 <= value <= 1:
                accepted = "a number from 0 to 1"
            elif not math.isfinite(value):
                accepted = "a finite number"
            else:
                continue
            raise UserError(
                f"{path}, line {line.number}: {name} is {_shown(cell)}; takes {accepted}"
            )


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_same_seeds(table: _Table, first: _Table) -> None:
    given, expected = ("seed" in each.columns for each in (table, first))
    if given != expected:
        without, other = (first, table) if given else (table, first)
        raise UserError(
            f"{without.path} has no column seed, which {other.path} has; takes it in every file "
            "or in none"
        )
    if set(table.seeds) != set(first.seeds):
        (where, other), seed = next(
            (pair, seed)
            for pair in ((table, first), (first, table))
            for seed in pair[0].seeds
            if seed not in pair[1].seeds
        )
        raise UserError(
            f"{where.path} has the seed {_shown(seed)}, which {other.path} has not; takes the same "
            "seeds in every file, since seeds are paired by name"
        )


def _check_same_items(table: _Table, seed: str, items: list[str], first: _Table) -> None:
    of_seed = f" of seed {_shown(seed)}" if seed else ""
    for item in items:
        if (seed, item) not in table.lines:
            line = first.lines[first.seeds[0], item].number
            raise UserError(
                f"{table.path}: item {_shown(item)}{of_seed} is missing, which is on line {line} "
                f"of {first.path}; takes the same items in every file and seed"
            )
    expected = set(items)
    for item in table.items(seed):
        if item not in expected:
            raise UserError(
                f"{table.path}, line {table.lines[seed, item].number}: item {_shown(item)} is not "
                f"among those of {first.path}"
                + (f" and its seed {_shown(first.seeds[0])}" if seed else "")
                + "; takes the same items in every file and seed"
            )


def _common_cells(
    column: str,
    tables: Sequence[_Table],
    items: Sequence[str],
    parse: Callable[[str], Any],
) -> list[Any]:
    """Returns the cells of a column that must be one for an item in every file and seed."""
    first = tables[0]
    expected = {item: first.lines[first.seeds[0], item] for item in items}
    for table in tables:
        for (_, item), line in table.lines.items():
            own, other = (each.cells[column] for each in (line, expected[item]))
            if parse(own) != parse(other):
                raise UserError(
                    f"{table.path}, line {line.number}: {column} of item {_shown(item)} is "
                    f"{_shown(own)}, but {_shown(other)} on line {expected[item].number} of "
                    f"{first.path}; takes one {column} for each item"
                )
    return [parse(expected[item].cells[column]) for item in items]


def _check_groups(path: pathlib.Path, groups: Sequence[str]) -> None:
    """Raises UserError if there are too few groups, or one holds too many of the items."""
    sizes = np.array(sorted(Counter(groups).values()))
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    if len(sizes) < MIN_GROUPS or effective < MIN_EFFECTIVE_GROUPS:
        raise UserError(
            f"{path}: the column group has {len(sizes)} different values, worth {effective:.1f} of "
            f"equal numbers of items, and intervals over so few do not hold; takes {MIN_GROUPS} or "
            f"more, worth {MIN_EFFECTIVE_GROUPS} or more, or no such column"
        )


def _array(values: Sequence[Any], kind: CellKind) -> np.ndarray:
    array = np.empty(len(values), kind.dtype)
    array[:] = values
    return array


def _prediction_file(
    name: str, table: _Table, seeds: Sequence[str], items: Sequence[str], kind: CellKind
) -> PredictionFile:
    lines = [[table.lines[seed, item].cells for item in items] for seed in seeds]

    def cells(column: str) -> list[list[str]]:
        return [[cells[column] for cells in row] for row in lines]

    predictions = np.stack(
        [_array([kind.parse(cell) for cell in row], kind) for row in cells("prediction")]
    )
    return PredictionFile(
        name=name,
        path=table.path,
        prediction_SN=predictions,
        probabilities={
            column: np.array(cells(column), float)
            for column in _PROBABILITIES
            if column in table.columns
        },
        unused_columns=tuple(each for each in table.columns if each not in (*REQUIRED, *OPTIONAL)),
    )


def _shown(text: str) -> str:
    return repr(_short(text, 40))


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}..."
