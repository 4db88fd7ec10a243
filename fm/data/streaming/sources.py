"""Finds the training text of a file, folder or prepared TFDS data set, and cuts it into spans.

Nothing but the first bytes of each file is read.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import pathlib
import re
from collections.abc import Iterator, Sequence

from fm.data.media import media_extensions, modality_for_path
from fm.data.readers import archives, conll
from fm.data.readers.arrow import ARROW_EXTENSIONS, saved_splits
from fm.data.readers.examples import TextFormat, to_nfc
from fm.data.readers.folders import (
    is_readme,
    split_files,
    split_folders,
    split_of_word,
    visible_entries,
    walk,
)
from fm.data.readers.tables import tsv_quoting
from fm.data.readers.text import (
    GZIP_EXTENSION,
    check_encoding,
    examples_are_paragraphs,
    looks_like_conll,
    text_extension,
)
from fm.data.streaming.documents import Columns, Span, is_arrow_file
from fm.errors import UserError
from fm.files import read_json

# Of a .txt file, whose examples are paragraphs or lines, and of the quotation marks of a .tsv file.
_SAMPLE_BYTES = 2**22
_CHUNK = 2**20
# Compressed text is so much larger once read; for sizes alone.
_GZIP_RATIO = 4
TEST_SHARE = 0.2


class CannotStreamError(UserError):
    """Raised for data or flags that only the way through memory can read."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of training text.

    Attributes:
        path: of the file; of TFDS, the prepared folder.
        kind: see `Span`.
        size: about how many bytes of text it holds.
        labeled: whether its folder is a class.
        columns: of a table of text.
    """

    path: pathlib.Path
    kind: str
    size: int
    labeled: bool = False
    columns: tuple[str, ...] = ()

    def digested_files(self) -> list[pathlib.Path]:
        """Returns the files whose content the text depends on."""
        if self.kind == "tfds":
            return sorted(each for each in self.path.iterdir() if each.is_file())
        return [self.path]


@dataclasses.dataclass(frozen=True)
class TextPlan:
    """The training text of a data set.

    Attributes:
        path: as given by the user.
        files: in order.
        columns: which columns are read.
        test_share: fraction of labeled documents that are test items, and left out; 0 if the data
            comes split.
        notices: a line for each choice that the data left open.
    """

    path: pathlib.Path
    files: tuple[SourceFile, ...]
    columns: Columns
    test_share: float
    notices: tuple[str, ...]

    @property
    def size(self) -> int:
        """About how many bytes of text there are."""
        return sum(file.size for file in self.files)

    def name_of(self, file: SourceFile) -> str:
        """Returns a file's path relative to the data folder."""
        if file.path == self.path:
            return self.path.name
        return file.path.relative_to(self.path).as_posix()

    def digested_files(self) -> list[pathlib.Path]:
        """Returns the files whose content the text depends on."""
        return [path for file in self.files for path in file.digested_files()]


def text_size(path: pathlib.Path) -> int:
    """Returns about how many bytes of text a file or folder holds, without looking inside."""
    if _is_tfds(path):
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    paths = walk(path, whole_examples=False) if path.is_dir() else [path]
    return sum(_size(each) for each in paths if each.is_file() and text_extension(each))


def plan_text(path: pathlib.Path, form: TextFormat) -> TextPlan:
    """Returns what is read of an existing file or folder, in the forms of `read_folder`.

    Several tables of one kind may lie in a folder. Test splits are left out; without one, labeled
    documents are test items by hash of their content, as where data is read into memory.

    Raises:
        CannotStreamError: the data are not text, or a flag asks for what only memory can do.
        UserError: a column is missing, or a file is damaged.
    """
    _check_flags(path, form)
    check_encoding(form.encoding)
    notices: list[str] = []
    columns = Columns(to_nfc(form.text_column), to_nfc(form.label_column), form.encoding)
    if _is_tfds(path):
        return _tfds_plan(path, form)
    if path.is_dir():
        found, comes_split = _folder_files(path, notices)
    else:
        found, comes_split = [(path, False)], False
    files = [_source_file(each, columns, notices, labeled) for each, labeled in found]
    files = [file for file in files if file.size]
    if not files:
        raise UserError(f"{path} holds no text")
    share = 0.0 if comes_split else TEST_SHARE
    return TextPlan(path, tuple(files), columns, share, tuple(dict.fromkeys(notices)))


