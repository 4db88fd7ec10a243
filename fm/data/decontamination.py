"""Near-duplicates of test items in pretraining data: found, counted, given for removal."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fm.data.datasets import Split
from fm.data.dedup import audio, image, text, video
from fm.errors import UserError

# By modality: the rule in words, and what finds the pairs, int64 [pairs, 2], in two `inputs`.
_SEARCHES: dict[str, tuple[str, Callable[[Any, Any], np.ndarray]]] = {
    "text": (text.METHOD, text.find_text_duplicates),
    "image": (image.METHOD, image.find_image_duplicates),
    "audio": (audio.METHOD, audio.find_audio_duplicates),
    "video": (video.METHOD, video.find_video_duplicates),
}


@dataclasses.dataclass(frozen=True, eq=False)
class DuplicateSearch:
    """What a search found.

    Attributes:
        method: the rule, in words.
        num_checked: test items searched for.
        num_found: test items with a near-duplicate in the pretraining data.
        duplicate_idx: int64, ascending indices into the pretraining split, for `without`.
    """

    method: str
    num_checked: int
    num_found: int
    duplicate_idx: np.ndarray


def find_duplicates(pretrain: Split, test: Split, modality: str) -> DuplicateSearch:
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
    return DuplicateSearch(
        method=method,
        num_checked=len(test),
        num_found=len(np.unique(pairs[:, 1])),
        duplicate_idx=np.unique(pairs[:, 0]),
    )
