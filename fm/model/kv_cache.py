"""The forward pass with a KV cache: prefill of prompts, then one token per row and step.

Rows of different lengths are padded on the right to one length, and new tokens go into the columns
behind the padding, the same column for every row: a slice written in place, where a column per row
would need a scatter. Attention masks the padding, and positions say where a token lies in its row.
Every layer has arrays of its own: with one stacked array every layer would copy its slice.

Layers with a sliding window keep no more columns than the window has, as a ring: a new token
replaces the oldest. There every row ends at the same column, without padding behind its prompt.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.attention.api import default_platform
from fm.errors import UserError
from fm.model import embeddings, layers
from fm.model.config import Arrays, ModelConfig
from fm.model.layers import Kernel, TransposedKernel, transpose_kernel
from fm.model.transformer import embed_inputs, final_norm, rope_tables


class PreparedParams(NamedTuple):
    """Parameters laid out for decoding: one dict per layer, kernels flat and partly fused.

    Attributes:
      embeddings: as `params["streams"]`, the token head possibly transposed.
      layers: one dict per layer; kernels are flat, those with the same input fused.
    """

    embeddings: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


class KVCache(NamedTuple):
    """Keys and values of earlier tokens, by layer, and which cache columns are valid.

    Attributes:
      keys: per layer, normalized and rotated, stored as [B, S, K*C], or [S, K*C] if B is 1:
        XLA:CPU copies the whole cache (4x) at every step if attention has to reshape it.
      values: per layer, stored alike.
      valid_masks: by kind of layer, int32 [B, S], 1 where a column holds a token of the row. S is
        that of the kind's layers.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid_masks: dict[str, jax.Array]


def prepare_params(params: dict, config: ModelConfig) -> PreparedParams:
    """Returns a copy of the parameters laid out for decoding: layers unstacked, kernels fused.

    On a CPU kernels are transposed and float32 (see `layers.TransposedKernel`), elsewhere they are
    in the config's dtype.

    Raises:
      UserError: the model is bidirectional.
    """
    if config.arch.post_norm:
        raise UserError("a BERT-style model predicts masked tokens and cannot generate text")
    transpose = default_platform() == "cpu"
    params = jax.tree.map(jnp.asarray, params)
    per_layer = tuple(
        {
            name: leaf
            for name, leaf in _prepare_layer(params["layers"], n, config, transpose).items()
            if layers.reads_param(name, n, config)
        }
        for n in range(config.num_layers)
    )
    prepared = _prepare_embeddings(params["streams"], config, transpose)
    if transpose and config.arch.tie_embeddings and config.dtype == "float32":
        # The embedding is the transposed head already.
        prepared["token_head"] = TransposedKernel(prepared["token_embedding"])
    return PreparedParams(prepared, per_layer)


@functools.partial(jax.jit, static_argnames=("config", "transpose"))
def _prepare_layer(stacked: dict, n: int, config: ModelConfig, transpose: bool) -> dict[str, Any]:
    layer = {name: leaf[n] for name, leaf in stacked.items()}
    flat = {
        name: _flatten_kernel(layer.pop(name), 2 if name == "attention_out" else 1)
        for name in layers.KERNELS
        if name in layer
    }
    for names in layers.FUSED_PROJECTIONS:
        if set(names) <= flat.keys():
            flat["+".join(names)] = jnp.concatenate([flat.pop(name) for name in names], axis=1)
    return layer | {
        name: _prepare_kernel(kernel, config, transpose) for name, kernel in flat.items()
    }


@functools.partial(jax.jit, static_argnames=("config", "transpose"))
def _prepare_embeddings(params: dict, config: ModelConfig, transpose: bool) -> dict[str, Any]:
    prepared = {
        name: leaf.astype(config.dtype) if name.endswith("_embedding") else leaf
        for name, leaf in params.items()
    }
    tied_copy = transpose and config.arch.tie_embeddings and config.dtype != "float32"
    if "token_head" in params or tied_copy:
        head = embeddings.token_head_kernel(params)
        prepared["token_head"] = _prepare_kernel(head, config, transpose)
    return prepared


def _flatten_kernel(kernel: jax.Array, input_axes: int) -> jax.Array:
    """Returns the kernel as [in, out]; its first `input_axes` axes are summed over."""
    return kernel.reshape(math.prod(kernel.shape[:input_axes]), -1)


def _prepare_kernel(kernel_IO: jax.Array, config: ModelConfig, transpose: bool) -> Kernel:
    return transpose_kernel(kernel_IO) if transpose else kernel_IO.astype(config.dtype)


