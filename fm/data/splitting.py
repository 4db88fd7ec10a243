"""Content digests of examples, and train/test splits that depend on them alone."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_DIGEST_BYTES = 16
# The development part: as many items as a test slice usually has, and most examples stay training.
DEVELOPMENT_ITEMS, DEVELOPMENT_SHARE = 1000, 0.2


def text_digest(text: str) -> str:
    """Returns the hex digest (32 digits) of a text's exact UTF-8 bytes, without normalization."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Returns the hex digest (32 digits) of an array's shape and values."""
    content = repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def is_test(digest: str, share: float) -> bool:
    """Returns whether the example with this digest is in the test split (fraction `share`).

    The answer depends on the content alone: the order of examples does not matter, adding examples
    moves none, and exact copies are always on the same side.
    """
    return int(digest[:8], 16) < share * 2**32


def split_by_hash(
    digests: Sequence[str], labels: Sequence[int] | None, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (train, test) indices by digest; every label is on both sides where possible.

    If a label has no train or no test example, its example with the highest or lowest digest moves
    (with its copies).

    Args:
        digests: one per example.
        labels: one per example; None for unlabeled data, which counts as one label.
        share: expected fraction of test examples.

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
    in_test = np.array([digest in test for digest in digests], bool)
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def split_by_group(
    groups: Sequence[str], share: float, classes: Sequence[Sequence[Any]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (train, test) indices that keep every group (e.g. speaker) in one split.

    Groups go to the test split in order of their digests until it has `share` of the examples; at
    least one group remains for training, and one with the last training example of a class does.
    The order of examples does not matter, but additional groups may move others.

    Args:
        groups: the group of each example; at least two different ones.
        share: minimum fraction of test examples.
        classes: those of each example, one or several; None if there are no classes.

    Returns:
        Ascending indices of the train and of the test examples.
    """
    ordered = sorted(set(groups), key=text_digest)
    sizes = Counter(groups)
    own: dict[str, Counter[Any]] = {group: Counter() for group in ordered}
    for group, some in zip(groups, classes or [()] * len(groups), strict=True):
        own[group].update(some)
    remaining = sum(own.values(), Counter())
    test: set[str] = set()
    for group in ordered[:-1]:
        enough = sum(sizes[each] for each in test) >= share * len(groups)
        if not enough and all(remaining[each] > count for each, count in own[group].items()):
            test.add(group)
            remaining -= own[group]
    in_test = np.array([group in test for group in groups], bool)
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def split_development(
    digests: Sequence[str],
    labels: Sequence[int] | None,
    groups: Sequence[str] | None = None,
    *,
    max_items: int = DEVELOPMENT_ITEMS,
    max_share: float = DEVELOPMENT_SHARE,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (train, development) indices of a training split, by digest or whole groups.

    Examples (or groups) enter the development part in the order of a digest of their own, until it
    has `max_items` examples or `max_share` of the labeled ones. Neither depends on the order of the
    examples, and copies stay in one part. Every label keeps an example in the train part.

    Args:
        digests: one per example.
        labels: one per example, -1 for unlabeled ones, which stay in the train part; None if there
            are no classes.
        groups: the group of each example, which no two parts may share; None for a split by digest.
        max_items: largest number of development examples.
        max_share: largest fraction of the labeled examples.

    Returns:
        Ascending indices of the train and of the development examples; the latter are none if not
        even the smallest group fits.
    """
    labels = labels if labels is not None else [0] * len(digests)
    labeled = [n for n, label in enumerate(labels) if label >= 0]
    limit = min(max_items, int(max_share * len(labeled)))
    members: dict[str, list[int]] = {}
    for n in labeled:
        members.setdefault((digests if groups is None else groups)[n], []).append(n)
    remaining = Counter(labels[n] for n in labeled)
    in_development = np.zeros(len(digests), bool)
    # The digest itself already decided about the test split, so it is hashed once more.
    for unit in sorted(members, key=lambda unit: text_digest(f"development {unit}")):
        own = Counter(labels[n] for n in members[unit])
        fits = in_development.sum() + own.total() <= limit
        if fits and all(remaining[label] > count for label, count in own.items()):
            in_development[members[unit]] = True
            remaining -= own
    return np.flatnonzero(~in_development), np.flatnonzero(in_development)


def with_unique_keys(examples: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields (unique key, example) from (digest, example), since TFDS rejects repeated keys."""
    counts: Counter[str] = Counter()
    for digest, example in examples:
        yield f"{digest}-{counts[digest]}", example
        counts[digest] += 1
