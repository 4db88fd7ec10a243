"""Finds near-duplicates of test items in pretraining data, for removal."""

import dataclasses

import numpy as np

from fm.data.datasets import Split
from fm.data.media import get_modality


@dataclasses.dataclass(frozen=True, eq=False)
class DuplicateSearchResult:
    """Result of a search for test items' near-duplicates: counts, and pretraining indices.

    Attributes:
        method: the rule, in words.
        num_checked: test items searched for.
        num_found: test items with a near-duplicate in the pretraining data.
        duplicate_idx: int64, ascending indices into the pretraining split, for
            `fm.data.datasets.without`.
    """

    method: str
    num_checked: int
    num_found: int
    duplicate_idx: np.ndarray


def find_duplicates(pretrain: Split, test: Split, modality: str) -> DuplicateSearchResult:
    """Returns which pretraining examples nearly duplicate test items, and how many such items.

    Args:
        pretrain: what a model would be pretrained on.
        test: what it would be scored on.
        modality: of both splits; its `DuplicateRule` says what counts as a near-duplicate.

    Returns:
        The result; `without(pretrain, result.duplicate_idx)` has no near-duplicates left.
    """
    rule = get_modality(modality).duplicates
    pairs = rule.find(pretrain.inputs(range(len(pretrain))), test.inputs(range(len(test))))
    return DuplicateSearchResult(
        method=rule.description,
        num_checked=len(test),
        num_found=len(np.unique(pairs[:, 1])),
        duplicate_idx=np.unique(pairs[:, 0]),
    )
