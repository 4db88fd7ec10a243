"""The forward pass with a memory: keys and values of earlier pieces, kept for the later ones.

Rows of unlike lengths are padded to one on the right, and what follows goes into the columns
behind the padding, the same for every row: a slice written in place, where a column of each row's
own would need a scatter. The holes are masked; where a piece lies in its row, its position says.
Every layer has arrays of its own: of one stacked array each layer would have to cut its part out.
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
from fm.model import embeddings as streams
from fm.model import layers
from fm.model.config import ModelConfig
from fm.model.layers import Kernel, TransposedKernel, transpose_kernel
from fm.model.transformer import embed_inputs, final_norm, rope_tables


class PreparedParams(NamedTuple):
    """Parameters made ready for many small passes, by `prepare`.

    Attributes:
      embeddings: as in the parameters, some kernels `Turned`.
      layers: a dict a layer, kernels flat, those that read the same joined into one.
    """

    embeddings: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


class KVCache(NamedTuple):
    """What earlier pieces left behind.

    Attributes:
      keys: of each layer, normalised and turned, flat as [B, S, K C], or [S, K C] of one row:
        the matrix attention takes them as. Of a shape that must be another one first XLA:CPU
        would copy all of it at every step, four times over.
      values: of each layer, alike.
      valid_mask: int32, 1 where a column holds a piece of the row and 0 where not.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid_mask: jax.Array


def prepare_params(params: dict, config: ModelConfig) -> PreparedParams:
    """Layers apart, and kernels as many small products like them: a copy, made once.

    On a CPU kernels are turned round and float32 whatever the config's dtype, see
    `fm.model.layers`; elsewhere they are in that dtype.

    Raises:
      UserError: the model is bidirectional.
    """
    if config.arch.post_norm:
        raise UserError("a model of BERT's kind fills in what is hidden; it does not generate")
    turning = default_platform() == "cpu"
    params = jax.tree.map(jnp.asarray, params)
    every = tuple(_layer(params["layers"], n, config, turning) for n in range(config.num_layers))
    ready = _streams(params["streams"], config, turning)
    if turning and config.arch.tie_embeddings and config.dtype == "float32":
        # The embedding lies as a turned head does, and need not lie there twice.
        ready["token_head"] = TransposedKernel(ready["token_embedding"])
    return PreparedParams(ready, every)


@functools.partial(jax.jit, static_argnames=("config", "turning"))
def _layer(stacked: dict, n: int, config: ModelConfig, turning: bool) -> dict[str, Any]:
    """One layer's parameters; one program cuts out all of them."""

    layer = {name: leaf[n] for name, leaf in stacked.items()}
    flat = {
        name: _flat(layer.pop(name), 2 if name == "attention_out" else 1)
        for name in layers.KERNELS
        if name in layer
    }
    for names in layers.FUSED_PROJECTIONS:
        if set(names) <= flat.keys():
            flat["+".join(names)] = jnp.concatenate([flat.pop(name) for name in names], axis=1)
    return layer | {name: _laid(kernel, config, turning) for name, kernel in flat.items()}


@functools.partial(jax.jit, static_argnames=("config", "turning"))
def _streams(params: dict, config: ModelConfig, turning: bool) -> dict[str, Any]:
    ready = {
        name: leaf.astype(config.dtype) if name.endswith("_embedding") else leaf
        for name, leaf in params.items()
    }
    if "token_head" in params or (
        turning and config.arch.tie_embeddings and config.dtype != "float32"
    ):
        ready["token_head"] = _laid(streams.token_head(params), config, turning)
    return ready


def _flat(kernel: jax.Array, inner: int) -> jax.Array:
    """[in, out]; the first `inner` axes are those that are summed over."""
    return kernel.reshape(math.prod(kernel.shape[:inner]), -1)


def _laid(kernel_IO: jax.Array, config: ModelConfig, turning: bool) -> Kernel:
    """As a product likes it."""
    return transpose_kernel(kernel_IO) if turning else kernel_IO.astype(config.dtype)


