"""Rows and a model small enough for seconds."""

import jax
import numpy as np

from fm.model.config import ModelConfig
from fm.model.transformer import init

MODEL = ModelConfig(depth=1, width=16, heads=2, kv_heads=2, hidden=32, vocab=12)
PICTURES = ModelConfig(
    depth=1, width=16, heads=2, kv_heads=2, hidden=32, continuous=(("image", 4),), axes=2
)


def params(model=MODEL):
    return init(jax.random.key(0), model)


def text(tokens, length):
    """Rows of one segment each, padded to `length`."""
    rows = {key: np.zeros((len(tokens), length), np.int32) for key in ("tokens", "segments")}
    for n, ids in enumerate(tokens):
        rows["tokens"][n, : len(ids)] = ids
        rows["segments"][n, : len(ids)] = 1
    return rows | {"positions": np.tile(np.arange(length, dtype=np.int32), (len(tokens), 1))}


def separable(count, length=6, seed=0):
    """Texts of two classes that share no token."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    tokens = draws.integers(4, 8, (count, length)) + 4 * labels[:, None]
    return text(tokens, length), labels
