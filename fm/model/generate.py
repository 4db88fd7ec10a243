"""Text generation: all prompts are prefilled at once, then decoded token by token with a KV cache.

Prefill and decoding are one compiled program, a loop that ends when every row has stopped. A
`IncrementalGenerator` runs it in parts, for text that is streamed or that stops at a string.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.model import embeddings, kv_cache
from fm.model.config import ModelConfig
from fm.model.sampling import SamplingConfig, SamplingParams, row_keys, sample_tokens

# Marks a column after the end of a row.
NO_TOKEN = -1
# Prompt lengths and token counts are rounded up to a multiple of this, so few programs serve all.
_ROUND_TO = 32


class DecodeSettings(NamedTuple):
    """Sampling parameters, random keys, and stop and suppressed token masks of a decoding loop.

    Attributes:
      sampling: sampling parameters.
      keys_B: one random key per row.
      stop_V: bool, tokens that end a row.
      suppress_V: bool, tokens never sampled.
    """

    sampling: SamplingParams
    keys_B: jax.Array
    stop_V: jax.Array
    suppress_V: jax.Array


class DecodeState(NamedTuple):
    """State of the decoding loop: KV cache, last tokens and positions, seen tokens, ended rows.

    Attributes:
      cache: of all tokens but the last.
      token_B: int32, the last token of each row.
      position_B: int32, its position.
      cache_index: int32, the column of its keys and values.
      seen_BV: bool, tokens that occurred in the row.
      ended_B: bool.
      nonfinite_B: int32, position of the first token whose logits were not finite; -1 for none.
    """

    cache: kv_cache.KVCache
    token_B: jax.Array
    position_B: jax.Array
    cache_index: jax.Array
    seen_BV: jax.Array
    ended_B: jax.Array
    nonfinite_B: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "buffer_size"))
def prefill_and_decode(
    params: kv_cache.PreparedParams,
    tokens_BL: jax.Array,
    lengths_B: jax.Array,
    decode_params: DecodeSettings,
    config: ModelConfig,
    *,
    max_new_tokens: int,
    num_tokens: jax.Array,
    buffer_size: int,
) -> tuple[jax.Array, DecodeState]:
    """Prefills the KV cache and decodes up to `num_tokens` tokens; returns them and the state.

    Returns:
      int32 [B, buffer_size], `NO_TOKEN` after a row's stop token, and the state to go on from.
    """
    B, L = tokens_BL.shape
    positions_BL = jnp.minimum(jnp.arange(L), lengths_B[:, None] - 1)
    inputs = {"tokens": tokens_BL, "positions": positions_BL}
    final_BLD, cache = kv_cache.prefill(
        params, inputs, lengths_B, config, max_new_tokens=max_new_tokens
    )
    last_BD = jnp.take_along_axis(final_BLD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
    rows_B1 = jnp.arange(B)[:, None]
    # Padding is replaced by the last token, which counts as seen anyway.
    prompt_BL = jnp.take_along_axis(tokens_BL, positions_BL, axis=1)
    seen_BV = jnp.zeros((B, config.vocab_size), bool).at[rows_B1, prompt_BL].set(True)
    token_B, finite_B = _sample(params, last_BD, decode_params, lengths_B, seen_BV, config)
    state = DecodeState(
        cache,
        token_B,
        lengths_B,
        jnp.int32(L),
        seen_BV.at[jnp.arange(B), token_B].set(True),
        decode_params.stop_V[token_B] | ~finite_B,
        jnp.where(finite_B, -1, lengths_B),
    )
    tokens_BT = jnp.full((B, buffer_size), NO_TOKEN, jnp.int32)
    tokens_BT = tokens_BT.at[:, 0].set(token_B)
    return _decode_loop(params, state, decode_params, config, tokens_BT, jnp.int32(1), num_tokens)


@functools.partial(jax.jit, static_argnames=("config", "buffer_size"), donate_argnames="state")
def decode(
    params: kv_cache.PreparedParams,
    state: DecodeState,
    decode_params: DecodeSettings,
    config: ModelConfig,
    *,
    num_tokens: jax.Array,
    buffer_size: int,
) -> tuple[jax.Array, DecodeState]:
    """Returns up to `num_tokens` more tokens, int32 [B, buffer_size], and the new DecodeState."""
    tokens_BT = jnp.full((len(state.token_B), buffer_size), NO_TOKEN, jnp.int32)
    return _decode_loop(params, state, decode_params, config, tokens_BT, jnp.int32(0), num_tokens)


def _decode_loop(
    params: kv_cache.PreparedParams,
    state: DecodeState,
    decode_params: DecodeSettings,
    config: ModelConfig,
    tokens_BT: jax.Array,
    first: jax.Array,
    num_tokens: jax.Array,
) -> tuple[jax.Array, DecodeState]:
    """Fills columns `first` to `num_tokens`, or until all rows have ended."""

    def unfinished(carry):
        count, _, state = carry
        return (count < num_tokens) & ~jnp.all(state.ended_B)

    def decode_one(carry):
        count, tokens_BT, state = carry
        inputs = {"tokens": state.token_B[:, None], "positions": state.position_B[:, None]}
        final_BLD, cache = kv_cache.decode_step(
            params, inputs, state.cache, state.cache_index, config
        )
        position_B = state.position_B + 1
        token_B, finite_B = _sample(
            params, final_BLD[:, 0], decode_params, position_B, state.seen_BV, config
        )
        broken_B = ~finite_B & ~state.ended_B
        column_B1 = jnp.where(state.ended_B, NO_TOKEN, token_B)[:, None]
        state = DecodeState(
            cache,
            token_B,
            position_B,
            state.cache_index + 1,
            state.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
            state.ended_B | broken_B | decode_params.stop_V[token_B],
            jnp.where(broken_B, position_B, state.nonfinite_B),
        )
        return count + 1, jax.lax.dynamic_update_slice(tokens_BT, column_B1, (0, count)), state

    _, tokens_BT, state = jax.lax.while_loop(unfinished, decode_one, (first, tokens_BT, state))
    return tokens_BT, state


def _sample(
    params: kv_cache.PreparedParams,
    h_BD: jax.Array,
    decode_params: DecodeSettings,
    position_B: jax.Array,
    seen_BV: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """Returns each row's next token, and whether the logits it was drawn from are finite."""
    logits_BV = embeddings.token_logits(params.embeddings, h_BD, config)
    token_B = sample_tokens(
        logits_BV,
        decode_params.sampling,
        decode_params.keys_B,
        position_B,
        seen_BV=seen_BV,
        suppress_V=decode_params.suppress_V,
    )
    return token_B, jnp.all(jnp.isfinite(logits_BV), axis=-1)


