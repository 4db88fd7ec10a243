"""Names for examples made from their content, and the train/test split that follows from them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

# 128 bits: two different examples of one data set never share a name in practice.
_DIGEST_BYTES = 16


def text_digest(text: str) -> str:
    """Returns the hex digest (32 digits) of a text's UTF-8 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Returns the hex digest (32 digits) of an image's, sound's or clip's shape and values."""
    named = repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.blake2b(named, digest_size=_DIGEST_BYTES).hexdigest()


def is_test(digest: str, share: float) -> bool:
    """Says whether an example belongs to the test split, of which `share` (0..1) is expected.

    It depends on the content alone: the order of the examples does not matter, adding examples
    moves none, and exact copies never land on both sides.
    """
    return int(digest[:8], 16) < share * 2**32


def split_by_hash(
    digests: Sequence[str], labels: Sequence[int] | None, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples by `in_test`, and sees to it that small labels land on both sides.

    Where chance leaves a label without a train or without a test example, the one with its
    lowest or highest digest crosses over, copies included.

    Args:
        digests: one digest per example.
        labels: one label per example, or None for unlabelled data (then one label covers all).
        share: expected share of test examples.

    Returns:
        Ascending indices of the train and of the test examples.
    """
    test = {digest for digest in digests if is_test(digest, share)}
    by_label: dict[int, set[str]] = {}
    for digest, label in zip(digests, labels or [0] * len(digests), strict=True):
        by_label.setdefault(label, set()).add(digest)
    for _, own in sorted(by_label.items()):
        if len(own) > 1 and not own & test:
            test.add(min(own))
        elif len(own) > 1 and own <= test:
            test.remove(max(own))
    chosen = np.array([digest in test for digest in digests], bool)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def split_by_group(groups: Sequence[str], share: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples so that no group, a speaker say, is on both sides.

    Groups go to the test split in order of their digests until it has `share` of the examples;
    the last one stays. The order of the examples does not matter; added groups may move others.

    Args:
        groups: the group of each example, of at least two.
        share: least share of test examples.

    Returns:
        Ascending indices of the train and of the test examples.
    """
    ordered = sorted(set(groups), key=text_digest)
    sizes = Counter(groups)
    test: set[str] = set()
    for group in ordered[:-1]:
        if sum(sizes[each] for each in test) < share * len(groups):
            test.add(group)
    chosen = np.array([group in test for group in groups], bool)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def with_unique_keys(examples: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields (unique key, example) from (digest, example): TFDS refuses repeated keys."""
    seen: dict[str, int] = {}
    for digest, example in examples:
        count = seen.get(digest, 0)
        seen[digest] = count + 1
        yield f"{digest}-{count}", example
