"""Tokenizes a corpus of text once, in parallel and resumably, into files of packed rows.

The first pass (`scan_corpus`) hashes every document; the hashes say which are exact duplicates,
validation or test items. The second (`tokenize_corpus`) writes the rows. Both keep what they have
finished in the cache, under a digest of everything that it depends on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import Batches, row_batches
from fm.data.streaming import jobs
from fm.data.streaming.jobs import DUPLICATE, TEST, TRAIN, VALIDATION, Part
from fm.data.streaming.pool import run_jobs
from fm.data.streaming.rows import StoredRowSource, token_dtype
from fm.data.streaming.sources import TextPlan, cut_into_spans
from fm.errors import UserError
from fm.files import (
    atomic_path,
    atomic_write,
    cache_dir,
    read_checked_json,
    read_json,
    write_checked_json,
)
from fm.progress_lines import phase, say

VALIDATION_SHARE, MAX_VALIDATION = 0.02, 500
# The same documents are held out in runs of any seed, so that the seeds share the files.
VALIDATION_SEED = 0
MANIFEST_FILE = "manifest.json"
# To be increased when the same text would be read or stored differently.
_VERSION = 1
_PART_BYTES, _MAX_PARTS = 2**25, 4096
# Another process may be writing a younger file.
_STALE_SECONDS = 3600
# Hashes that are sorted at a time.
_MAX_SORTED = 2**24


@dataclasses.dataclass(frozen=True)
class ScannedCorpus:
    """A corpus of text, of which every document has been seen once.

    Attributes:
        plan: the files.
        folder: of the hashes.
        parts: what one job reads.
        documents: those that are not blank, duplicates included.
        bytes: of their text, in UTF-8.
        blank: texts of tables that are left out, as they are blank.
        cut: documents that are so long that they are read as several.
        duplicates: exact copies, which are left out.
        test: labeled documents left out as test items.
        validation: documents held out for the validation loss.
        sample_share: fraction of the documents that a tokenizer is trained on.
    """

    plan: TextPlan
    folder: pathlib.Path
    parts: tuple[Part, ...]
    documents: int
    bytes: int
    blank: int
    cut: int
    duplicates: int
    test: int
    validation: int
    sample_share: float

    @property
    def train(self) -> int:
        """Number of documents to train on."""
        return self.documents - self.duplicates - self.test - self.validation

    def sample(self) -> list[str]:
        """Returns the texts that a tokenizer is trained on."""
        texts: list[str] = []
        for part in self.parts:
            texts += read_json(self.folder / f"scan-{part.index:05d}.sample.json")
        return texts

    def actions_file(self, index: int) -> pathlib.Path:
        """Returns the file of what becomes of each document of a part."""
        return self.folder / f"actions-{index:05d}.npy"

    def corpus_hashes(self) -> np.ndarray:
        """Returns the sorted hashes of all documents of the corpus, test items left out."""
        found = []
        for part in self.parts:
            hashes, _ = jobs.read_scan(self.folder, part.index)
            becomes = np.load(self.actions_file(part.index), allow_pickle=False)
            found.append(hashes[(becomes == TRAIN) | (becomes == VALIDATION)])
        return np.sort(np.concatenate(found))

    def describe(self) -> str:
        """Returns a line with what becomes of the documents; the numbers add up."""
        left_out = {
            "exact duplicates, left out": self.duplicates,
            "test items (20% of the labeled documents, by hash), left out": self.test,
            "held out for the validation loss": self.validation,
        }
        parts = [f"{self.train:,} to train on"]
        parts += [f"{count:,} {what}" for what, count in left_out.items() if count]
        line = f"{self.documents:,} documents, {self.bytes / 1e6:,.1f} MB: {', '.join(parts)}"
        if self.blank:
            line += f"; {self.blank:,} blank texts were passed over"
        if self.cut:
            line += (
                f"; {self.cut:,} documents of over {2**22:,} characters are read in pieces of "
                "that size"
            )
        return line


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """The rows of a tokenized corpus on disk.

    Attributes:
        folder: of the files.
        manifest: as in manifest.json.
        counts_V: how often each token occurs in the training rows, int64 [V].
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    counts_V: np.ndarray

    def rows(self, *, validation: bool = False) -> StoredRowSource:
        """Returns the training rows, or those of the validation part."""
        prefix, shards = "validation_" if validation else "", self.manifest["shards"]
        kept = [
            (jobs.shard_files(self.folder, index)["validation" if validation else "rows"], count)
            for index, count in enumerate(shard[f"{prefix}rows"] for shard in shards)
            if count
        ]
        vocab_size = self.manifest["tokenizer"]["vocab_size"]
        return StoredRowSource(
            [path for path, _ in kept],
            [rows for _, rows in kept],
            self.manifest["seq_len"],
            token_dtype(vocab_size),
            with_length=all(shard[f"{prefix}single"] for shard in shards),
        )

    def digest(self) -> str:
        """Returns a digest of all rows."""
        return jobs.combined_digest([shard["sha256"] for shard in self.manifest["shards"]])

    def batches(self, batch_size: int, seed: int, *, validation: bool = False) -> Batches:
        """Returns endless batches of the rows in another random order each epoch."""
        rows = self.rows(validation=validation)
        return row_batches([rows], batch_size=batch_size, seed=seed, from_disk=True)


