"""Sampling of the next token from logits: temperature, top-k, top-p, min-p, repetition penalty.

No step sorts the vocabulary: top-k and top-p each find a threshold by bisection over float32 bit
patterns, 30 passes over the logits for any k or p, and are skipped when unset. A sample takes one
uniform number per row (inverse CDF), so the random generator's work does not grow with the
vocabulary either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.errors import UserError

# Tokens per block of the two-level cumulative sum: about the square root of large vocabularies.
_BLOCK = 256


class SamplingParams(NamedTuple):
    """A `SamplingConfig` as scalar arrays, traced so that new values need no recompilation."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Token sampling options: temperature, top-k, top-p, min-p and repetition penalty.

    The filters apply in the order of the attributes, `repetition_penalty` before all of them.

    Attributes:
      temperature: divides the logits; 0 is greedy decoding and ignores the filters.
      top_k: keep this many of the most likely tokens; 0 for all.
      top_p: keep the most likely tokens whose probabilities sum to this (Holtzman et al. 2020,
        sec. 3.1); 1 for all.
      min_p: keep tokens of at least this fraction of the highest probability (Nguyen et al. 2024,
        sec. 3); 0 for all.
      repetition_penalty: divides positive and multiplies negative logits of tokens seen in the row,
        prompt included, before everything else (Keskar et al. 2019, sec. 4.1, who divide both);
        1 for none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (
                self.top_k >= 0 and self.top_k == int(self.top_k),
                "a whole number of at least 0",
            ),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (valid, accepted) in limits.items():
            value = getattr(self, name)
            if not valid or value == float("inf"):
                raise UserError(f"{name}={value:g} must be {accepted}")

    @property
    def temperature_only(self) -> bool:
        """Whether every option but the temperature has its default."""
        return dataclasses.replace(self, temperature=1.0) == SamplingConfig()

    @property
    def name(self) -> str:
        """The options that differ from the defaults, such as `T 0.7` or `top-p 0.9`."""
        labels = {
            "T": self.temperature,
            "top-k": self.top_k,
            "top-p": self.top_p,
            "min-p": self.min_p,
            "repetition penalty": self.repetition_penalty,
        }
        pairs = zip(labels.items(), dataclasses.astuple(SamplingConfig()), strict=True)
        changed = [f"{label} {value:g}" for (label, value), default in pairs if value != default]
        return ", ".join(changed) or "T 1"

    def to_params(self) -> SamplingParams:
        """Returns the options as arrays, so that one program serves all values."""
        return SamplingParams(
            jnp.float32(self.temperature),
            jnp.int32(min(self.top_k, 2**31 - 1)),
            jnp.float32(self.top_p),
            jnp.float32(self.min_p),
            jnp.float32(self.repetition_penalty),
        )


GREEDY = SamplingConfig(temperature=0.0)


def row_keys(seeds_B: jax.Array) -> jax.Array:
    """Returns one JAX random key per row, from the row's integer seed."""
    return jax.vmap(jax.random.key)(seeds_B)


def sample_tokens(
    logits_BV: jax.Array,
    params: SamplingParams,
    keys_B: jax.Array,
    position_B: jax.Array,
    *,
    seen_BV: jax.Array,
    suppress_V: jax.Array,
) -> jax.Array:
    """Returns the sampled next token of each row, int32 [B].

    A row's sample depends on its own logits, key and position only.

    Args:
      logits_BV: finite.
      params: from `SamplingConfig.to_params`.
      keys_B: from `row_keys`.
      position_B: int, position of the sampled token.
      seen_BV: bool, tokens that occurred in the row.
      suppress_V: bool, tokens never sampled; not all of them.
    """
    logits_BV = jnp.where(suppress_V, -jnp.inf, logits_BV.astype(jnp.float32))
    logits_BV = jax.lax.cond(
        params.repetition_penalty != 1.0,
        lambda: apply_repetition_penalty(logits_BV, seen_BV, params.repetition_penalty),
        lambda: logits_BV,
    )

    def sample():
        uniform = jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)))
        return inverse_cdf_sample(
            unnormalized_filtered_probs(logits_BV, params), uniform(keys_B, position_B)
        )

    return jax.lax.cond(params.temperature == 0.0, lambda: greedy_tokens(logits_BV), sample)


def apply_repetition_penalty(
    logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array
) -> jax.Array:
    """Returns the logits with those of already seen tokens lowered (if penalty > 1)."""
    lowered_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered_BV, logits_BV)


