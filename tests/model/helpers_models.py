"""Small models and inputs; parameters drawn at random everywhere, as zeros would hide mistakes."""

import jax
import numpy as np

from fm.model.config import ModelConfig
from fm.model.transformer import forward, init

TEXT = ModelConfig(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, mlp_dim=48, vocab_size=19)
IMAGE = ModelConfig(
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=4,
    mlp_dim=48,
    patch_dims=(("image", 12),),
    position_axes=2,
    num_mixtures=3,
)


run = jax.jit(forward, static_argnames="config")


def params(config, seed=0):
    """Numpy throughout: eager JAX compiles every operation for every shape."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.2).astype(np.float32), shapes
    )


def text(B=2, L=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, TEXT.vocab_size, (B, L)).astype(np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        "segments": np.ones((B, L), np.int32),
    }


def images(B=2, side=3, seed=0):
    rng = np.random.default_rng(seed)
    place = np.array(list(np.ndindex(side, side)), np.int32)
    return {
        "image": rng.integers(0, 256, (B, side * side, IMAGE.patch_dim("image"))).astype(np.uint8),
        "positions": np.tile(place, (B, 1, 1)),
        "segments": np.ones((B, side * side), np.int32),
    }
