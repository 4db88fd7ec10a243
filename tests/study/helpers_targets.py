"""Small data in memory whose labels are numbers, sets of classes, or of pairs of texts."""

import dataclasses

import numpy as np

from tests.study.helpers_study import dataset, split

COLORS = ("red", "green", "blue")


def with_columns(part, **columns):
    """The split with columns given as lists, and no labels."""
    readers = {
        name: (lambda rows, values=values: [values[n] for n in rows])
        for name, values in columns.items()
    }
    return dataclasses.replace(part, columns=part.columns | readers)


def _dataset(name, parts, classes=(), modality="text", shape=None):
    base = dataset(name)
    info = base.info | {"shape": shape}
    return dataclasses.replace(
        base, train=parts[0], test=parts[1], classes=classes, modality=modality, info=info
    )


def starred(count, seed, unlabeled=0):
    """Texts of 20 words; their number is the share of the word "good" plus a little noise."""
    draws = np.random.default_rng(seed)
    inputs, values = [], []
    for _ in range(count):
        share = draws.random()
        words = np.where(draws.random(20) < share, "good", "bad")
        fill = draws.choice(["film", "plot", "cast", "end"], 6)
        # A word of its own: no text is a near-duplicate of another.
        own = f"x{seed}{len(inputs)}"
        inputs.append(" ".join(draws.permutation([*words, *fill, own])))
        values.append(10 * share + 100)
    values[count - unlabeled :] = [float("nan")] * unlabeled
    return with_columns(split(inputs, None), values=values)


def stars(train=60, test=16, unlabeled=10):
    """Regression of texts."""
    return _dataset("stars", (starred(train, 0, unlabeled), starred(test, 1)))


def brightness(train=40, test=12):
    """Regression of images: how bright they are."""

    def part(count, seed):
        draws = np.random.default_rng(seed)
        level = draws.random(count)
        pixels = draws.integers(0, 64, (count, 8, 8, 1)) + 190 * level[:, None, None, None]
        return with_columns(split(pixels.astype(np.uint8), None), values=level.tolist())

    return _dataset("brightness", (part(train, 0), part(test, 1)), (), "image", [8, 8, 1])


def painted(count, seed, unlabeled=0):
    """Texts that name the colors of their set, some none."""
    draws = np.random.default_rng(seed)
    hot = draws.random((count, 3)) < [0.5, 0.4, 0.15]
    inputs, sets = [], []
    for own in hot:
        present = tuple(np.flatnonzero(own).tolist())
        words = [COLORS[k] for k in present for _ in range(4)]
        words += draws.choice(["paint", "wall", "brush", "house"], 12).tolist()
        words.append(f"x{seed}{len(inputs)}")
        inputs.append(" ".join(draws.permutation(words)))
        sets.append(present)
    sets[count - unlabeled :] = [None] * unlabeled
    return with_columns(split(inputs, None), label_sets=sets)


def colors(train=70, test=20, unlabeled=10):
    """Multi-label classification of texts."""
    return _dataset("colors", (painted(train, 0, unlabeled), painted(test, 1)), COLORS)


def paired(count, seed, labels=True):
    """Pairs of texts that are about the same words or not."""
    draws = np.random.default_rng(seed)
    vocabulary = np.array([f"w{n}" for n in range(40)])
    same = np.arange(count) % 2
    inputs, seconds = [], []
    for is_same in same:
        first = draws.choice(vocabulary, 8, replace=False)
        second = draws.permutation(first) if is_same else draws.choice(vocabulary, 8)
        inputs.append(" ".join(first) + "\n\n" + " ".join(second))
        seconds.append(" ".join(second))
    columns = {"second_texts": seconds}
    if not labels:
        columns["values"] = (same + 0.1 * draws.random(count)).tolist()
    return with_columns(split(inputs, same if labels else None), **columns)


def pairs(train=80, test=40, labels=True):
    """Classification of pairs of texts; without `labels` a number per pair."""
    parts = paired(train, 0, labels), paired(test, 1, labels)
    return _dataset("pairs", parts, ("different", "same") if labels else ())
