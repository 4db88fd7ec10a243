"""Reads the examples of text files (.txt, .jsonl, .csv, .tsv, also with .gz) and Arrow tables."""

import codecs
import contextlib
import gzip
import io
import pathlib
import re
import zlib

from fm.data.readers.arrow import ARROW_EXTENSIONS, read_arrow_file
from fm.data.readers.columns import read_rows
from fm.data.readers.examples import Example, ReadLog, TextFormat
from fm.data.readers.tables import parse_json_lines, parse_separated
from fm.errors import UserError
from fm.files import read_bytes

_GZIPPED = (".txt", ".jsonl", ".csv", ".tsv")
TEXT_EXTENSIONS = (*_GZIPPED, *ARROW_EXTENSIONS)
GZIP_EXTENSION = ".gz"
ACCEPTED_TEXT_FILES = (
    f"{', '.join(_GZIPPED)} (each also with {GZIP_EXTENSION}), {', '.join(ARROW_EXTENSIONS)}"
)

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
    b"PAR1": "a Parquet file, which must end in .parquet",
    b"ARROW1": "an Arrow or Feather file, which must end in .arrow or .feather",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite file",
}


def text_extension(path: pathlib.Path) -> str:
    """Returns which of `TEXT_EXTENSIONS` a file has, before .gz if it has that; "" for none."""
    name = path.name.lower()
    if name.endswith(ARROW_EXTENSIONS):
        return path.suffix.lower()
    name = name.removesuffix(GZIP_EXTENSION)
    return next((each for each in _GZIPPED if name.endswith(each)), "")


def read_text_file(
    path: pathlib.Path, form: TextFormat, log: ReadLog, *, unlabeled: bool = False
) -> list[Example]:
    """Returns the non-blank examples of a text file or table; text may be compressed (.gz).

    Args:
        path: a .txt file (unlabeled; paragraphs separated by blank lines, or one example per line
            if there are none or few), a .jsonl, .csv or .tsv file, or a Parquet, Arrow or Feather
            file.
        form: its encoding and columns.
        log: of the reading.
        unlabeled: see `fm.data.readers.columns.read_rows`.

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
    log.files.append(path)
    if extension in ARROW_EXTENSIONS:
        table = read_arrow_file(path)
        if not table.rows:
            raise UserError(f"{path} is empty")
        return read_rows(path, table, form, log, unlabeled=unlabeled)
    content = read_text(path, form.encoding)
    if not content.strip():
        raise UserError(f"{path} is empty")
    if extension == ".txt":
        for flag in ("target_column", "value_column", "id_column", "second_text_column"):
            if getattr(form, flag) and not unlabeled:
                name = getattr(form, flag)
                raise UserError(f"--{flag}={name}: {path} is plain text, which has no columns")
        return _parse_txt(path, content, log)
    if extension == ".jsonl":
        table = parse_json_lines(path, content, form)
    else:
        table = parse_separated(path, content, "\t" if extension == ".tsv" else ",", log.notices)
    return read_rows(path, table, form, log, unlabeled=unlabeled)


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


def examples_are_paragraphs(content: str) -> bool:
    """Returns whether the examples of a .txt file are paragraphs between blank lines, not lines."""
    lines = [line for line in content.split("\n") if line.strip()]
    return _is_by_paragraph(len(lines), len(_paragraphs(content)))


def _paragraphs(content: str) -> list[str]:
    return re.split(r"\n(?:[^\S\n]*\n)+", content.strip())


def _is_by_paragraph(lines: int, paragraphs: int) -> bool:
    few_lines = lines <= _MAX_LINES_PER_PARAGRAPH * paragraphs
    return paragraphs > 1 and (paragraphs >= _MIN_PARAGRAPHS or few_lines)


def check_encoding(encoding: str) -> None:
    """Raises UserError unless Python can decode text of this encoding."""
    _codec_name(encoding)


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


def _parse_txt(path: pathlib.Path, content: str, log: ReadLog) -> list[Example]:
    if _is_conll(content[:_SAMPLE_BYTES].rpartition("\n")[0] or content):
        raise UserError(
            f"{path} holds words with entity tags (CoNLL) among files read as plain text; accepted "
            "is one such file, or a folder of a train and a test file"
        )
    lines = [line for line in content.split("\n") if line.strip()]
    paragraphs = _paragraphs(content)
    texts = lines
    if len(paragraphs) > 1:
        by_paragraph = _is_by_paragraph(len(lines), len(paragraphs))
        texts = paragraphs if by_paragraph else lines
        unit = "paragraph between blank lines" if by_paragraph else "line"
        log.notices.append(
            f"{path.name}: {len(lines)} lines, with blank lines in {len(paragraphs) - 1} places; "
            f"read as {len(texts)} examples, one a {unit}"
        )
    columns = {line.count("\t") + 1 for line in lines}
    if len(columns) == 1 and (count := columns.pop()) > 1:
        log.notices.append(
            f"{path.name}: every line has {count} columns separated by tabs, read as plain text; "
            "a table needs a first line with their names and the ending .tsv"
        )
    file = log.name(path)
    return [
        Example(text.strip(), row_id=f"{file}:{number}", file=file)
        for number, text in enumerate(texts, start=1)
    ]
