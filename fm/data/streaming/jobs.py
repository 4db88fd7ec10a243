"""The two passes over a part of a corpus: `scan` finds its documents, `write_shard` tokenizes them.

Both are deterministic and write their files whole, so that a pass that was killed is repeated for
the unfinished parts alone, in any number of processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.splitting import is_test, text_digest
from fm.data.streaming.documents import Columns, Document, Span, read_documents
from fm.data.streaming.rows import RowWriter, token_dtype
from fm.data.streaming.word_encoder import WordEncoder
from fm.errors import UserError
from fm.files import atomic_path, atomic_write, file_digest, read_checked_json, write_checked_json

# What becomes of a document.
TRAIN, VALIDATION, DUPLICATE, TEST = range(4)
# Characters tokenized, packed and written together: what a process has in memory.
_WINDOW_CHARS = 2**24
_ENCODE_CHARS, _ENCODE_TEXTS = 2**20, 1024


@dataclasses.dataclass(frozen=True)
class Part:
    """What one job reads: spans of files, and how.

    Attributes:
        index: of the part in the corpus.
        spans: of files, in order.
        columns: of tables.
        test_share: fraction of labeled documents, by hash, that are test items and left out.
    """

    index: int
    spans: tuple[Span, ...]
    columns: Columns
    test_share: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Part:
        """Inverse of `to_dict`."""
        spans = tuple(Span.from_dict(each) for each in saved["spans"])
        return cls(saved["index"], spans, Columns(**saved["columns"]), saved["test_share"])

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Yields the documents of all spans, see `read_documents`."""
        for span in self.spans:
            yield from read_documents(span, self.columns, counts)


def short_hash(digest: str) -> int:
    """Returns the first 64 bits of a digest of `text_digest`.

    Two different texts share them with a probability of 3% among a billion texts.
    """
    return int(digest[:16], 16)


def mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Returns hashes as other, independent ones, uint64 (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = hashes + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def scan(part: dict[str, Any], folder: str, sample_share: float) -> dict[str, Any]:
    """Reads a part once and writes the hash of each document, and a sample of the texts.

    Args:
        part: see `Part`.
        folder: where `scan-N.*` files are written.
        sample_share: fraction of documents, by hash, in the sample for the tokenizer.

    Returns:
        Counts: documents, bytes, blank, cut.
    """
    own, out = Part.from_dict(part), pathlib.Path(folder)
    name = f"scan-{own.index:05d}"
    if (out / f"{name}.json").exists():
        return read_checked_json(out / f"{name}.json")
    counts: Counter[str] = Counter()
    hashes, is_item, sample = [], [], []
    limit = int(sample_share * 2**64)
    for document in own.documents(counts):
        try:
            digest = text_digest(document.text)
        except UnicodeEncodeError as error:
            raise UserError(
                f"{own.spans[0].path}: a text holds half a surrogate pair, not Unicode: "
                f"{document.text[:60]!r}"
            ) from error
        number = short_hash(digest)
        hashes.append(number)
        is_item.append(document.labeled and is_test(digest, own.test_share))
        counts["bytes"] += len(document.text.encode())
        if int(mixed(np.array([number], np.uint64), _SAMPLE_SEED)[0]) < limit:
            sample.append(document.text)
    with atomic_path(out / f"{name}.npy") as partial, partial.open("wb") as file:
        np.save(file, np.array(hashes, np.uint64))
        np.save(file, np.array(is_item, bool))
    atomic_write(out / f"{name}.sample.json", json.dumps(sample))
    found = {"documents": len(hashes), "bytes": counts["bytes"]}
    found |= {"blank": counts["blank"], "cut": counts["cut"]}
    write_checked_json(out / f"{name}.json", found)
    return found


# Of the sample for the tokenizer; the validation part has its own.
_SAMPLE_SEED = 1


def read_scan(folder: pathlib.Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes (uint64) of a part's documents, and whether each is a test item."""
    path = folder / f"scan-{index:05d}.npy"
    try:
        with path.open("rb") as file:
            return np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its folder and run again") from error


def shard_files(folder: pathlib.Path, index: int) -> dict[str, pathlib.Path]:
    """Returns the files of a shard: rows, validation rows and token counts."""
    return {
        "rows": folder / f"rows-{index:05d}.array_record",
        "validation": folder / f"validation-{index:05d}.array_record",
        "counts": folder / f"counts-{index:05d}.npy",
    }


def finished_shard(folder: pathlib.Path, index: int) -> dict[str, Any] | None:
    """Returns what `write_shard` told of a shard whose files are all as written, else None."""
    try:
        told = read_checked_json(folder / f"shard-{index:05d}.json")
        for name, path in shard_files(folder, index).items():
            if told["sha256"][name] != (file_digest(path) if path.exists() else None):
                return None
    except (OSError, UserError):
        return None
    return told


def write_shard(
    part: dict[str, Any],
    actions: str,
    folder: str,
    tokenizer: str,
    capacity: int,
    share_rows: bool,
) -> dict[str, Any]:
    """Tokenizes the documents of a part and writes them as rows.

    Args:
        part: see `Part`.
        actions: .npy file of what becomes of each document, uint8.
        folder: of the shards.
        tokenizer: path of the tokenizer.
        capacity: tokens in a row.
        share_rows: whether a row may hold several documents.

    Returns:
        Numbers of rows, validation rows, documents, tokens and bytes; and the files' digests.
    """
    own, out = Part.from_dict(part), pathlib.Path(folder)
    if (finished := finished_shard(out, own.index)) is not None:
        return finished
    encoder = bpe.load(tokenizer)
    words = WordEncoder(encoder)
    becomes = np.load(actions, allow_pickle=False)
    files = shard_files(out, own.index)
    dtype = token_dtype(encoder.vocab_size)
    counts_V = np.zeros(encoder.vocab_size, np.int64)
    told: dict[str, Any] = {"rows": 0, "validation_rows": 0, "documents": 0, "tokens": 0}
    told |= {"bytes": 0}
    with atomic_path(files["rows"]) as rows_path:
        rows = RowWriter(rows_path, capacity, dtype)
        held_out: list[np.ndarray] = []
        for texts, marks in _windows(own, becomes):
            chunks: list[np.ndarray] = []
            for ids, mark in zip(_encoded(words, texts), marks, strict=True):
                cut = bpe.token_chunks(ids, capacity, encoder)
                if mark == VALIDATION:
                    held_out += cut
                    continue
                chunks += cut
                told["documents"] += 1
                told["tokens"] += len(ids)
                counts_V += np.bincount(ids, minlength=len(counts_V))
            told["bytes"] += sum(
                len(text.encode()) for text, mark in zip(texts, marks, strict=True) if mark == TRAIN
            )
            rows.write(chunks, share_rows=share_rows)
        rows.close()
    told |= {"rows": rows.num_rows, "single": rows.single, "validation_single": True}
    files["validation"].unlink(missing_ok=True)
    if held_out:
        with atomic_path(files["validation"]) as path:
            validation = RowWriter(path, capacity, dtype)
            validation.write(held_out, share_rows=share_rows)
            validation.close()
        told |= {"validation_rows": validation.num_rows, "validation_single": validation.single}
    with atomic_path(files["counts"]) as partial, partial.open("wb") as file:
        np.save(file, counts_V)
    told["sha256"] = {
        name: file_digest(path) if path.exists() else None for name, path in files.items()
    }
    write_checked_json(out / f"shard-{own.index:05d}.json", told)
    return told


def _windows(part: Part, becomes: np.ndarray) -> Iterator[tuple[list[str], list[int]]]:
    """Yields the training and validation texts of a part, some MB at a time."""
    texts: list[str] = []
    marks: list[int] = []
    size = number = 0
    for number, document in enumerate(part.documents(Counter()), start=1):
        if number > len(becomes):
            break
        if (mark := int(becomes[number - 1])) in (DUPLICATE, TEST):
            continue
        texts.append(document.text)
        marks.append(mark)
        size += len(document.text)
        if size >= _WINDOW_CHARS:
            yield texts, marks
            texts, marks, size = [], [], 0
    if number != len(becomes):
        raise UserError(f"{part.spans[0].path} has changed while it was read; run again")
    if texts:
        yield texts, marks


def _encoded(encoder: WordEncoder, texts: list[str]) -> Iterator[np.ndarray]:
    """Yields the ids of each text; the library's encodings take far more memory than the ids."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _ENCODE_CHARS or len(batch) == _ENCODE_TEXTS:
            yield from encoder.encode(batch)
            batch, size = [], 0
    yield from encoder.encode(batch)


def digest_files(paths: list[str]) -> list[str]:
    """Returns the SHA-256 of each file."""
    return [file_digest(pathlib.Path(path)) for path in paths]


def combined_digest(parts: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


JOBS: dict[str, Any] = {"scan": scan, "write_shard": write_shard, "digest_files": digest_files}
