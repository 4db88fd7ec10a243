"""One transformer layer as pure functions over a dict of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.model.config import ModelConfig
from fm.model.positions import rotate


def init(rng: jax.Array, config: ModelConfig) -> dict[str, jax.Array]:
    """Parameters of all layers, stacked: every leaf leads with the depth N.

    Kernels into the residual start at zero, so each layer starts as the identity; the others
    are normal with variance 1/fan_in.
    """
    N, D, F = config.depth, config.width, config.hidden
    H, K, C = config.heads, config.kv_heads, config.head_width
    keys = jax.random.split(rng, 4)

    def normal(key, *shape, fan_in):
        return jax.random.normal(key, (N, *shape)) * fan_in**-0.5

    return {
        "query": normal(keys[0], D, H, C, fan_in=D),
        "key": normal(keys[1], D, K, C, fan_in=D),
        "value": normal(keys[2], D, K, C, fan_in=D),
        "attention_out": jnp.zeros((N, H, C, D)),
        "up": normal(keys[3], D, F, fan_in=D),
        "down": jnp.zeros((N, F, D)),
    }


def rms_norm(x: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) over the last axis, without a gain (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


def apply(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    turns: tuple[jax.Array, jax.Array],
    mask: Mask,
    config: ModelConfig,
) -> jax.Array:
    """Pre-norm attention and squared-ReLU feed-forward (So et al. 2021), each a residual.

    Queries and keys are normalised per head (Dehghani et al. 2023, sec. 2), so the scores stay
    bounded whatever the learning rate does.
    """
    w = {name: kernel.astype(x_BLD.dtype) for name, kernel in layer.items()}
    B, L, D = x_BLD.shape
    q_BLHC, k_BLKC, v_BLKC = queries_keys_values(layer, x_BLD, turns, config)
    o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
    x_BLD = x_BLD + o_BLHC.reshape(B, L, -1) @ w["attention_out"].reshape(-1, D)
    h_BLF = jnp.square(jax.nn.relu(rms_norm(x_BLD, config.norm_eps) @ w["up"]))
    return x_BLD + h_BLF @ w["down"]


def queries_keys_values(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    turns: tuple[jax.Array, jax.Array],
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention reads of a residual: q_BLHC and k_BLKC, normalised and turned, and v_BLKC."""
    B, L, D = x_BLD.shape
    n_BLD = rms_norm(x_BLD, config.norm_eps)

    def project(kernel):
        kernel = kernel.astype(x_BLD.dtype)
        return (n_BLD @ kernel.reshape(D, -1)).reshape(B, L, *kernel.shape[1:])

    q_BLHC = rotate(rms_norm(project(layer["query"]), config.norm_eps), *turns)
    k_BLKC = rotate(rms_norm(project(layer["key"]), config.norm_eps), *turns)
    return q_BLHC, k_BLKC, project(layer["value"])
