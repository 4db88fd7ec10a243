"""Texts that a tiny model can classify."""

import numpy as np


def two_class_texts(count, seed=0):
    """Returns texts of two classes that share no word, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return [" ".join(f"w{n}" for n in rng.integers(5, 15, 12) + 12 * y) for y in labels], labels
