"""Near-duplicates of test items in pretraining data: found, counted, given for removal."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fm.data import clip_overlap, image_overlap, sound_overlap, text_overlap
from fm.data.splits import Split
from fm.errors import UserError

# By modality: the rule in words, and what finds the pairs, int64 [pairs, 2], in two `inputs`.
_SEARCHES: dict[str, tuple[str, Callable[[Any, Any], np.ndarray]]] = {
    "text": (text_overlap.METHOD, text_overlap.text_matches),
    "image": (image_overlap.METHOD, image_overlap.image_matches),
    "audio": (sound_overlap.METHOD, sound_overlap.sound_matches),
    "video": (clip_overlap.METHOD, clip_overlap.clip_matches),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Leakage:
    """What a search found.

    Attributes:
        method: the rule, in words.
        checked: test items searched for.
        found: test items with a near-duplicate in the pretraining data.
        removed: int64, ascending indices into the pretraining split, for `without`.
    """

    method: str
    checked: int
    found: int
    removed: np.ndarray


def find_duplicates(pretrain: Split, test: Split, modality: str) -> Leakage:
    """Searches a pretraining split for near-duplicates of test items.

    Args:
        pretrain: what a model would be pretrained on.
        test: what it would be scored on.
        modality: that of both; `method` then says what counts as one.

    Returns:
        What was found; `without(pretrain, leakage.removed)` is free of it.
    """
    if modality not in _SEARCHES:
        raise UserError(f"unknown modality {modality!r}; accepted: {', '.join(_SEARCHES)}")
    method, matches = _SEARCHES[modality]
    pairs = matches(pretrain.inputs(range(len(pretrain))), test.inputs(range(len(test))))
    return Leakage(
        method=method,
        checked=len(test),
        found=len(np.unique(pairs[:, 1])),
        removed=np.unique(pairs[:, 0]),
    )