def cut_into_spans(plan: TextPlan, part_bytes: int) -> list[tuple[Span, ...]]:
    """Returns the parts of the text, each of spans of about `part_bytes` bytes in all."""
    parts: list[tuple[Span, ...]] = []
    held: list[Span] = []
    size = 0
    for file in plan.files:
        for span, own in _spans(file, part_bytes, plan.columns):
            if held and size + own > part_bytes:
                parts.append(tuple(held))
                held, size = [], 0
            held.append(span)
            size += own
    return [*parts, tuple(held)] if held else parts


def _is_tfds(path: pathlib.Path) -> bool:
    """Returns whether a folder is a prepared TFDS data set, not one that `datasets` saved."""
    return (path / "dataset_info.json").is_file() and not saved_splits(path)


def _check_flags(path: pathlib.Path, form: TextFormat) -> None:
    flags = ("target_column", "value_column", "label_separator", "group_column", "item_group")
    flags += ("id_column", "second_text_column", "file_column")
    for flag in flags:
        if getattr(form, flag):
            raise CannotStreamError(
                f"--{flag}={getattr(form, flag)}: is for data that fits in memory"
            )
    if "," in form.label_column:
        raise CannotStreamError(
            f"--label_column={form.label_column}: several columns are for data that fits in memory"
        )
    if path.is_file() and archives.is_archive(path):
        raise CannotStreamError(f"{path} is an archive; unpack it")
    if conll.conll_files(path):
        raise CannotStreamError(f"{path} holds words with tags")


def _folder_files(
    folder: pathlib.Path, notices: list[str]
) -> tuple[list[tuple[pathlib.Path, bool]], bool]:
    """Returns the files to train on, each with whether its folder is a class; and if a test split.

    The rules are those of `read_folder`.
    """
    if saved := saved_splits(folder):
        return _saved_files(folder, saved, notices)
    entries = visible_entries(folder)
    folders = [path for path in entries if path.is_dir()]
    if by_split := split_folders(folder, folders, notices):
        found = [
            (path, labeled and split != "unlabeled")
            for split, own in by_split.items()
            if split != "test"
            for path, labeled in _unsplit_files(own, notices)
        ]
        return found, "test" in by_split
    if by_split := split_files(folder, entries, notices):
        kept = [own for split, own in by_split.items() if split != "test"]
        return [(path, False) for own in kept for path in own], "test" in by_split
    return _unsplit_files(folder, notices), False


def _saved_files(
    folder: pathlib.Path, saved: dict[str, list[pathlib.Path]], notices: list[str]
) -> tuple[list[tuple[pathlib.Path, bool]], bool]:
    """Returns the files of the splits of a folder that `datasets` saved which are trained on."""
    spelled = {name: "train" if name == "all" else split_of_word(name) for name in saved}
    kept = [name for name, split in spelled.items() if split in ("train", "unlabeled")]
    if not kept and len(saved) == 1:
        kept = list(saved)
    if not kept:
        raise UserError(f"{folder} has the splits {', '.join(saved)}, none of which is train")
    if others := [name for name in saved if name not in kept]:
        notices.append(f"its splits {', '.join(others)} are left out of pretraining")
    held_out = any(spelled[name] in ("test", "validation") for name in saved if name not in kept)
    return [(path, False) for name in kept for path in saved[name]], held_out


