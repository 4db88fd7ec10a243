"""The compiled part of generation: prompts at once, then a loop that ends when all rows have."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.model import embeddings, kv_cache, sampling
from fm.model.config import ModelConfig
from fm.model.sampling import SamplingConfig, SamplingParams

# Where a row has no token: it ended before.
NO_TOKEN = -1


class DecodeParams(NamedTuple):
    """What stays the same throughout: as data, so that one program serves all.

    Attributes:
      sampling: of the decoding.
      keys_B: a random key a row.
      stop_V: bool, tokens that end a row.
      suppress_V: bool, tokens never drawn.
    """

    sampling: SamplingParams
    keys_B: jax.Array
    stop_V: jax.Array
    suppress_V: jax.Array


class DecodeState(NamedTuple):
    """Where a generation stands.

    Attributes:
      cache: of all tokens but the last.
      token_B: int32, the last token of each row.
      position_B: int32, its position.
      cache_index: int32, where its keys and values go.
      seen_BV: bool, tokens in the row so far.
      ended_B: bool.
    """

    cache: kv_cache.KVCache
    token_B: jax.Array
    position_B: jax.Array
    cache_index: jax.Array
    seen_BV: jax.Array
    ended_B: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "buffer_size"))
def prefill_and_decode(
    weights: kv_cache.PreparedParams,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    decode_params: DecodeParams,
    config: ModelConfig,
    *,
    max_new_tokens: int,
    num_tokens: jax.Array,
    buffer_size: int,
) -> tuple[jax.Array, DecodeState]:
    """Reads the prompts and draws the first tokens, int32 [B, buffer], `NOTHING` after an end."""
    B, L = tokens_BL.shape
    positions_BL = jnp.minimum(jnp.arange(L), lengths_B[:, None] - 1)
    inputs = {"tokens": tokens_BL, "positions": positions_BL}
    final_BLD, cache = kv_cache.prefill(
        weights, inputs, lengths_B, config, max_new_tokens=max_new_tokens
    )
    last_BD = jnp.take_along_axis(final_BLD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
    rows_B1 = jnp.arange(B)[:, None]
    # Padding repeats the last token, which has been seen.
    shown_BL = jnp.take_along_axis(tokens_BL, positions_BL, axis=1)
    seen_BV = jnp.zeros((B, config.vocab_size), bool).at[rows_B1, shown_BL].set(True)
    token_B = sampling.sample_tokens(
        embeddings.token_logits(weights.embeddings, last_BD),
        decode_params.sampling,
        decode_params.keys_B,
        lengths_B,
        seen_BV=seen_BV,
        suppress_V=decode_params.suppress_V,
    )
    state = DecodeState(
        cache,
        token_B,
        lengths_B,
        jnp.int32(L),
        seen_BV.at[jnp.arange(B), token_B].set(True),
        decode_params.stop_V[token_B],
    )
    drawn_BT = jnp.full((B, buffer_size), NO_TOKEN, jnp.int32)
    drawn_BT = drawn_BT.at[:, 0].set(jnp.where(state.ended_B, NO_TOKEN, token_B))
    return _loop(weights, state, decode_params, config, drawn_BT, jnp.int32(1), num_tokens)


@functools.partial(jax.jit, static_argnames=("config", "buffer_size"), donate_argnames="state")
def decode(
    weights: kv_cache.PreparedParams,
    state: DecodeState,
    decode_params: DecodeParams,
    config: ModelConfig,
    *,
    num_tokens: jax.Array,
    buffer_size: int,
) -> tuple[jax.Array, DecodeState]:
    """Draws further tokens, as `begin` does."""
    drawn_BT = jnp.full((len(state.token_B), buffer_size), NO_TOKEN, jnp.int32)
    return _loop(weights, state, decode_params, config, drawn_BT, jnp.int32(0), num_tokens)


def _loop(
    weights: kv_cache.PreparedParams,
    state: DecodeState,
    rules: DecodeParams,
    config: ModelConfig,
    drawn_BT: jax.Array,
    first: jax.Array,
    most: jax.Array,
) -> tuple[jax.Array, DecodeState]:
    """Fills the columns of `drawn_BT` from `first` to `most`, or until all rows have ended."""

    def going(carry):
        count, _, state = carry
        return (count < most) & ~jnp.all(state.ended_B)

    def draw_one(carry):
        count, drawn_BT, state = carry
        state = _next(weights, state, rules, config)
        shown_B1 = jnp.where(state.ended_B, NO_TOKEN, state.token_B)[:, None]
        return count + 1, jax.lax.dynamic_update_slice(drawn_BT, shown_B1, (0, count)), state

    _, drawn_BT, state = jax.lax.while_loop(going, draw_one, (first, drawn_BT, state))
    return drawn_BT, state


def _next(
    weights: kv_cache.PreparedParams, state: DecodeState, rules: DecodeParams, config: ModelConfig
) -> DecodeState:
    """Reads the last token of each row and draws the one after it."""
    inputs = {"tokens": state.token_B[:, None], "positions": state.position_B[:, None]}
    final_BLD, cache = kv_cache.decode_step(weights, inputs, state.cache, state.cache_index, config)
    token_B = sampling.sample_tokens(
        embeddings.token_logits(weights.embeddings, final_BLD[:, 0]),
        rules.sampling,
        rules.keys_B,
        state.position_B + 1,
        seen_BV=state.seen_BV,
        suppress_V=rules.suppress_V,
    )
    return DecodeState(
        cache,
        token_B,
        state.position_B + 1,
        state.cache_index + 1,
        state.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
        state.ended_B | rules.stop_V[token_B],
    )


# Prompts and room are rounded up to a multiple of this, so that few programs serve all lengths.
_ROUND = 32


class Generation:
    """Texts in the making.

    Attributes:
      remaining: tokens each row may still get.
    """

    def __init__(
        self,
        params: dict | kv_cache.PreparedParams,
        prompts: Sequence[np.ndarray | Sequence[int]],
        config: ModelConfig,
        *,
        sampling_config: SamplingConfig = SamplingConfig(),  # noqa: B008
        max_new_tokens: int,
        seeds: Sequence[int] | None = None,
        stop_token_ids: Sequence[int] = (),
        suppress_tokens: Sequence[int] = (),
    ):
        """Checks everything, computes nothing yet.

        Args:
          params: of the model, or what `cached.prepare` makes of them, which saves a copy of
            them per call.
          prompts: int, one token at least each.
          config: the model's.
          decoding: how tokens are chosen.
          max_tokens: the most a row gets.
          seeds: one a row, 0, 1, 2, ... if None. A row's tokens depend on its own only.
          ends: tokens that end a row; they are not among the results.
          barred: tokens never drawn.

        Raises:
          UserError: no prompt, an empty one, one with ids the model lacks, or one that leaves
            less than `max_tokens` of the context; a model that cannot generate text; another
            number of seeds than of prompts; every token barred.
        """
        lengths = _check(prompts, config, max_new_tokens)
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts; one each is needed")
        if len(set(suppress_tokens)) >= config.vocab_size:
            raise UserError("barred holds the whole vocabulary; one token at least must be left")
        weights = (
            params
            if isinstance(params, kv_cache.PreparedParams)
            else kv_cache.prepare_params(params, config)
        )
        self._weights, self._config, self.remaining = weights, config, max_new_tokens
        self._tokens_BL = np.zeros((len(prompts), _rounded(max(lengths))), np.int32)
        for row_L, prompt in zip(self._tokens_BL, prompts, strict=True):
            row_L[: len(prompt)] = prompt
        self._lengths_B = np.asarray(lengths, np.int32)
        self._room = _rounded(max_new_tokens)
        self._rules = DecodeParams(
            sampling_config.to_params(),
            sampling.row_keys(jnp.asarray(np.asarray(seeds) % 2**32, jnp.uint32)),
            jnp.asarray(_among(stop_token_ids, config.vocab_size)),
            jnp.asarray(_among(suppress_tokens, config.vocab_size)),
        )
        self._state: DecodeState | None = None

    @property
    def batch_size(self) -> int:
        """How many texts."""
        return len(self._lengths_B)

    @property
    def finished(self) -> bool:
        """Whether no row can get another token."""
        return self.remaining == 0 or (
            self._state is not None and bool(np.all(self._state.ended_B))
        )

    def next_tokens(self, num_tokens: int) -> list[np.ndarray]:
        """Up to so many further tokens of each row, int32; fewer only where the row ended."""
        num_tokens = min(num_tokens, self.remaining)
        self.remaining -= num_tokens
        if num_tokens == 0:
            return [np.zeros(0, np.int32) for _ in self._lengths_B]
        # The buffer's size is the program's; how much of it is used is data.
        arguments = {"most": jnp.int32(num_tokens), "buffer": _rounded(num_tokens)}
        if self._state is None:
            drawn_BT, self._state = prefill_and_decode(
                self._weights,
                self._tokens_BL,
                self._lengths_B,
                self._rules,
                self._config,
                max_new_tokens=self._room,
                **arguments,
            )
        else:
            drawn_BT, self._state = decode(
                self._weights, self._state, self._rules, self._config, **arguments
            )
        return [row_T[row_T != NO_TOKEN] for row_T in np.asarray(drawn_BT)]

    def stop_rows(self, rows: Sequence[int]) -> None:
        """Gives these rows no further tokens."""
        if self._state is None or not rows:
            return
        ended_B = np.array(self._state.ended_B)
        ended_B[list(rows)] = True
        self._state = self._state._replace(ended_B=jnp.asarray(ended_B))


def generate(
    params: dict | kv_cache.PreparedParams,
    prompts: Sequence[np.ndarray | Sequence[int]],
    config: ModelConfig,
    *,
    sampling_config: SamplingConfig = SamplingConfig(),  # noqa: B008
    max_new_tokens: int,
    seeds: Sequence[int] | None = None,
    stop_token_ids: Sequence[int] = (),
    suppress_tokens: Sequence[int] = (),
) -> list[np.ndarray]:
    """Continues prompts of any lengths, in one program.

    Arguments and errors as for `Generation`.

    Returns:
      int32 for each prompt, its new tokens alone.
    """
    return Generation(
        params,
        prompts,
        config,
        sampling_config=sampling_config,
        max_new_tokens=max_new_tokens,
        seeds=seeds,
        stop_token_ids=stop_token_ids,
        suppress_tokens=suppress_tokens,
    ).next_tokens(max_new_tokens)


def _check(prompts: Sequence, config: ModelConfig, max_tokens: int) -> list[int]:
    """Lengths of the prompts, once nothing speaks against them."""
    if not config.vocab_size:
        raise UserError("a model without a vocabulary generates no text")
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens} must be at least 1")
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise UserError("a prompt must hold at least one token")
    longest = max(lengths)
    if config.max_seq_len and longest + max_tokens > config.max_seq_len:
        raise UserError(
            f"a prompt of {longest} tokens and max_tokens={max_tokens} are over the model's "
            f"context of {config.max_seq_len}"
        )
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise UserError(f"a prompt holds ids outside the vocabulary of {config.vocab_size}")
    return lengths


def _among(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """Bool [V]; ids the vocabulary lacks are never drawn anyway."""
    return np.isin(np.arange(vocab), np.asarray(tokens, np.int64))


def _rounded(count: int) -> int:
    return -(-count // _ROUND) * _ROUND
