"""The two kinds of stream: how pieces enter the model and what it predicts of them.

Discrete pieces (tokens) have an embedding and a softmax. Continuous pieces (image patches, frames
of sound, tubelets of video) have a linear embedding and a mixture of diagonal Gaussians (GIVT,
Tschannen et al. 2023, sec. 3.2), one of each a stream. The pieces of a stream are the inputs of
its name: `tokens` int [B, L], `image`, `audio` or `video` [B, L, P], bytes or floats in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fm.model import layers
from fm.model.config import CONTINUOUS_MODALITIES, ModelConfig
from fm.model.layers import matmul
from fm.parallel.mesh import constrain_embedding_table

# No component may be narrower, or a flat background would earn an unbounded density. Of bytes, one
# grey level. Log-mel has no levels, but values clipped to the ends of its range, silence above all,
# are as flat: a 64th of the range, 1.4 dB of 90, which is about what an ear can tell.
_SCALE_FLOORS = {"image": 1.0 / 256.0, "audio": 1.0 / 64.0, "video": 1.0 / 256.0}


def init_embeddings(rng: jax.Array, config: ModelConfig) -> dict[str, jax.Array]:
    """Embeddings, heads and norms of the streams the config has; the vector of a hidden piece."""
    style = config.arch
    D, V, M = config.d_model, config.vocab_size, config.num_mixtures
    keys = jax.random.split(rng, 3)
    params = {"hidden_piece": jax.random.normal(keys[0], (D,)) * 0.02}
    if V:
        # Small, so that what is learned soon outweighs the random start; a norm follows. Tied, it
        # is also a head, and smaller, so that a fresh model's logits are.
        scale = 0.02 if style.tie_embeddings else 0.1
        params["token_embedding"] = jax.random.normal(keys[1], (V, D)) * scale
    if V and not style.tie_embeddings:
        params["token_head"] = jnp.zeros((D, V))
    for n, (name, P) in enumerate(config.patch_dims):
        key = jax.random.fold_in(keys[2], n) if n else keys[2]
        params[f"{name}_embedding"] = jax.random.normal(key, (P, D)) * P**-0.5
        params[f"{name}_head"] = jnp.zeros((D, M * (2 * P + 1)))
        params[f"{name}_bias"] = _spread(P, M)
    tables = {
        "position_embedding": config.max_seq_len if style.position_encoding == "learned" else 0
    }
    tables["type_embedding"] = style.num_token_types
    tables["modality_embedding"] = len(config.modalities) if len(config.modalities) > 1 else 0
    for n, (name, rows) in enumerate(tables.items(), start=3):
        if rows:
            params[name] = jax.random.normal(jax.random.fold_in(rng, n), (rows, D)) * 0.02
    if style.embedding_norm:
        params |= layers.init_norm(style, "embedding_norm", D)
    if style.final_norm:
        params |= layers.init_norm(style, "final_norm", D)
    if style.pooler:
        params |= {"pooler": jnp.eye(D), "pooler_bias": jnp.zeros(D)}
    return params


def _spread(P: int, M: int) -> jax.Array:
    """Head bias that starts the components at different grey levels, so they differ at all."""
    means = jnp.repeat((jnp.arange(M) + 0.5) / M, P)
    return jnp.concatenate([jnp.zeros(M), means, jnp.full(M * P, math.log(math.expm1(0.2)))])


def embed(
    params: dict[str, jax.Array],
    inputs: dict[str, jax.Array],
    config: ModelConfig,
    masked_BL: jax.Array | None = None,
) -> jax.Array:
    """Pieces to vectors.

    Args:
      params: from `init`.
      inputs: the pieces of a stream, or of several with `modality` int [B, L] saying of which of
        `config.streams` each piece is (what the others hold there is not read); `positions` int
        [B, L] where these are learned; `types` int [B, L] where tokens have types (all 0 unless
        given).
      config: the model's.
      masked_BL: bool; pieces the model may not see.

    Returns:
      x_BLD in the config's dtype. In a model of several streams every piece, hidden or not, shows
      of which one it is.
    """
    dtype = jnp.dtype(config.dtype)
    first, *others = modalities_in(inputs, config)
    x_BLD = _entered(params, inputs, first, dtype)
    modality_BL = jnp.asarray(config.modalities.index(first))
    if others:
        modality_BL = inputs["modality"]
    for name in others:
        of_BL1 = (modality_BL == config.modalities.index(name))[..., None]
        x_BLD = jnp.where(of_BL1, _entered(params, inputs, name, dtype), x_BLD)
    if masked_BL is not None:
        x_BLD = jnp.where(masked_BL[..., None], params["hidden_piece"].astype(dtype), x_BLD)
    if len(config.modalities) > 1:
        x_BLD = x_BLD + params["modality_embedding"].astype(dtype)[modality_BL]
    if config.arch.position_encoding == "learned":
        x_BLD = x_BLD + params["position_embedding"].astype(dtype)[inputs["positions"]]
    if config.arch.num_token_types:
        types_BL = inputs.get("types", jnp.zeros((), jnp.int32))
        x_BLD = x_BLD + params["type_embedding"].astype(dtype)[types_BL]
    return x_BLD


def _entered(
    params: dict[str, jax.Array], inputs: dict[str, jax.Array], name: str, dtype: jnp.dtype
) -> jax.Array:
    """The pieces of one stream as vectors."""
    if name == "tokens":
        return constrain_embedding_table(params["token_embedding"].astype(dtype))[inputs["tokens"]]
    values = to_unit_range(inputs[name]) * 2.0 - 1.0
    return values.astype(dtype) @ params[f"{name}_embedding"].astype(dtype)


def modalities_in(batch: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """The streams that a batch has pieces of, in the config's order."""
    return tuple(name for name in config.modalities if name in batch)