class IncrementalGenerator:
    """Generates continuations of a batch of prompts, some tokens per `next_tokens` call.

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
        return_stop_tokens: bool = False,
    ):
        """Checks the arguments; computes nothing yet.

        Args:
          params: the model's, or `kv_cache.prepare_params` of them, which saves a copy per call.
          prompts: token ids, at least one each.
          sampling_config: how tokens are chosen.
          max_new_tokens: per row.
          seeds: one per row; 0, 1, 2, ... if None. A row's tokens depend on its own seed only.
          stop_token_ids: tokens that end a row.
          suppress_tokens: tokens never sampled.
          return_stop_tokens: whether the token that ended a row is returned as its last.

        Raises:
          UserError: no prompt, an empty one, one with ids outside the vocabulary, or one too long
            for `max_new_tokens` to fit the model; a model without text; seeds and prompts differ
            in number; every token is suppressed.
        """
        lengths = _check_prompts(prompts, config, max_new_tokens)
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one per prompt")
        if len(set(suppress_tokens)) >= config.vocab_size:
            raise UserError("suppress_tokens holds the whole vocabulary; leave at least one token")
        if not isinstance(params, kv_cache.PreparedParams):
            params = kv_cache.prepare_params(params, config)
        self._params, self._config, self.remaining = params, config, max_new_tokens
        self._tokens_BL = np.zeros((len(prompts), _round_up(max(lengths))), np.int32)
        for row_L, prompt in zip(self._tokens_BL, prompts, strict=True):
            row_L[: len(prompt)] = prompt
        self._lengths_B = np.asarray(lengths, np.int32)
        self._cache_columns = _round_up(max_new_tokens)
        self._decode_params = DecodeSettings(
            sampling_config.to_params(),
            row_keys(jnp.asarray(np.asarray(seeds) % 2**32, jnp.uint32)),
            jnp.asarray(_vocab_mask(stop_token_ids, config.vocab_size)),
            jnp.asarray(_vocab_mask(suppress_tokens, config.vocab_size)),
        )
        self._dropped = () if return_stop_tokens else stop_token_ids
        self._state: DecodeState | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self._lengths_B)

    @property
    def finished(self) -> bool:
        """Whether no row can get another token."""
        return self.remaining == 0 or (
            self._state is not None and bool(np.all(self._state.ended_B))
        )

    def next_tokens(self, num_tokens: int) -> list[np.ndarray]:
        """Returns up to `num_tokens` more tokens of each row, int32; fewer where the row ended.

        Raises:
          UserError: the logits of a row are not finite.
        """
        num_tokens = min(num_tokens, self.remaining)
        self.remaining -= num_tokens
        if num_tokens == 0:
            return [np.zeros(0, np.int32) for _ in self._lengths_B]
        # The buffer's size is static; how much of it is used is data.
        counts = {"num_tokens": jnp.int32(num_tokens), "buffer_size": _round_up(num_tokens)}
        if self._state is None:
            tokens_BT, state = prefill_and_decode(
                self._params,
                self._tokens_BL,
                self._lengths_B,
                self._decode_params,
                self._config,
                max_new_tokens=self._cache_columns,
                **counts,
            )
        else:
            tokens_BT, state = decode(
                self._params, self._state, self._decode_params, self._config, **counts
            )
        self._state = state
        for row, position in enumerate(np.asarray(state.nonfinite_B)):
            if position >= 0:
                after = f"after {position} tokens, {self._lengths_B[row]} of them the prompt's"
                raise UserError(
                    f"the model's logits are not finite {after} (text {row + 1} of "
                    f"{self.batch_size}): its parameters are, or its activations overflow "
                    f"{self._config.dtype}"
                )
        rows = [row_T[row_T != NO_TOKEN] for row_T in np.asarray(tokens_BT)]
        return [row[:-1] if len(row) and row[-1] in self._dropped else row for row in rows]

    def stop_rows(self, rows: Sequence[int]) -> None:
        """Ends these rows: they get no further tokens."""
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
    max_new_tokens: int,
    **options,
) -> list[np.ndarray]:
    """Returns the generated tokens of each prompt, without the prompt; prompts may vary in length.

    All prompts run in one program. Arguments and errors are those of `IncrementalGenerator`.

    Returns:
      Per prompt its new tokens, int32.
    """
    generation = IncrementalGenerator(
        params, prompts, config, max_new_tokens=max_new_tokens, **options
    )
    return generation.next_tokens(max_new_tokens)


def _check_prompts(prompts: Sequence, config: ModelConfig, max_new_tokens: int) -> list[int]:
    """Returns the prompts' lengths, or raises UserError."""
    if not config.vocab_size:
        raise UserError("a model without a vocabulary generates no text")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise UserError("a prompt must hold at least one token")
    longest = max(lengths)
    if config.max_seq_len and longest + max_new_tokens > config.max_seq_len:
        raise UserError(
            f"a prompt of {longest} tokens plus max_new_tokens={max_new_tokens} exceeds the "
            f"model's max_seq_len of {config.max_seq_len}"
        )
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise UserError(f"a prompt holds ids outside the vocabulary of {config.vocab_size}")
    return lengths


def _vocab_mask(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """Returns bool [V]; ids outside the vocabulary are ignored."""
    return np.isin(np.arange(vocab_size), np.asarray(tokens, np.int64))


def _round_up(count: int) -> int:
    return -(-count // _ROUND_TO) * _ROUND_TO