def prefill(
    params: PreparedParams,
    inputs: Arrays,
    lengths_B: jax.Array,
    config: ModelConfig,
    *,
    max_new_tokens: int,
    prefix_B: jax.Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """Runs the model on prompts; returns final hidden states [B, L, D] and the filled KV cache.

    Args:
      params: from `prepare_params`.
      inputs: tokens and positions as for `forward`, [B, L], padded on the right; padding needs
        positions below `max_seq_len` too.
      lengths_B: int, tokens of each row, at least 1.
      max_new_tokens: columns to reserve.
      prefix_B: int, length of each row's bidirectional prefix; 0 if None.

    Returns:
      final_BLD, what the heads read, and a cache of L + max_new_tokens columns, of fewer in layers
      whose window is shorter.
    """
    L = inputs["positions"].shape[1]
    # Padding comes after the tokens, so causality masks it.
    mask = Mask(causal=True, prefix=prefix_B)
    x_BLD = embed_inputs(params.embeddings, inputs, config)
    tables = rope_tables(inputs["positions"], config)
    tokens_of = {
        kind: _tokens_in_columns(lengths_B, L, L + max_new_tokens, kind, config)
        for kind in dict.fromkeys(config.layer_kinds)
    }
    keys, values = [], []
    for layer, kind in zip(params.layers, config.layer_kinds, strict=True):
        q_BLHC, k_BLKC, v_BLKC = layers.project_qkv(layer, x_BLD, tables[kind], config)
        own_mask = layers.layer_mask(mask, kind, config)
        o_BLHC = layers.attend(q_BLHC, k_BLKC, v_BLKC, own_mask, config)
        x_BLD = layers.out_proj_and_mlp(layer, x_BLD, o_BLHC, config)
        for cached, x_BLKC in ((keys, k_BLKC), (values, v_BLKC)):
            cached.append(_flatten_heads(_store(x_BLKC, tokens_of[kind], L + max_new_tokens)))
    valid_masks = {kind: (own_BS >= 0).astype(jnp.int32) for kind, own_BS in tokens_of.items()}
    cache = KVCache(tuple(keys), tuple(values), valid_masks)
    return final_norm(params.embeddings, x_BLD, config), cache


def decode_step(
    params: PreparedParams,
    inputs: Arrays,
    cache: KVCache,
    cache_index: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, KVCache]:
    """Runs the model over one new token per row; returns the hidden states and the updated cache.

    Args:
      params: from `prepare_params`.
      inputs: tokens and positions as for `forward`, [B, 1].
      cache: from `prefill` or the previous step.
      cache_index: int, column of the token in the cache.

    Returns:
      final_BLD with L = 1, and the cache with the token.
    """
    one_B1 = jnp.ones((len(inputs["positions"]), 1), jnp.int32)
    valid_masks, columns = {}, {}
    for kind, valid_BS in cache.valid_masks.items():
        columns[kind] = cache_index % valid_BS.shape[1]
        valid_masks[kind] = jax.lax.dynamic_update_slice(valid_BS, one_B1, (0, columns[kind]))
    masks = {
        kind: Mask(q_segments=one_B1, kv_segments=valid_BS)
        for kind, valid_BS in valid_masks.items()
    }
    x_BLD = embed_inputs(params.embeddings, inputs, config)
    tables = rope_tables(inputs["positions"], config)
    keys, values = [], []
    scale, softcap = layers.scale_and_softcap(config)
    caches = zip(params.layers, config.layer_kinds, cache.keys, cache.values, strict=True)
    for layer, kind, *past in caches:
        q_BLHC, k_BLKC, v_BLKC = layers.project_qkv(layer, x_BLD, tables[kind], config)
        for cached, old, new_BLKC in zip((keys, values), past, (k_BLKC, v_BLKC), strict=True):
            start = (0, columns[kind], 0)[-old.ndim :]
            cached.append(jax.lax.dynamic_update_slice(old, _flatten_heads(new_BLKC), start))
        shape = (*valid_masks[kind].shape, *k_BLKC.shape[2:])
        o_BLHC = attention(
            *(q_BLHC, keys[-1].reshape(shape), values[-1].reshape(shape)),
            mask=masks[kind],
            scale=scale,
            softcap=softcap,
        )
        x_BLD = layers.out_proj_and_mlp(layer, x_BLD, o_BLHC, config)
    cache = KVCache(tuple(keys), tuple(values), valid_masks)
    return final_norm(params.embeddings, x_BLD, config), cache


def _tokens_in_columns(
    lengths_B: jax.Array, length: int, num_columns: int, kind: str, config: ModelConfig
) -> jax.Array:
    """Returns which token of its row each cache column holds, int [B, S]; negative if none.

    Args:
      lengths_B: int, tokens of each row.
      length: of the padded prompts; the next token goes into this column.
      num_columns: that all tokens take.
      kind: of layer. Where its window is shorter, S is the window, and the newest token of every
        row is in column `length` - 1 modulo S, the one before it in the column before, and so on.
      config: the model's.
    """
    window = config.arch.sliding_window
    if kind == "full" or window >= num_columns:
        column_S = jnp.arange(num_columns)
        return jnp.where(column_S < lengths_B[:, None], column_S, -1)
    age_W = (length - 1 - jnp.arange(window)) % window
    return lengths_B[:, None] - 1 - age_W


def _store(x_BLKC: jax.Array, tokens_BS: jax.Array, num_columns: int) -> jax.Array:
    """Returns keys or values by cache column [B, S, K, C], see `_tokens_in_columns`."""
    if tokens_BS.shape[1] == num_columns:
        added = num_columns - x_BLKC.shape[1]
        return jnp.pad(x_BLKC, ((0, 0), (0, added), (0, 0), (0, 0)))
    return jnp.take_along_axis(x_BLKC, jnp.maximum(tokens_BS, 0)[:, :, None, None], axis=1)


def _flatten_heads(x_BLKC: jax.Array) -> jax.Array:
    B, L, K, C = x_BLKC.shape
    return x_BLKC.reshape(L, K * C) if B == 1 else x_BLKC.reshape(B, L, K * C)