def _unsplit_files(folder: pathlib.Path, notices: list[str]) -> list[tuple[pathlib.Path, bool]]:
    """Returns the files of a folder of classes or of files, in order."""
    entries = visible_entries(folder)
    if any(path.is_dir() for path in entries):
        if any(modality_for_path(path) for path in entries):
            raise CannotStreamError(f"{folder} holds images, sounds or clips")
        found = []
        for own in (path for path in entries if path.is_dir()):
            labeled = split_of_word(own.name) != "unlabeled"
            found += [(path, labeled) for path in walk(own, whole_examples=True)]
        beside = [path for path in entries if not path.is_dir() and not is_readme(path)]
        if beside:
            notices.append(
                f"{len(beside)} files beside the class folders are left out, such as "
                f"{beside[0].name}"
            )
        for path, _ in found:
            if modality_for_path(path) or text_extension(path) != ".txt":
                raise CannotStreamError(
                    f"{path}: folders by class hold .txt files, one document each"
                )
        return found
    files = [path for path in entries if not is_readme(path) or text_extension(path)]
    extensions = {text_extension(path) or path.suffix.lower() for path in files}
    if extensions & set(media_extensions()):
        raise CannotStreamError(f"{folder} holds images, sounds or clips")
    if len(extensions) > 1 or "" in {text_extension(path) for path in files}:
        raise CannotStreamError(
            f"{folder} holds {', '.join(sorted(extensions))} files; text is in files of one kind"
        )
    return [(path, False) for path in files]


def _source_file(
    path: pathlib.Path, columns: Columns, notices: list[str], labeled: bool
) -> SourceFile:
    extension = text_extension(path)
    if not extension or not path.is_file():
        raise CannotStreamError(f"{path} is no file of text")
    size = _size(path)
    if extension in ARROW_EXTENSIONS:
        kind = "parquet" if extension == ".parquet" else "arrow"
        return _arrow_file(SourceFile(path, kind, size), columns)
    if extension == ".txt":
        if looks_like_conll(path):
            raise CannotStreamError(f"{path} holds words with tags")
        if labeled:
            return SourceFile(path, "file", size, labeled=True)
        sample = _sample(path, columns)
        by_paragraph = examples_are_paragraphs(sample)
        if by_paragraph:
            notices.append(f"{path.name}: read as paragraphs between blank lines")
        return SourceFile(path, "paragraphs" if by_paragraph else "lines", size)
    if extension == ".jsonl":
        return _json_file(SourceFile(path, "jsonl", size), columns)
    return _separated_file(path, extension, size, columns, notices)


def _size(path: pathlib.Path) -> int:
    """Returns about how many bytes of text a file holds."""
    size = path.stat().st_size
    return size * _GZIP_RATIO if path.name.lower().endswith(GZIP_EXTENSION) else size


def _sample(path: pathlib.Path, columns: Columns) -> str:
    """Returns the first lines of a text file."""
    compressed = path.name.lower().endswith(GZIP_EXTENSION)
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            content = file.read(_SAMPLE_BYTES)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    text = content.decode(columns.encoding, "replace").removeprefix("\ufeff")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text.rpartition("\n")[0] or text) if len(content) == _SAMPLE_BYTES else text


def _check_column(path: pathlib.Path, names: Sequence[str], columns: Columns) -> None:
    if columns.text in names:
        return
    listed = ", ".join(map(repr, names)) or "none"
    raise UserError(
        f"--text_column={columns.text}: {path} has no column {columns.text!r}; it has: {listed}"
    )


def _json_file(file: SourceFile, columns: Columns) -> SourceFile:
    """Checks that the first rows of a .jsonl file have the column of the text."""
    sample = _sample(file.path, columns)
    first = next((line for line in sample.split("\n") if line.strip()), "")
    keys = re.findall(r'"((?:[^"\\]|\\.)*)"\s*:', first)
    if f'"{columns.text}"' not in sample:
        _check_column(file.path, list(dict.fromkeys(keys)), columns)
    return file