def prefill(
    weights: PreparedParams,
    inputs: dict[str, jax.Array],
    lengths_B: jax.Array,
    config: ModelConfig,
    *,
    max_new_tokens: int,
    prefix_B: jax.Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """Reads the beginnings of all rows at once.

    Args:
      weights: from `prepare`.
      inputs: pieces and positions as for `forward`, [B, L], padded on the right; padding has
        positions too, within the context.
      lengths_B: int, how many pieces each row has, one at least.
      config: the model's.
      max_new_tokens: columns for pieces to come.
      prefix_B: int, pieces of each row that see each other both ways; none unless given.

    Returns:
      final_BLD, the output the heads read, and a cache of L + room columns.
    """
    L = inputs["positions"].shape[1]
    # What is padded comes later than what is not, so causality hides it.
    mask = Mask(causal=True, prefix=prefix_B)
    x_BLD = embed_inputs(weights.embeddings, inputs, config)
    turns = rope_tables(inputs["positions"], config)
    keys, values = [], []
    for layer in weights.layers:
        q_BLHC, k_BLKC, v_BLKC = layers.project_qkv(layer, x_BLD, turns, config)
        o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
        x_BLD = layers.out_proj_and_mlp(layer, x_BLD, o_BLHC, config)
        for kept, x_BLKC in ((keys, k_BLKC), (values, v_BLKC)):
            padded_BSKC = jnp.pad(x_BLKC, ((0, 0), (0, max_new_tokens), (0, 0), (0, 0)))
            kept.append(_flat_rows(padded_BSKC))
    filled_BS = (jnp.arange(L + max_new_tokens) < lengths_B[:, None]).astype(jnp.int32)
    return final_norm(weights.embeddings, x_BLD, config), KVCache(
        tuple(keys), tuple(values), filled_BS
    )


def decode_step(
    weights: PreparedParams,
    inputs: dict[str, jax.Array],
    cache: KVCache,
    cache_index: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, KVCache]:
    """Reads one more piece of every row, which sees all earlier ones.

    Args:
      weights: from `prepare`.
      inputs: pieces and positions as for `forward`, [B, 1].
      cache: from `prefill` or the call before.
      cache_index: int, where the piece goes in the cache.
      config: the model's.

    Returns:
      final_BLD with L = 1, and the cache with the piece.
    """
    B = len(cache.valid_mask)
    one_B1 = jnp.ones((B, 1), jnp.int32)
    filled_BS = jax.lax.dynamic_update_slice(cache.valid_mask, one_B1, (0, cache_index))
    mask = Mask(q_segments=one_B1, kv_segments=filled_BS)
    x_BLD = embed_inputs(weights.embeddings, inputs, config)
    turns = rope_tables(inputs["positions"], config)
    keys, values = [], []
    for layer, *past in zip(weights.layers, cache.keys, cache.values, strict=True):
        q_BLHC, k_BLKC, v_BLKC = layers.project_qkv(layer, x_BLD, turns, config)
        for kept, old, new_BLKC in zip((keys, values), past, (k_BLKC, v_BLKC), strict=True):
            place = (0, cache_index, 0)[-old.ndim :]
            kept.append(jax.lax.dynamic_update_slice(old, _flat_rows(new_BLKC), place))
        heads = (*filled_BS.shape, *k_BLKC.shape[2:])
        o_BLHC = attention(q_BLHC, keys[-1].reshape(heads), values[-1].reshape(heads), mask=mask)
        x_BLD = layers.out_proj_and_mlp(layer, x_BLD, o_BLHC, config)
    return final_norm(weights.embeddings, x_BLD, config), KVCache(
        tuple(keys), tuple(values), filled_BS
    )


def _flat_rows(x_BLKC: jax.Array) -> jax.Array:
    """As a `Cache` holds them."""
    B, L, K, C = x_BLKC.shape
    return x_BLKC.reshape(L, K * C) if B == 1 else x_BLKC.reshape(B, L, K * C)
