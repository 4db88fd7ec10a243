"""Continuing texts: the prompts are read at once, then token after token goes through the cache.

Reading the prompts and drawing all tokens is one compiled program, a loop that ends when every
row has. A `Generation` runs it in parts, for text that is shown while it is made, or that ends
where a word does.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.model import cached, continuation, sampling
from fm.model.config import ModelConfig
from fm.model.sampling import Decoding

# Prompts and room are rounded up to a multiple of this, so that few programs serve all lengths.
_ROUND = 32


class Generation:
    """Texts in the making.

    Attributes:
      left: tokens each row may still get.
    """

    def __init__(
        self,
        params: dict | cached.Weights,
        prompts: Sequence[np.ndarray | Sequence[int]],
        config: ModelConfig,
        *,
        decoding: Decoding = Decoding(),  # noqa: B008
        max_tokens: int,
        seeds: Sequence[int] | None = None,
        ends: Sequence[int] = (),
        barred: Sequence[int] = (),
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
        lengths = _check(prompts, config, max_tokens)
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts; one each is needed")
        if len(set(barred)) >= config.vocab:
            raise UserError("barred holds the whole vocabulary; one token at least must be left")
        weights = params if isinstance(params, cached.Weights) else cached.prepare(params, config)
        self._weights, self._config, self.left = weights, config, max_tokens
        self._tokens_BL = np.zeros((len(prompts), _rounded(max(lengths))), np.int32)
        for row_L, prompt in zip(self._tokens_BL, prompts, strict=True):
            row_L[: len(prompt)] = prompt
        self._lengths_B = np.asarray(lengths, np.int32)
        self._room = _rounded(max_tokens)
        self._rules = continuation.Rules(
            decoding.knobs(),
            sampling.row_keys(jnp.asarray(np.asarray(seeds) % 2**32, jnp.uint32)),
            jnp.asarray(_among(ends, config.vocab)),
            jnp.asarray(_among(barred, config.vocab)),
        )
        self._state: continuation.State | None = None

    @property
    def rows(self) -> int:
        """How many texts."""
        return len(self._lengths_B)

    @property
    def finished(self) -> bool:
        """Whether no row can get another token."""
        return self.left == 0 or (self._state is not None and bool(np.all(self._state.ended_B)))

    def more(self, tokens: int) -> list[np.ndarray]:
        """Up to so many further tokens of each row, int32; fewer only where the row ended."""
        tokens = min(tokens, self.left)
        self.left -= tokens
        if tokens == 0:
            return [np.zeros(0, np.int32) for _ in self._lengths_B]
        # The buffer's size is the program's; how much of it is used is data.
        arguments = {"most": jnp.int32(tokens), "buffer": _rounded(tokens)}
        if self._state is None:
            drawn_BT, self._state = continuation.begin(
                self._weights,
                self._tokens_BL,
                self._lengths_B,
                self._rules,
                self._config,
                room=self._room,
                **arguments,
            )
        else:
            drawn_BT, self._state = continuation.go_on(
                self._weights, self._state, self._rules, self._config, **arguments
            )
        return [row_T[row_T != continuation.NOTHING] for row_T in np.asarray(drawn_BT)]

    def end(self, rows: Sequence[int]) -> None:
        """Gives these rows no further tokens."""
        if self._state is None or not rows:
            return
        ended_B = np.array(self._state.ended_B)
        ended_B[list(rows)] = True
        self._state = self._state._replace(ended_B=jnp.asarray(ended_B))


def generate(
    params: dict | cached.Weights,
    prompts: Sequence[np.ndarray | Sequence[int]],
    config: ModelConfig,
    *,
    decoding: Decoding = Decoding(),  # noqa: B008
    max_tokens: int,
    seeds: Sequence[int] | None = None,
    ends: Sequence[int] = (),
    barred: Sequence[int] = (),
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
        decoding=decoding,
        max_tokens=max_tokens,
        seeds=seeds,
        ends=ends,
        barred=barred,
    ).more(max_tokens)


def _check(prompts: Sequence, config: ModelConfig, max_tokens: int) -> list[int]:
    """Lengths of the prompts, once nothing speaks against them."""
    if not config.vocab:
        raise UserError("a model without a vocabulary generates no text")
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens} must be at least 1")
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise UserError("a prompt must hold at least one token")
    longest = max(lengths)
    if config.context and longest + max_tokens > config.context:
        raise UserError(
            f"a prompt of {longest} tokens and max_tokens={max_tokens} are over the model's "
            f"context of {config.context}"
        )
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= config.vocab:
            raise UserError(f"a prompt holds ids outside the vocabulary of {config.vocab}")
    return lengths


def _among(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """Bool [V]; ids the vocabulary lacks are never drawn anyway."""
    return np.isin(np.arange(vocab), np.asarray(tokens, np.int64))


def _rounded(count: int) -> int:
    return -(-count // _ROUND) * _ROUND