def _separated_file(
    path: pathlib.Path, extension: str, size: int, columns: Columns, notices: list[str]
) -> SourceFile:
    sample, kind = _sample(path, columns), "csv"
    delimiter, quoting = ",", csv.QUOTE_MINIMAL
    if extension == ".tsv":
        delimiter, quoting = "\t", tsv_quoting(path, sample, notices)
        kind = "tsv_plain" if quoting == csv.QUOTE_NONE else "tsv"
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, quoting=quoting)
    names = tuple(to_nfc(name) for name in next(rows, []))
    _check_column(path, names, columns)
    return SourceFile(path, kind, size, columns=names)


def _arrow_file(file: SourceFile, columns: Columns) -> SourceFile:
    """Returns the file with the size of its column of text; checks that it holds strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, size = file.path, file.size
    try:
        if file.kind == "parquet":
            with pq.ParquetFile(path) as opened:
                schema = opened.schema_arrow
                size = sum(_group_bytes(opened, columns.text))
        else:
            with pa.OSFile(str(path)) as raw:
                indexed = is_arrow_file(str(path))
                schema = (pa.ipc.open_file if indexed else pa.ipc.open_stream)(raw).schema
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        kind = path.suffix.lower().removeprefix(".").capitalize()
        raise UserError(f"{path} is not a readable {kind} file: {reason}") from error
    if columns.text not in schema.names and any(map(_is_media, schema.types)):
        raise CannotStreamError(f"{path} holds images or sounds")
    _check_column(path, schema.names, columns)
    kind = schema.field(columns.text).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_dictionary(kind)):
        raise CannotStreamError(f"{path}: the column {columns.text!r} holds {kind}, not text")
    return dataclasses.replace(file, size=size)


def _is_dictionary(kind: object) -> bool:
    import pyarrow as pa

    return pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)  # pyright: ignore


def _is_media(kind: object) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) or pa.types.is_binary(kind)


def _group_bytes(opened: object, column: str) -> Iterator[int]:
    """Yields the bytes that a column has in each row group of a Parquet file."""
    metadata = opened.metadata  # pyright: ignore[reportAttributeAccessIssue]
    for group in range(metadata.num_row_groups):
        own = metadata.row_group(group)
        for index in range(own.num_columns):
            if own.column(index).path_in_schema == column:
                yield own.column(index).total_uncompressed_size


def _tfds_plan(folder: pathlib.Path, form: TextFormat) -> TextPlan:
    """Returns what is read of a prepared TFDS data set: the texts of its train split."""
    from fm.data.feature_columns import find_all_columns
    from fm.data.prepare import open_checked

    builder = open_checked(folder.resolve())
    splits = builder.info.splits
    if "train" not in splits:
        raise UserError(f"{folder} has no train split; it has: {', '.join(splits) or 'none'}")
    if str(read_json(folder / "dataset_info.json").get("fileFormat")) != "array_record":
        raise CannotStreamError(f"{folder} is not prepared as array_record")
    found = find_all_columns(str(folder), builder.info.features, form)
    if found.modality != "text" or found.tags:
        raise CannotStreamError(f"{folder} holds {found.modality}, which is read from its index")
    columns = Columns(found.content, found.label or "", form.encoding)
    comes_split = bool({"test", "validation"} & set(splits))
    file = SourceFile(folder, "tfds", int(splits["train"].num_bytes))
    return TextPlan(folder, (file,), columns, 0.0 if comes_split else TEST_SHARE, ())


def _spans(file: SourceFile, part_bytes: int, columns: Columns) -> Iterator[tuple[Span, int]]:
    """Yields spans of a file and their sizes, each of about `part_bytes` at most if it can be."""
    whole = Span(str(file.path), file.kind, labeled=file.labeled, columns=file.columns)
    if file.kind == "parquet":
        yield from _parquet_spans(file, whole, part_bytes, columns.text)
    elif file.kind == "arrow":
        yield from _arrow_spans(file, whole, part_bytes)
    elif file.kind == "tfds":
        yield from _tfds_spans(file, whole, part_bytes)
    elif (
        file.size <= part_bytes
        or file.kind == "file"
        or file.path.name.lower().endswith(GZIP_EXTENSION)
        or columns.encoding.lower().replace("_", "-") not in ("utf-8", "utf8")
    ):
        yield whole, file.size
    else:
        ends = _row_ends if file.kind in ("csv", "tsv", "tsv_plain") else _line_ends
        start = 0
        for end in ends(file, part_bytes):
            yield dataclasses.replace(whole, start=start, end=end), end - start
            start = end


def _line_ends(file: SourceFile, part_bytes: int) -> Iterator[int]:
    """Yields the ends of the spans of a text file: where a line or a paragraph ends."""
    size = file.path.stat().st_size
    between = re.compile(rb"\n(?:[^\S\n]*\n)+" if file.kind == "paragraphs" else rb"\n")
    start = 0
    with file.path.open("rb") as opened:
        while start < size:
            position = min(start + part_bytes, size)
            opened.seek(position)
            end, held = size, b""
            while chunk := opened.read(_CHUNK):
                held += chunk
                if found := between.search(held):
                    end = position + found.end()
                    break
                # What lies between two paragraphs may lie across two chunks.
                dropped = max(0, len(held) - _CHUNK)
                position, held = position + dropped, held[dropped:]
            yield end
            start = end


def _row_ends(file: SourceFile, part_bytes: int) -> Iterator[int]:
    """Yields the ends of the spans of a .csv or .tsv file, whose rows may hold line ends.

    The whole file is parsed, as nothing less tells where a row ends.
    """
    size, start, position = file.path.stat().st_size, 0, 0
    delimiter = "," if file.kind == "csv" else "\t"
    quoting = csv.QUOTE_NONE if file.kind == "tsv_plain" else csv.QUOTE_MINIMAL

    def lines(opened: io.BufferedReader) -> Iterator[str]:
        nonlocal position
        for line in opened:
            position += len(line)
            yield line.decode("utf-8", "replace")

    with file.path.open("rb") as opened:
        try:
            for _ in csv.reader(lines(opened), delimiter=delimiter, quoting=quoting):
                if position - start >= part_bytes:
                    yield position
                    start = position
        except csv.Error:  # told, with its place, by whoever reads the rest
            pass
    if start < size:
        yield size


def _parquet_spans(
    file: SourceFile, whole: Span, part_bytes: int, column: str
) -> Iterator[tuple[Span, int]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path) as opened:
        sizes = list(_group_bytes(opened, column)) or [0] * opened.num_row_groups
    start = size = 0
    for group, own in enumerate(sizes):
        if group > start and size + own > part_bytes:
            yield dataclasses.replace(whole, start=start, end=group), size
            start, size = group, 0
        size += own
    yield dataclasses.replace(whole, start=start, end=len(sizes)), size


def _arrow_spans(file: SourceFile, whole: Span, part_bytes: int) -> Iterator[tuple[Span, int]]:
    import pyarrow as pa

    if not is_arrow_file(str(file.path)):  # a stream has no index of its batches
        yield whole, file.size
        return
    with pa.OSFile(str(file.path)) as raw:
        count = pa.ipc.open_file(raw).num_record_batches
    yield from _equal_spans(file, whole, count, part_bytes)


def _tfds_spans(file: SourceFile, whole: Span, part_bytes: int) -> Iterator[tuple[Span, int]]:
    from fm.data import tfds_safety

    builder = tfds_safety.open_prepared(file.path.resolve())
    count = int(builder.info.splits["train"].num_examples)
    yield from _equal_spans(file, whole, count, part_bytes)


def _equal_spans(
    file: SourceFile, whole: Span, count: int, part_bytes: int
) -> Iterator[tuple[Span, int]]:
    """Yields spans of the same number of a file's `count` pieces, and about how many bytes each."""
    step = max(1, round(count * part_bytes / max(file.size, 1)))
    for start in range(0, count, step):
        end = min(start + step, count)
        yield (
            dataclasses.replace(whole, start=start, end=end),
            file.size * (end - start) // max(count, 1),
        )
