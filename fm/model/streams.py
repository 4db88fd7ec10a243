"""The two kinds of stream: how pieces enter the model and what it predicts of them.

Discrete pieces (tokens) have an embedding and a softmax. Continuous pieces (patches) have a
linear embedding and a mixture of diagonal Gaussians (GIVT, Tschannen et al. 2023, sec. 3.2).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fm.model.config import ModelConfig

# One grey level of a byte: no component may be narrower, or a flat background would earn an
# unbounded density.
_SCALE_FLOOR = 1.0 / 256.0


def init(rng: jax.Array, config: ModelConfig) -> dict[str, jax.Array]:
    """Embeddings and heads of the streams the config has, and the vector of a hidden piece."""
    D, V, P, M = config.width, config.vocab, config.patch, config.mixtures
    keys = jax.random.split(rng, 3)
    params = {"hidden_piece": jax.random.normal(keys[0], (D,)) * 0.02}
    if V:
        # Small, so that what is learned soon outweighs the random start; RMSNorm follows.
        params["token_embedding"] = jax.random.normal(keys[1], (V, D)) * 0.1
        params["token_head"] = jnp.zeros((D, V))
    if P:
        params["patch_embedding"] = jax.random.normal(keys[2], (P, D)) * P**-0.5
        params["patch_head"] = jnp.zeros((D, M * (2 * P + 1)))
        params["patch_bias"] = _spread(P, M)
    return params


def _spread(P: int, M: int) -> jax.Array:
    """Head bias that starts the components at different grey levels, so they differ at all."""
    means = jnp.repeat((jnp.arange(M) + 0.5) / M, P)
    return jnp.concatenate([jnp.zeros(M), means, jnp.full(M * P, math.log(math.expm1(0.2)))])


def embed(
    params: dict[str, jax.Array],
    inputs: dict[str, jax.Array],
    config: ModelConfig,
    hidden_BL: jax.Array | None = None,
) -> jax.Array:
    """Pieces to vectors.

    Args:
      params: from `init`.
      inputs: `tokens` int [B, L], or `patches` uint8 or float in 0..1 [B, L, P], or both with
        `is_patch` bool [B, L] saying which piece is of which kind.
      config: the model's.
      hidden_BL: bool; pieces the model may not see.

    Returns:
      x_BLD in the config's dtype.
    """
    dtype = jnp.dtype(config.dtype)
    parts = []
    if "tokens" in inputs:
        parts.append(params["token_embedding"].astype(dtype)[inputs["tokens"]])
    if "patches" in inputs:
        values = unit(inputs["patches"]) * 2.0 - 1.0
        parts.append(values.astype(dtype) @ params["patch_embedding"].astype(dtype))
    x_BLD = parts[0]
    if len(parts) == 2:
        x_BLD = jnp.where(inputs["is_patch"][..., None], parts[1], parts[0])
    if hidden_BL is not None:
        x_BLD = jnp.where(hidden_BL[..., None], params["hidden_piece"].astype(dtype), x_BLD)
    return x_BLD


def with_start(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Patches led by a start piece, the zero vector at position -1 on every axis."""

    def lead(value, first):
        padding = [(0, 0), (1, 0), *[(0, 0)] * (value.ndim - 2)]
        return jnp.pad(value, padding, constant_values=first)

    return inputs | {
        "patches": lead(unit(inputs["patches"]), 0.5),
        "positions": lead(inputs["positions"], -1),
        "segments": jnp.concatenate([inputs["segments"][:, :1], inputs["segments"]], axis=1),
    }


def unit(patches: jax.Array) -> jax.Array:
    """Bytes to the middle of their 1/256-wide bin in 0..1; floats pass through."""
    if patches.dtype == jnp.uint8:
        return (patches.astype(jnp.float32) + 0.5) / 256.0
    return patches


def token_logits(params: dict[str, jax.Array], h_TD: jax.Array) -> jax.Array:
    """Unnormalised log probabilities of the next token, float32 [T, V]."""
    return (h_TD @ params["token_head"].astype(h_TD.dtype)).astype(jnp.float32)


def mixture(
    params: dict[str, jax.Array], h_TD: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The Gaussian mixture predicted at each place.

    Returns:
      log weights [T, M], means [T, M, P] and scales [T, M, P], float32, in units of 0..1.
    """
    M, P = config.mixtures, config.patch
    raw = (h_TD @ params["patch_head"].astype(h_TD.dtype)).astype(jnp.float32)
    raw = raw + params["patch_bias"]
    weights, means, scales = jnp.split(raw, [M, M + M * P], axis=-1)
    shape = (*h_TD.shape[:-1], M, P)
    return (
        jax.nn.log_softmax(weights, axis=-1),
        means.reshape(shape),
        jax.nn.softplus(scales.reshape(shape)) + _SCALE_FLOOR,
    )


def patch_nll(
    params: dict[str, jax.Array], h_TD: jax.Array, targets_TP: jax.Array, config: ModelConfig
) -> jax.Array:
    """Negative log density of each target patch in 0..1, in nats per patch, float32 [T]."""
    log_weights_TM, means, scales = mixture(params, h_TD, config)
    z = (targets_TP[:, None, :] - means) / scales
    log_density = -0.5 * z * z - jnp.log(scales) - 0.5 * math.log(2.0 * math.pi)
    return -jax.nn.logsumexp(log_weights_TM + jnp.sum(log_density, axis=-1), axis=-1)