def prepend_start_patch(inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Continuous pieces led by a start piece, the zero vector at position -1 on every axis."""

    def lead(value, first):
        padding = [(0, 0), (1, 0), *[(0, 0)] * (value.ndim - 2)]
        return jnp.pad(value, padding, constant_values=first)

    return inputs | {
        **{
            name: lead(to_unit_range(inputs[name]), 0.5)
            for name in CONTINUOUS_MODALITIES
            if name in inputs
        },
        "positions": lead(inputs["positions"], -1),
        "segments": jnp.concatenate([inputs["segments"][:, :1], inputs["segments"]], axis=1),
    }


def to_unit_range(pieces: jax.Array) -> jax.Array:
    """Bytes to the middle of their 1/256-wide bin in 0..1; floats pass through."""
    if pieces.dtype == jnp.uint8:
        return (pieces.astype(jnp.float32) + 0.5) / 256.0
    return pieces


def token_head(params: dict[str, jax.Array]) -> jax.Array:
    """The softmax's kernel [D, V]: its own, or the embedding where the two are tied."""
    if "token_head" in params:
        return params["token_head"]
    return params["token_embedding"].T


def token_logits(params: dict[str, jax.Array], h_TD: jax.Array) -> jax.Array:
    """Unnormalised log probabilities of the next token, float32 [T, V]."""
    return matmul(h_TD, token_head(params)).astype(jnp.float32)


def pooled_output(params: dict[str, jax.Array], final_BLD: jax.Array) -> jax.Array:
    """BERT's pooler: tanh of a linear map of the first piece [B, D]."""
    kernel, bias = (params[name].astype(final_BLD.dtype) for name in ("pooler", "pooler_bias"))
    return jnp.tanh(final_BLD[:, 0] @ kernel + bias)


def gmm_params(
    params: dict[str, jax.Array], h_TD: jax.Array, config: ModelConfig, modality: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The Gaussian mixture predicted at each place, by the head of a continuous stream.

    Returns:
      log weights [T, M], means [T, M, P] and scales [T, M, P], float32, in units of 0..1.
    """
    M, P = config.num_mixtures, config.patch_dim(modality)
    raw = (h_TD @ params[f"{modality}_head"].astype(h_TD.dtype)).astype(jnp.float32)
    raw = raw + params[f"{modality}_bias"]
    weights, means, scales = jnp.split(raw, [M, M + M * P], axis=-1)
    shape = (*h_TD.shape[:-1], M, P)
    return (
        jax.nn.log_softmax(weights, axis=-1),
        means.reshape(shape),
        jax.nn.softplus(scales.reshape(shape)) + _SCALE_FLOORS[modality],
    )


def gmm_nll(
    params: dict[str, jax.Array],
    h_TD: jax.Array,
    targets_TP: jax.Array,
    config: ModelConfig,
    modality: str,
) -> jax.Array:
    """Negative log density of each target piece in 0..1, in nats per piece, float32 [T]."""
    log_weights_TM, means, scales = gmm_params(params, h_TD, config, modality)
    z = (targets_TP[:, None, :] - means) / scales
    log_density = -0.5 * z * z - jnp.log(scales) - 0.5 * math.log(2.0 * math.pi)
    return -jax.nn.logsumexp(log_weights_TM + jnp.sum(log_density, axis=-1), axis=-1)
