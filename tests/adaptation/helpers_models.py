"""Rows and a model small enough for seconds."""

import jax
import numpy as np

from fm.model.config import ModelConfig
from fm.model.transformer import init

MODEL = ModelConfig(
    num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, mlp_dim=32, vocab_size=12
)
PICTURES = ModelConfig(
    num_layers=1,
    d_model=16,
    num_heads=2,
    num_kv_heads=2,
    mlp_dim=32,
    patch_dims=(("image", 4),),
    position_axes=2,
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
