"""What a layer keeps for its backward pass; the rest is computed again there, to save memory.

Chen et al. 2016 (sublinear memory cost), a layer at a time. In numbers a piece that are kept, of a
layer without a gate, D wide and 4 D in the feed-forward: "full" D, "attention" 6 D, "dots" 9 D (of
several query heads a key head fewer), "none" some 20 D. At long lengths attention is most of the
work: "attention" does not do it twice, "dots" and "full" do.
"""

from __future__ import annotations

import functools

import jax

from fm.attention import Mask, attention
from fm.model import layers
from fm.model.config import ModelConfig


def apply(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    turns: layers.Turns | None,
    mask: Mask,
    config: ModelConfig,
) -> jax.Array:
    """`layers.apply`, keeping what `config.remat` says."""
    if config.remat == "none":
        return layers.apply(layer, x_BLD, turns, mask, config)
    # The layers are a scan, whose body is a program of its own: nothing need keep apart what is
    # computed twice.
    again = functools.partial(jax.checkpoint, prevent_cse=False)
    if config.remat == "attention":
        before = functools.partial(layers.queries_keys_values, config=config)
        after = functools.partial(layers.after_attention, config=config)
        q_BLHC, k_BLKC, v_BLKC = again(before)(layer, x_BLD, turns)
        o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
        return again(after)(layer, x_BLD, o_BLHC)
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    whole = functools.partial(layers.apply, config=config)
    policy = products if config.remat == "dots" else None
    return again(whole, policy=policy)(layer, x_BLD, turns, mask)