def corpus_fingerprint(plan: TextPlan) -> str:
    """Returns a digest of the text: of the files' content, names and how they are read.

    The digest of a file is kept in the cache until its size or time of change differs.
    """
    paths = plan.digested_files()
    known = _known_digests(paths)
    missing = [path for path in paths if str(path) not in known]
    if missing:
        size = sum(path.stat().st_size for path in missing)
        with phase(f"{plan.path}: reading {len(missing):,} files", size, "bytes") as shown:
            # Grouped, as of many small files the jobs would cost more than the reading.
            groups = _groups(missing, _PART_BYTES)
            arguments = [{"paths": [str(path) for path in own]} for own in groups]
            for index, digests in run_jobs("digest_files", arguments):
                for path, digest in zip(groups[index], digests, strict=True):
                    known[str(path)] = digest
                shown.update(sum(path.stat().st_size for path in groups[index]))
        _keep_digests(paths, known)
    names = [(os.fspath(path.relative_to(plan.path.parent)), known[str(path)]) for path in paths]
    files = [(file.kind, file.labeled, plan.name_of(file)) for file in plan.files]
    options = [dataclasses.asdict(plan.columns), plan.test_share]
    return jobs.combined_digest([_VERSION, names, files, options])


def _groups(paths: list[pathlib.Path], size: int) -> list[list[pathlib.Path]]:
    groups: list[list[pathlib.Path]] = []
    held = size
    for path in paths:
        own = path.stat().st_size
        if held + own > size:
            groups.append([])
            held = 0
        groups[-1].append(path)
        held += own
    return groups


def _digests_file(paths: list[pathlib.Path]) -> pathlib.Path:
    names = [os.fspath(path.absolute()) for path in paths]
    return cache_dir() / "text_digests" / f"{jobs.combined_digest(names)[:32]}.json"


