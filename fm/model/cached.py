"""The forward pass with a memory: keys and values of earlier pieces, kept for the later ones.

Rows of unlike lengths are padded to one on the right, and what follows goes into the columns
behind the padding, the same for every row: a slice written in place, where a column of each row's
own would need a scatter. The holes are masked; where a piece lies in its row, its position says.
Every layer has arrays of its own: of one stacked array each layer would have to cut its part out.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.errors import UserError
from fm.model import layers
from fm.model.config import ModelConfig
from fm.model.transformer import enter, leave, turned


class Weights(NamedTuple):
    """Parameters made ready for many small passes, by `prepare`.

    Attributes:
      streams: as in the parameters.
      layers: a dict a layer.
    """

    streams: dict[str, jax.Array]
    layers: tuple[dict[str, jax.Array], ...]


class Cache(NamedTuple):
    """What earlier pieces left behind.

    Attributes:
      keys: k_BSKC of each layer, normalised and turned.
      values: v_BSKC of each layer.
      filled_BS: int32, 1 where a column holds a piece of the row and 0 where not.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    filled_BS: jax.Array


@functools.partial(jax.jit, static_argnames="config")
def prepare(params: dict, config: ModelConfig) -> Weights:
    """Layers apart and kernels in the dtype of the arithmetic: a copy, in that dtype."""
    if config.style.post_norm:
        raise UserError("a bidirectional model (post_norm) fills in, it does not generate")

    def cast(leaf):
        return leaf.astype(config.dtype) if leaf.ndim > 1 else leaf

    return Weights(
        {name: cast(leaf) for name, leaf in params["streams"].items()},
        tuple(
            {name: cast(leaf[n]) for name, leaf in params["layers"].items()}
            for n in range(config.depth)
        ),
    )


def prefill(
    weights: Weights,
    inputs: dict[str, jax.Array],
    lengths_B: jax.Array,
    config: ModelConfig,
    *,
    room: int,
) -> tuple[jax.Array, Cache]:
    """Reads the beginnings of all rows at once.

    Args:
      weights: from `prepare`.
      inputs: pieces and positions as for `forward`, [B, L], padded on the right; padding has
        positions too, within the context.
      lengths_B: int, how many pieces each row has, one at least.
      config: the model's.
      room: columns for pieces to come.

    Returns:
      final_BLD, the output the heads read, and a cache of L + room columns.
    """
    L = inputs["positions"].shape[1]
    # What is padded comes later than what is not, so causality hides it.
    mask = Mask(causal=True)
    x_BLD = enter(weights.streams, inputs, config)
    turns = turned(inputs["positions"], config)
    keys, values = [], []
    for layer in weights.layers:
        q_BLHC, k_BLKC, v_BLKC = layers.queries_keys_values(layer, x_BLD, turns, config)
        o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
        x_BLD = layers.after_attention(layer, x_BLD, o_BLHC, config)
        for kept, x_BLKC in ((keys, k_BLKC), (values, v_BLKC)):
            kept.append(jnp.pad(x_BLKC, ((0, 0), (0, room), (0, 0), (0, 0))))
    filled_BS = (jnp.arange(L + room) < lengths_B[:, None]).astype(jnp.int32)
    return leave(weights.streams, x_BLD, config), Cache(tuple(keys), tuple(values), filled_BS)


def extend(
    weights: Weights,
    inputs: dict[str, jax.Array],
    cache: Cache,
    column: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, Cache]:
    """Reads one more piece of every row, which sees all earlier ones.

    Args:
      weights: from `prepare`.
      inputs: pieces and positions as for `forward`, [B, 1].
      cache: from `prefill` or the call before.
      column: int, where the piece goes in the cache.
      config: the model's.

    Returns:
      final_BLD with L = 1, and the cache with the piece.
    """
    B = len(cache.filled_BS)
    one_B1 = jnp.ones((B, 1), jnp.int32)
    filled_BS = jax.lax.dynamic_update_slice(cache.filled_BS, one_B1, (0, column))
    mask = Mask(q_segments=one_B1, kv_segments=filled_BS)
    x_BLD = enter(weights.streams, inputs, config)
    turns = turned(inputs["positions"], config)
    keys, values = [], []
    for layer, k_BSKC, v_BSKC in zip(weights.layers, cache.keys, cache.values, strict=True):
        q_BLHC, k_BLKC, v_BLKC = layers.queries_keys_values(layer, x_BLD, turns, config)
        keys.append(jax.lax.dynamic_update_slice(k_BSKC, k_BLKC, (0, column, 0, 0)))
        values.append(jax.lax.dynamic_update_slice(v_BSKC, v_BLKC, (0, column, 0, 0)))
        o_BLHC = attention(q_BLHC, keys[-1], values[-1], mask=mask)
        x_BLD = layers.after_attention(layer, x_BLD, o_BLHC, config)
    return leave(weights.streams, x_BLD, config), Cache(tuple(keys), tuple(values), filled_BS)
