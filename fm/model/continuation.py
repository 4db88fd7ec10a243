"""The compiled part of generation: prompts at once, then a loop that ends when all rows have."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.model import cached, sampling, streams
from fm.model.config import ModelConfig
from fm.model.sampling import Knobs

# Where a row has no token: it ended before.
NOTHING = -1


class Rules(NamedTuple):
    """What stays the same throughout: as data, so that one program serves all.

    Attributes:
      knobs: of the decoding.
      keys_B: a random key a row.
      ends_V: bool, tokens that end a row.
      barred_V: bool, tokens never drawn.
    """

    knobs: Knobs
    keys_B: jax.Array
    ends_V: jax.Array
    barred_V: jax.Array


class State(NamedTuple):
    """Where a generation stands.

    Attributes:
      cache: of all tokens but the last.
      token_B: int32, the last token of each row.
      at_B: int32, its position.
      column: int32, where its keys and values go.
      seen_BV: bool, tokens in the row so far.
      ended_B: bool.
    """

    cache: cached.Cache
    token_B: jax.Array
    at_B: jax.Array
    column: jax.Array
    seen_BV: jax.Array
    ended_B: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "room", "buffer"))
def begin(
    weights: cached.Weights,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    rules: Rules,
    config: ModelConfig,
    *,
    room: int,
    most: jax.Array,
    buffer: int,
) -> tuple[jax.Array, State]:
    """Reads the prompts and draws the first tokens, int32 [B, buffer], `NOTHING` after an end."""
    B, L = tokens_BL.shape
    positions_BL = jnp.minimum(jnp.arange(L), lengths_B[:, None] - 1)
    inputs = {"tokens": tokens_BL, "positions": positions_BL}
    final_BLD, cache = cached.prefill(weights, inputs, lengths_B, config, room=room)
    last_BD = jnp.take_along_axis(final_BLD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
    rows_B1 = jnp.arange(B)[:, None]
    # Padding repeats the last token, which has been seen.
    shown_BL = jnp.take_along_axis(tokens_BL, positions_BL, axis=1)
    seen_BV = jnp.zeros((B, config.vocab), bool).at[rows_B1, shown_BL].set(True)
    token_B = sampling.draw(
        streams.token_logits(weights.streams, last_BD),
        rules.knobs,
        rules.keys_B,
        lengths_B,
        seen_BV=seen_BV,
        barred_V=rules.barred_V,
    )
    state = State(
        cache,
        token_B,
        lengths_B,
        jnp.int32(L),
        seen_BV.at[jnp.arange(B), token_B].set(True),
        rules.ends_V[token_B],
    )
    drawn_BT = jnp.full((B, buffer), NOTHING, jnp.int32)
    drawn_BT = drawn_BT.at[:, 0].set(jnp.where(state.ended_B, NOTHING, token_B))
    return _loop(weights, state, rules, config, drawn_BT, jnp.int32(1), most)


@functools.partial(jax.jit, static_argnames=("config", "buffer"), donate_argnames="state")
def go_on(
    weights: cached.Weights,
    state: State,
    rules: Rules,
    config: ModelConfig,
    *,
    most: jax.Array,
    buffer: int,
) -> tuple[jax.Array, State]:
    """Draws further tokens, as `begin` does."""
    drawn_BT = jnp.full((len(state.token_B), buffer), NOTHING, jnp.int32)
    return _loop(weights, state, rules, config, drawn_BT, jnp.int32(0), most)


def _loop(
    weights: cached.Weights,
    state: State,
    rules: Rules,
    config: ModelConfig,
    drawn_BT: jax.Array,
    first: jax.Array,
    most: jax.Array,
) -> tuple[jax.Array, State]:
    """Fills the columns of `drawn_BT` from `first` to `most`, or until all rows have ended."""

    def going(carry):
        count, _, state = carry
        return (count < most) & ~jnp.all(state.ended_B)

    def draw_one(carry):
        count, drawn_BT, state = carry
        state = _next(weights, state, rules, config)
        shown_B1 = jnp.where(state.ended_B, NOTHING, state.token_B)[:, None]
        return count + 1, jax.lax.dynamic_update_slice(drawn_BT, shown_B1, (0, count)), state

    _, drawn_BT, state = jax.lax.while_loop(going, draw_one, (first, drawn_BT, state))
    return drawn_BT, state


def _next(weights: cached.Weights, state: State, rules: Rules, config: ModelConfig) -> State:
    """Reads the last token of each row and draws the one after it."""
    inputs = {"tokens": state.token_B[:, None], "positions": state.at_B[:, None]}
    final_BLD, cache = cached.extend(weights, inputs, state.cache, state.column, config)
    token_B = sampling.draw(
        streams.token_logits(weights.streams, final_BLD[:, 0]),
        rules.knobs,
        rules.keys_B,
        state.at_B + 1,
        seen_BV=state.seen_BV,
        barred_V=rules.barred_V,
    )
    return State(
        cache,
        token_B,
        state.at_B + 1,
        state.column + 1,
        state.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
        state.ended_B | rules.ends_V[token_B],
    )
