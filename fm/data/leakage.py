"""Near-duplicates of test items in pretraining data: found, counted, given for removal."""

import dataclasses

import numpy as np

from fm.data.image_overlap import METHOD as IMAGE_METHOD
from fm.data.image_overlap import image_matches
from fm.data.splits import Split
from fm.data.text_overlap import METHOD as TEXT_METHOD
from fm.data.text_overlap import text_matches
from fm.errors import UserError


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
        modality: "text" (word 13-grams) or "image" (perceptual hash, confirmed on pixels).

    Returns:
        What was found; `without(pretrain, leakage.removed)` is free of it.
    """
    inputs = pretrain.inputs(range(len(pretrain))), test.inputs(range(len(test)))
    match modality:
        case "text":
            method, pairs = TEXT_METHOD, text_matches(*map(list, inputs))
        case "image":
            method, pairs = IMAGE_METHOD, image_matches(*map(np.asarray, inputs))
        case _:
            raise UserError(f"unknown modality {modality!r}; accepted: text, image")
    return Leakage(
        method=method,
        checked=len(test),
        found=len(np.unique(pairs[:, 1])),
        removed=np.unique(pairs[:, 0]),
    )