def unnormalized_filtered_probs(logits_BV: jax.Array, params: SamplingParams) -> jax.Array:
    """Returns token probabilities [B, V] up to a factor per row, 0 where filtered out.

    The most likely token has 1 and is always kept. Tokens that tie at a threshold are all kept.
    """
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    probs_BV = jnp.exp(logits_BV / params.temperature)
    probs_BV = jax.lax.cond(
        params.top_k > 0, lambda p: _top_k(p, params.top_k), lambda p: p, probs_BV
    )
    probs_BV = jax.lax.cond(
        params.top_p < 1.0, lambda p: _top_p(p, params.top_p), lambda p: p, probs_BV
    )
    return jnp.where(probs_BV >= params.min_p, probs_BV, 0.0)


def greedy_tokens(logits_BV: jax.Array) -> jax.Array:
    """Returns each row's token of highest logit, int32 [B]; ties go to the lowest token id."""
    # XLA:CPU's argmax reduces (value, index) pairs one by one; two plain reductions vectorize.
    V = logits_BV.shape[-1]
    max_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BV == max_B1, jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1)


def inverse_cdf_sample(probs_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Returns each row's first token with cumulative probability above `uniform_B` * row sum.

    A token of probability 0 is never sampled.

    Args:
      probs_BV: float32, unnormalized, with a positive one in every row.
      uniform_B: in 0..1.

    Returns:
      int32 [B].
    """
    B, V = probs_BV.shape
    probs_BNW = jnp.pad(probs_BV, ((0, 0), (0, -V % _BLOCK))).reshape(B, -1, _BLOCK)
    sums_BN = jnp.sum(probs_BNW, axis=-1)
    block_B, rest_B = _first_exceeding(sums_BN, uniform_B * jnp.sum(sums_BN, axis=-1))
    inside_BW = jnp.take_along_axis(probs_BNW, block_B[:, None, None], axis=1)[:, 0]
    return block_B * _BLOCK + _first_exceeding(inside_BW, rest_B)[0]


def _first_exceeding(parts_BN: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first positive part whose cumulative sum exceeds the target, and the remainder.

    The last positive part if rounding leaves the whole sum short.
    """
    sums_BN = jnp.cumsum(parts_BN, axis=-1)
    exceeds_BN = (sums_BN > target_B[:, None]) & (parts_BN > 0)
    last_B = parts_BN.shape[-1] - 1 - jnp.argmax(parts_BN[:, ::-1] > 0, axis=-1)
    index_B = jnp.where(jnp.any(exceeds_BN, axis=-1), jnp.argmax(exceeds_BN, axis=-1), last_B)

    def at_index(values_BN):
        return jnp.take_along_axis(values_BN, index_B[:, None], axis=-1)[:, 0]

    remainder_B = jnp.maximum(target_B - (at_index(sums_BN) - at_index(parts_BN)), 0.0)
    return index_B.astype(jnp.int32), remainder_B


def _top_k(probs_BV: jax.Array, k: jax.Array) -> jax.Array:
    def enough(threshold_B1):
        return jnp.sum(probs_BV >= threshold_B1, axis=-1, keepdims=True) >= k

    return _keep_highest(probs_BV, enough)


def _top_p(probs_BV: jax.Array, p: jax.Array) -> jax.Array:
    def mass(kept_BV):
        return jnp.sum(jnp.where(kept_BV, probs_BV, 0.0), axis=-1, keepdims=True)

    target_B1 = p * mass(probs_BV > 0)
    return _keep_highest(probs_BV, lambda threshold_B1: mass(probs_BV >= threshold_B1) >= target_B1)


def _keep_highest(probs_BV: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Keeps the fewest highest probabilities that are `enough`; sets the others to 0.

    Args:
      probs_BV: float32 in 0..1.
      enough: maps a threshold [B, 1] to whether what is at or above it suffices; true at 0.
    """

    # The bit patterns of non-negative floats are ordered like the floats.
    def bisect(_, bounds):
        low_B1, high_B1 = bounds
        middle_B1 = low_B1 + (high_B1 - low_B1) // 2
        fits_B1 = enough(jax.lax.bitcast_convert_type(middle_B1, jnp.float32))
        return jnp.where(fits_B1, middle_B1, low_B1), jnp.where(fits_B1, high_B1, middle_B1)

    start = jnp.zeros((len(probs_BV), 1), jnp.int32)
    past_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    low_B1, _ = jax.lax.fori_loop(0, 30, bisect, (start, start + past_one))
    threshold_B1 = jax.lax.bitcast_convert_type(low_B1, jnp.float32)
    return jnp.where(probs_BV >= threshold_B1, probs_BV, 0.0)
