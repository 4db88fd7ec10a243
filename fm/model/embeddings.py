"""Input embeddings and output heads of text tokens and continuous patches.

Text tokens have an embedding table and a softmax. Continuous patches (image patches, log-mel
frames, video tubelets) have a linear embedding and a mixture of diagonal Gaussians (GIVT, Tschannen
et al. 2023, sec. 3.2), one of each per modality. Inputs are named by modality: `tokens` int [B, L];
`image`, `audio` or `video` [B, L, P], uint8 or floats in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fm.model.config import Arrays, ModelConfig
from fm.model.layers import TransposedKernel, init_norm, matmul
from fm.parallel.mesh import constrain_embedding_table

# Least scale of a mixture component, or a flat background would earn an unbounded density. Pixels:
# one gray level. Log-mel has no levels, but values clipped to the ends of its range (silence above
# all) are as flat: 1/64 of the range, 1.4 dB of 90, about the smallest audible difference.
_MIN_SCALES = {"audio": 1.0 / 64.0}
_DEFAULT_MIN_SCALE = 1.0 / 256.0


def init_embeddings_and_heads(rng: jax.Array, config: ModelConfig) -> Arrays:
    """Returns initial parameters of the embeddings, the output heads and the norms next to them."""
    arch = config.arch
    D, V, M = config.d_model, config.vocab_size, config.num_mixtures
    keys = jax.random.split(rng, 3)
    params = {"hidden_piece": jax.random.normal(keys[0], (D,)) * 0.02}
    if V:
        # Small, so that what is learned soon outweighs the random start; a norm follows. A tied
        # embedding is smaller still, to keep a fresh model's logits small.
        scale = 0.02 if arch.tie_embeddings else 0.1
        params["token_embedding"] = jax.random.normal(keys[1], (V, D)) * scale
    if V and not arch.tie_embeddings:
        params["token_head"] = jnp.zeros((D, V))
    for n, (name, P) in enumerate(config.patch_dims):
        key = jax.random.fold_in(keys[2], n) if n else keys[2]
        params[f"{name}_embedding"] = jax.random.normal(key, (P, D)) * P**-0.5
        params[f"{name}_head"] = jnp.zeros((D, M * (2 * P + 1)))
        params[f"{name}_bias"] = _init_gmm_bias(P, M)
    num_modalities = len(config.modalities)
    learned_positions = arch.position_encoding == "learned"
    tables = {
        "position_embedding": config.max_seq_len if learned_positions else 0,
        "type_embedding": arch.num_token_types,
        "modality_embedding": num_modalities if num_modalities > 1 else 0,
    }
    for n, (name, rows) in enumerate(tables.items(), start=3):
        if rows:
            params[name] = jax.random.normal(jax.random.fold_in(rng, n), (rows, D)) * 0.02
    if arch.embedding_norm:
        params |= init_norm(arch, "embedding_norm", D)
    if arch.final_norm:
        params |= init_norm(arch, "final_norm", D)
    if arch.pooler:
        params |= {"pooler": jnp.eye(D), "pooler_bias": jnp.zeros(D)}
    return params


def _init_gmm_bias(P: int, M: int) -> jax.Array:
    """Returns a head bias that starts the components at different means, to break symmetry."""
    means = jnp.repeat((jnp.arange(M) + 0.5) / M, P)
    return jnp.concatenate([jnp.zeros(M), means, jnp.full(M * P, math.log(math.expm1(0.2)))])


def embed(
    params: Arrays, inputs: Arrays, config: ModelConfig, masked_BL: jax.Array | None = None
) -> jax.Array:
    """Returns the embeddings x_BLD of tokens or patches, before the first layer.

    Args:
      params: from `init_embeddings_and_heads`.
      inputs: the tokens of one modality, or of several with `modality` int [B, L], the index in
        `config.modalities` of each token (the other modalities' values there are not read);
        `positions` int [B, L] if these are learned, of a raster of patches [B, L, 1]; `types` int
        [B, L] if tokens have types (default 0).
      masked_BL: bool, tokens replaced by the mask embedding.

    Returns:
      x_BLD in the config's dtype. In a model of several modalities a modality embedding is added to
      every token, masked or not.
    """
    dtype = jnp.dtype(config.dtype)
    first, *others = modalities_in(inputs, config)
    x_BLD = _embed_modality(params, inputs, first, config)
    modality_BL = jnp.asarray(config.modalities.index(first))
    if others:
        modality_BL = inputs["modality"]
    for name in others:
        of_BL1 = (modality_BL == config.modalities.index(name))[..., None]
        x_BLD = jnp.where(of_BL1, _embed_modality(params, inputs, name, config), x_BLD)
    if masked_BL is not None:
        x_BLD = jnp.where(
            masked_BL[..., None], params["hidden_piece"], x_BLD.astype(jnp.float32)
        ).astype(dtype)
    if len(config.modalities) > 1:
        x_BLD = x_BLD + params["modality_embedding"][modality_BL].astype(dtype)
    if config.arch.position_encoding == "learned":
        positions_BL = inputs["positions"]
        if positions_BL.ndim == 3:  # patches, the first of which may follow a start patch at -1
            positions_BL = positions_BL[..., 0] + 1
        x_BLD = x_BLD + params["position_embedding"][positions_BL].astype(dtype)
    if config.arch.num_token_types:
        types_BL = inputs.get("types", jnp.zeros((), jnp.int32))
        x_BLD = x_BLD + params["type_embedding"][types_BL].astype(dtype)
    return x_BLD


def _embed_modality(params: Arrays, inputs: Arrays, name: str, config: ModelConfig) -> jax.Array:
    dtype = jnp.dtype(config.dtype)
    if name == "tokens":
        # Looked up in float32, so that the gradients of a token's occurrences are summed in it.
        table_VD = constrain_embedding_table(params["token_embedding"])
        x_BLD = table_VD[inputs["tokens"]].astype(dtype)
        if config.arch.scale_embeddings:
            x_BLD = x_BLD * jnp.asarray(math.sqrt(config.d_model), dtype)
        return x_BLD
    values = to_unit_range(inputs[name]) * 2.0 - 1.0
    return values.astype(dtype) @ params[f"{name}_embedding"].astype(dtype)


def modalities_in(batch: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """Returns the modalities that have an array in the batch, in the config's order."""
    return tuple(name for name in config.modalities if name in batch)


def patch_head_names(embeddings: Mapping[str, jax.Array]) -> set[str]:
    """Returns the keys of the heads that predict patches, among the embedding parameters."""
    heads = {key for key in embeddings if key.endswith("_head") and key != "token_head"}
    return heads | {f"{key.removesuffix('_head')}_bias" for key in heads} & embeddings.keys()


def prepend_start_patch(inputs: Arrays) -> Arrays:
    """Returns the inputs with a start patch in front: a zero patch at position -1 on every axis."""

    def prepend(value, first):
        padding = [(0, 0), (1, 0), *[(0, 0)] * (value.ndim - 2)]
        return jnp.pad(value, padding, constant_values=first)

    return inputs | {
        **{
            name: prepend(to_unit_range(inputs[name]), 0.5)
            for name, value in inputs.items()
            if name != "positions" and value.ndim == 3
        },
        "positions": prepend(inputs["positions"], -1),
        "segments": jnp.concatenate([inputs["segments"][:, :1], inputs["segments"]], axis=1),
    }


def to_unit_range(patches: jax.Array) -> jax.Array:
    """Returns patches as floats in 0..1; a uint8 value becomes the middle of its 1/256-wide bin."""
    if patches.dtype == jnp.uint8:
        return (patches.astype(jnp.float32) + 0.5) / 256.0
    return patches


def token_head_kernel(params: Arrays) -> jax.Array:
    """Returns the kernel [D, V] of the token softmax, possibly the transposed tied embedding."""
    if "token_head" in params:
        return params["token_head"]
    return params["token_embedding"].T


def token_logits(params: Arrays, h_TD: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the logits of the next token, float32 [T, V] whatever the dtype of `h_TD`.

    They are soft-capped if `config.arch.logit_softcap` says so.
    """
    kernel = token_head_kernel(params)
    if isinstance(kernel, TransposedKernel):  # its product has the dtype of its input
        logits_TV = matmul(h_TD.astype(jnp.float32), kernel)
    else:
        logits_TV = _float32_product(h_TD, kernel)
    cap = config.arch.logit_softcap
    return cap * jnp.tanh(logits_TV / cap) if cap else logits_TV


def _float32_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x @ kernel, multiplied in the dtype of `x`, summed and kept in float32."""
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def pooled_output(params: Arrays, final_BLD: jax.Array) -> jax.Array:
    """Returns BERT's pooler output [B, D]: tanh of a linear map of the first token."""
    kernel, bias = (params[name].astype(final_BLD.dtype) for name in ("pooler", "pooler_bias"))
    return jnp.tanh(final_BLD[:, 0] @ kernel + bias)


def gmm_params(
    params: Arrays, h_TD: jax.Array, config: ModelConfig, modality: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns log weights, means and scales of the Gaussian mixture predicted for each patch.

    Returns:
      Log weights [T, M], means [T, M, P] and scales [T, M, P], float32, in units of 0..1.
    """
    M, P = config.num_mixtures, config.patch_dim(modality)
    raw = _float32_product(h_TD, params[f"{modality}_head"]) + params[f"{modality}_bias"]
    weights, means, scales = jnp.split(raw, [M, M + M * P], axis=-1)
    shape = (*h_TD.shape[:-1], M, P)
    return (
        jax.nn.log_softmax(weights, axis=-1),
        means.reshape(shape),
        jax.nn.softplus(scales.reshape(shape)) + _MIN_SCALES.get(modality, _DEFAULT_MIN_SCALE),
    )


def gmm_nll(
    params: Arrays, h_TD: jax.Array, targets_TP: jax.Array, config: ModelConfig, modality: str
) -> jax.Array:
    """Returns the negative log density of each target patch (in 0..1) in nats, float32 [T]."""
    log_weights_TM, means, scales = gmm_params(params, h_TD, config, modality)
    z = (targets_TP[:, None, :] - means) / scales
    log_density = -0.5 * z * z - jnp.log(scales) - 0.5 * math.log(2.0 * math.pi)
    return -jax.nn.logsumexp(log_weights_TM + jnp.sum(log_density, axis=-1), axis=-1)
