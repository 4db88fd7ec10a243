"""Tells of test items that a model was pretrained on: a run keeps the ids of its corpus."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from fm.data.datasets import Split
from fm.errors import UserError
from fm.files import atomic_path

IDS_FILE = "corpus_ids.npy"
_NUM_DIGITS = 16
_BLOCK = 2**20


def save_corpus_ids(corpora: Sequence[Split], out_dir: pathlib.Path) -> None:
    """Writes the sorted ids (content hashes, 16 digits) of all examples of the corpora."""
    with atomic_path(out_dir / IDS_FILE) as partial, partial.open("wb") as file:
        np.save(file, np.unique(np.concatenate([_ids(each) for each in corpora])))


def save_corpus_hashes(hashes: np.ndarray, out_dir: pathlib.Path) -> None:
    """Writes the same file from the first 64 bits of the content hashes, sorted uint64 [N]."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    hashes = np.unique(hashes)
    with atomic_path(out_dir / IDS_FILE) as partial:
        shape = (len(hashes),)
        ids = np.lib.format.open_memmap(partial, "w+", np.dtype(f"S{_NUM_DIGITS}"), shape)
        for start in range(0, len(hashes), _BLOCK):
            octets = hashes[start : start + _BLOCK].astype(">u8").view(np.uint8)
            halves = np.stack([digits[octets >> 4], digits[octets & 15]], -1)
            ids[start : start + _BLOCK] = halves.reshape(-1).view(ids.dtype)
        ids.flush()


def tell_seen_items(folder: pathlib.Path, test: Split) -> None:
    """Prints to stderr how many test items a model was pretrained on, if it was on any.

    Args:
      folder: the run folder of `fm pretrain`; without a file of ids nothing is said.
      test: the test items.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / IDS_FILE
    if not path.exists():
        return
    try:
        # The ids are sorted, and may be more than fit in memory.
        pretrained_on, ids = np.load(path, mmap_mode="r", allow_pickle=False), _ids(test)
        places = np.minimum(np.searchsorted(pretrained_on, ids), len(pretrained_on) - 1)
        seen = int(np.sum(pretrained_on[places] == ids)) if len(pretrained_on) else 0
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"{path} is not a readable file of ids: {error}") from error
    if seen:
        print(
            f"{seen:,} of {len(test):,} test items are copies of examples that {folder} was "
            "pretrained on: the score is too high; pretrain on data without them, such as "
            "--dataset with its labels, whose test split is then left out",
            file=sys.stderr,
        )


def _ids(split: Split) -> np.ndarray:
    return np.array([each[:_NUM_DIGITS] for each in split.ids], f"S{_NUM_DIGITS}")