def _state(path: pathlib.Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _known_digests(paths: list[pathlib.Path]) -> dict[str, str]:
    try:
        kept = read_checked_json(_digests_file(paths))
    except (OSError, UserError):
        return {}
    return {
        str(path): kept[str(path)]["sha256"]
        for path in paths
        if kept.get(str(path), {}).get("state") == _state(path)
    }


def _keep_digests(paths: list[pathlib.Path], known: dict[str, str]) -> None:
    kept = {str(path): {"state": _state(path), "sha256": known[str(path)]} for path in paths}
    write_checked_json(_digests_file(paths), kept)


def scan_corpus(
    plan: TextPlan, fingerprint: str, *, workers: int | None = None, part_bytes: int | None = None
) -> ScannedCorpus:
    """Returns the corpus with what becomes of each document; reads all of it once.

    Args:
        plan: the files.
        fingerprint: see `corpus_fingerprint`.
        workers: processes, see `run_jobs`.
        part_bytes: text of a part, about; by default 32 MB, more where there would be over 4,096.

    Raises:
        UserError: a file is damaged, or there are fewer than two documents.
    """
    part_bytes = part_bytes or max(_PART_BYTES, -(-plan.size // _MAX_PARTS))
    key = jobs.combined_digest([_VERSION, fingerprint, part_bytes, str(plan.path.absolute())])
    folder = cache_dir() / "text_scans" / key[:32]
    # Cutting parses tables, so its result is kept.
    spans_file = folder / "parts.json"
    if spans_file.exists():
        parts = tuple(Part.from_dict(each) for each in read_checked_json(spans_file))
    else:
        with phase(
            f"{plan.path}: cutting {plan.size / 1e6:,.0f} MB of text into parts", quiet=True
        ):
            spans = cut_into_spans(plan, part_bytes)
        parts = tuple(
            Part(index, own, plan.columns, plan.test_share) for index, own in enumerate(spans)
        )
        write_checked_json(spans_file, [part.to_dict() for part in parts])
    share = min(1.0, bpe.TRAINING_BYTES / max(plan.size, 1))
    arguments = [
        {"part": part.to_dict(), "folder": str(folder), "sample_share": share} for part in parts
    ]
    told: dict[int, dict[str, Any]] = {}
    with phase(f"{plan.path}: reading", len(parts), "parts") as shown:
        for index, each in run_jobs("scan", arguments, workers):
            told[index] = each
            shown.update()
    totals = {
        name: sum(each[name] for each in told.values())
        for name in ("documents", "bytes", "blank", "cut")
    }
    numbers = _decide(folder, parts)
    scanned = ScannedCorpus(plan, folder, parts, **totals, **numbers, sample_share=share)
    if scanned.train < 1 or not scanned.validation:
        raise UserError(
            f"{plan.path} is too little to pretrain on: different texts (lines, paragraphs ...): "
            f"{scanned.train + scanned.validation}; at least 2 are needed, one of them for "
            "validation"
        )
    return scanned


def _decide(folder: pathlib.Path, parts: tuple[Part, ...]) -> dict[str, int]:
    """Writes what becomes of each document of all parts; returns how many of each there are."""
    names = {"validation": VALIDATION, "duplicates": DUPLICATE, "test": TEST}
    path = folder / "decided.json"
    if path.exists():
        return read_checked_json(path)
    scans = [jobs.read_scan(folder, part.index) for part in parts]
    becomes = [np.where(is_item, TEST, TRAIN).astype(np.uint8) for _, is_item in scans]
    for own, repeated in zip(becomes, _repeated([hashes for hashes, _ in scans]), strict=True):
        # All copies of a test item are test items.
        own[repeated & (own == TRAIN)] = DUPLICATE
    total = sum(int((own == TRAIN).sum()) for own in becomes)
    wanted = max(1, min(MAX_VALIDATION, round(VALIDATION_SHARE * total)))
    ranks = [jobs.mixed(hashes, VALIDATION_SEED) for hashes, _ in scans]
    limit = _smallest(ranks, becomes, wanted) if total > 1 else None
    for own, rank in zip(becomes, ranks, strict=True):
        if limit is not None:
            own[(own == TRAIN) & (rank <= limit)] = VALIDATION
    for part, own in zip(parts, becomes, strict=True):
        with (
            atomic_path(folder / f"actions-{part.index:05d}.npy") as partial,
            partial.open("wb") as file,
        ):
            np.save(file, own)
    found = {
        name: sum(int((own == action).sum()) for own in becomes) for name, action in names.items()
    }
    write_checked_json(path, found)
    return found


def _repeated(hashes: list[np.ndarray]) -> list[np.ndarray]:
    """Returns for each part which of its documents are copies of an earlier one."""
    total = sum(map(len, hashes))
    bits = max(0, int(np.ceil(np.log2(max(total, 1) / _MAX_SORTED))))
    ends = np.cumsum([0, *map(len, hashes)])
    repeated = np.zeros(total, bool)
    for bucket in range(2**bits):
        own = [
            np.flatnonzero(each >> np.uint64(64 - bits) == bucket) if bits else np.arange(len(each))
            for each in hashes
        ]
        where = np.concatenate([idx + end for idx, end in zip(own, ends[:-1], strict=True)])
        values = np.concatenate([each[idx] for each, idx in zip(hashes, own, strict=True)])
        order = np.argsort(values, kind="stable")  # of equal ones the first comes first
        copies = values[order[1:]] == values[order[:-1]]
        repeated[where[order[1:][copies]]] = True
    return [repeated[start:end] for start, end in itertools.pairwise(ends)]


def _smallest(ranks: list[np.ndarray], becomes: list[np.ndarray], count: int) -> np.uint64:
    """Returns the rank of the last of the `count` training documents with the smallest ranks."""
    kept = np.zeros(0, np.uint64)
    for rank, own in zip(ranks, becomes, strict=True):
        kept = np.sort(np.concatenate([kept, rank[own == TRAIN]]))[:count]
    return kept[-1]


def tokenize_corpus(
    scanned: ScannedCorpus,
    tokenizer_file: pathlib.Path,
    *,
    seq_len: int,
    share_rows: bool,
    workers: int | None = None,
) -> TokenizedCorpus:
    """Returns the corpus as rows of tokens, writing those files that are not finished yet.

    Args:
        scanned: the corpus.
        tokenizer_file: of the tokenizer.
        seq_len: tokens in a row.
        share_rows: whether a row may hold several documents.
        workers: processes, see `run_jobs`.

    Raises:
        UserError: a file of the corpus has changed since it was scanned, or the disk is full.
    """
    tokenizer = bpe.load(tokenizer_file)
    asked = [_VERSION, scanned.folder.name, tokenizer.digest(), seq_len, share_rows]
    folder = cache_dir() / "text_rows" / jobs.combined_digest(asked)[:32]
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*.partial"):  # of a run that was killed
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            path.unlink(missing_ok=True)
    own_tokenizer = folder / "tokenizer.json"
    if not own_tokenizer.exists():
        atomic_write(own_tokenizer, tokenizer.to_json())
    title = f"{scanned.plan.path}: tokenizing {scanned.bytes / 1e6:,.0f} MB of text"
    told: dict[int, dict[str, Any]] = {}
    with phase(title, len(scanned.parts), "parts") as shown:
        for part in scanned.parts:  # what an earlier run has finished
            if (finished := jobs.finished_shard(folder, part.index)) is not None:
                told[part.index] = finished
                shown.update(skipped=True)
        left = [part for part in scanned.parts if part.index not in told]
        if told and left:
            say(
                f"{scanned.plan.path}: {len(told):,} of {len(scanned.parts):,} parts were "
                "tokenized before; going on"
            )
        arguments = [
            {
                "part": part.to_dict(),
                "actions": str(scanned.actions_file(part.index)),
                "folder": str(folder),
                "tokenizer": str(own_tokenizer),
                "capacity": seq_len,
                "share_rows": share_rows,
            }
            for part in left
        ]
        for index, each in run_jobs("write_shard", arguments, workers):
            told[left[index].index] = each
            shown.update()
    shards = [told[part.index] for part in scanned.parts]
    digests = _known_digests(scanned.plan.digested_files())
    manifest = {
        "version": _VERSION,
        "tokenizer": {
            "digest": tokenizer.digest(),
            "vocab_size": tokenizer.vocab_size,
            "sample_share": scanned.sample_share,
        },
        "sources": [
            {
                "name": scanned.plan.name_of(file),
                "bytes": file.path.stat().st_size if file.path.is_file() else file.size,
                "sha256": [
                    digests[str(path)] for path in file.digested_files() if str(path) in digests
                ],
            }
            for file in scanned.plan.files
        ],
        "documents": scanned.documents,
        "blank": scanned.blank,
        "cut": scanned.cut,
        "duplicates": scanned.duplicates,
        "test": scanned.test,
        "validation": {
            "documents": scanned.validation,
            "seed": VALIDATION_SEED,
            "share": VALIDATION_SHARE,
            "at_most": MAX_VALIDATION,
        },
        "seq_len": seq_len,
        "share_rows": share_rows,
        **{name: sum(each[name] for each in shards) for name in ("tokens", "bytes", "rows")},
        "shards": shards,
    }
    write_checked_json(folder / MANIFEST_FILE, json.loads(json.dumps(manifest)))
    counts_V = np.zeros(tokenizer.vocab_size, np.int64)
    for part in scanned.parts:
        counts_V += np.load(jobs.shard_files(folder, part.index)["counts"], allow_pickle=False)
    return TokenizedCorpus(folder, manifest, counts_V)
