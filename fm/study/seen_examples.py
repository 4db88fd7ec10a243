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


def save_corpus_ids(corpora: Sequence[Split], out_dir: pathlib.Path) -> None:
    """Writes the sorted ids (content hashes, 16 digits) of all examples of the corpora."""
    with atomic_path(out_dir / IDS_FILE) as partial, partial.open("wb") as file:
        np.save(file, np.unique(np.concatenate([_ids(each) for each in corpora])))


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
        pretrained_on = np.load(path, allow_pickle=False)
        seen = int(np.isin(_ids(test), pretrained_on).sum())
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
