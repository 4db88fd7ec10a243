"""A tiny model and a language that can be learned: each token is followed by the next number."""

import jax
import numpy as np

from fm.data.batches import text_batches
from fm.model import ModelConfig
from fm.model.transformer import init
from fm.training import OptimizerConfig, PretrainingObjective

VOCAB, LENGTH = 24, 16
TEXT = ModelConfig(
    num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=16, vocab_size=VOCAB
)
IMAGE = ModelConfig(
    num_layers=1,
    d_model=16,
    num_heads=2,
    num_kv_heads=2,
    mlp_dim=16,
    patch_dims=(("image", 6),),
    position_axes=2,
    num_mixtures=2,
)
NEXT = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
ADAM = OptimizerConfig("adamw", learning_rate=0.02)


def params(config, seed=0, zeros=False):
    """Random everywhere; with `zeros`, as training starts: no kernel into the residual."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    drawn = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes
    )
    if zeros:
        for name in ("attention_out", "down"):
            drawn["layers"][name][:] = 0
        for name in drawn["streams"].keys() & {"token_head", "image_head"}:
            drawn["streams"][name][:] = 0
    return drawn


def batches(seed=0, batch_size=4, epochs=None):
    pieces = [
        (np.arange(start, start + 3 + start % 11) % VOCAB).astype(np.int32) for start in range(60)
    ]
    return text_batches([pieces], batch_size=batch_size, length=LENGTH, seed=seed, epochs=epochs)


def uneven_text(B=8, L=12, seed=0):
    """Rows of very different fill, so that a mean of means would be wrong."""
    rng = np.random.default_rng(seed)
    filled = np.arange(L) < np.array([12, 3, 7, 5, 2, 11, 4, 9])[:B, None]
    return {
        "tokens": rng.integers(0, VOCAB, (B, L)).astype(np.int32) * filled,
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        "segments": filled.astype(np.int32),
    }


def images(B=4, seed=0):
    rng = np.random.default_rng(seed)
    place = np.array(list(np.ndindex(2, 3)), np.int32)
    return {
        "image": rng.integers(0, 256, (B, 6, IMAGE.patch_dim("image"))).astype(np.uint8),
        "positions": np.tile(place, (B, 1, 1)),
        "segments": np.ones((B, 6), np.int32),
    }
