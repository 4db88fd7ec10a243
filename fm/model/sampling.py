"""What is drawn from the logits of the next token.

No step sorts the vocabulary: top-k and top-p each look for a threshold by halving the range of
float32 bit patterns, 30 passes over the logits whatever k or p is, and skipped where not asked
for. A draw takes one uniform number per row (inverse of the cumulative distribution), so that the
generator's work does not grow with the vocabulary either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.errors import UserError

# Tokens in a block of the two-level cumulative sum: about the square root of large vocabularies.
_BLOCK = 256


class SamplingParams(NamedTuple):
    """A `Decoding` as scalars that enter a program as data: float32, and `top_k` int32."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen; the filters apply in the order of the attributes below the first.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token and leaves the filters out.
      top_k: how many of the likeliest tokens stay; 0 for all.
      top_p: the likeliest tokens stay that together reach this probability (Holtzman et al.
        2020, sec. 3.1); 1 for all.
      min_p: tokens stay that have this share of the likeliest one's probability (Nguyen et al.
        2024, sec. 3); 0 for all.
      repetition_penalty: tokens seen before in the row, prompt included, have positive logits
        divided and negative ones multiplied by it, before anything else (Keskar et al. 2019,
        sec. 4.1, who divide both); 1 for none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number, 0 up"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (kept, accepted) in limits.items():
            value = getattr(self, name)
            if not kept or value == float("inf"):
                raise UserError(f"{name}={value:g} must be {accepted}")

    @property
    def temperature_only(self) -> bool:
        """Whether nothing but the temperature is set."""
        return dataclasses.replace(self, temperature=1.0) == SamplingConfig()

    @property
    def name(self) -> str:
        """What differs from plain sampling, such as `T 0.7` or `top-p 0.9`."""
        signs = {
            "T": self.temperature,
            "top-k": self.top_k,
            "top-p": self.top_p,
            "min-p": self.min_p,
            "repetition penalty": self.repetition_penalty,
        }
        plain = dataclasses.astuple(SamplingConfig())
        pairs = zip(signs.items(), plain, strict=True)
        return (
            ", ".join(f"{sign} {value:g}" for (sign, value), own in pairs if value != own) or "T 1"
        )

    def to_params(self) -> SamplingParams:
        """The same as data."""
        return SamplingParams(
            jnp.float32(self.temperature),
            jnp.int32(min(self.top_k, 2**31 - 1)),
            jnp.float32(self.top_p),
            jnp.float32(self.min_p),
            jnp.float32(self.repetition_penalty),
        )


GREEDY = SamplingConfig(temperature=0.0)


def row_keys(seeds_B: jax.Array) -> jax.Array:
    """A key of its own for each row, from its seed alone."""
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
    """The next token of each row.

    A row's draw depends on its logits, its key and its position alone, not on its neighbours.

    Args:
      logits_BV: unnormalised log probabilities, finite.
      params: from `Decoding.knobs`.
      keys_B: from `row_keys`.
      position_B: int, the position of the token that is drawn.
      seen_BV: bool, tokens the row has had.
      suppress_V: bool, tokens never drawn; not all of them.

    Returns:
      int32 [B].
    """
    logits_BV = jnp.where(suppress_V, -jnp.inf, logits_BV.astype(jnp.float32))
    logits_BV = jax.lax.cond(
        params.repetition_penalty != 1.0,
        lambda: apply_repetition_penalty(logits_BV, seen_BV, params.repetition_penalty),
        lambda: logits_BV,
    )

    def sampled():
        uniform_B = jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)))
        return inverse_cdf_sample(filtered_probs(logits_BV, params), uniform_B(keys_B, position_B))

    return jax.lax.cond(params.temperature == 0.0, lambda: greedy_tokens(logits_BV), sampled)


def apply_repetition_penalty(
    logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array
) -> jax.Array:
    """Logits with the tokens seen before made less likely, by a penalty above 1."""
    lowered_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered_BV, logits_BV)


def filtered_probs(logits_BV: jax.Array, params: SamplingParams) -> jax.Array:
    """Unnormalised probabilities float32 [B, V] at a temperature above 0, zeros where barred.

    The likeliest token has 1 and always stays. Tokens that tie at a threshold stay together.
    """
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    weights_BV = jnp.exp(logits_BV / params.temperature)
    weights_BV = jax.lax.cond(
        params.top_k > 0, lambda w: _top_k(w, params.top_k), lambda w: w, weights_BV
    )
    weights_BV = jax.lax.cond(
        params.top_p < 1.0, lambda w: _top_p(w, params.top_p), lambda w: w, weights_BV
    )
    return jnp.where(weights_BV >= params.min_p, weights_BV, 0.0)


def greedy_tokens(logits_BV: jax.Array) -> jax.Array:
    """The token of the highest logit, the first of equals, int32 [B]."""
    # XLA:CPU reduces pairs of value and place one by one; two plain reductions are vectors.
    V = logits_BV.shape[-1]
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BV == top_B1, jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1)


def inverse_cdf_sample(weights_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first token at which the cumulative weight passes the uniform share of the total.

    A token without weight is never picked.

    Args:
      weights_BV: float32, not negative, some of them positive in every row.
      uniform_B: in 0..1.

    Returns:
      int32 [B].
    """
    B, V = weights_BV.shape
    weights_BNW = jnp.pad(weights_BV, ((0, 0), (0, -V % _BLOCK))).reshape(B, -1, _BLOCK)
    sums_BN = jnp.sum(weights_BNW, axis=-1)
    block_B, rest_B = _passing(sums_BN, uniform_B * jnp.sum(sums_BN, axis=-1))
    inside_BW = jnp.take_along_axis(weights_BNW, block_B[:, None, None], axis=1)[:, 0]
    return block_B * _BLOCK + _passing(inside_BW, rest_B)[0]


def _passing(parts_BN: jax.Array, goal_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first positive part whose cumulative sum is over the goal, and what is left of the goal.

    The last positive one where rounding leaves the whole sum short.
    """
    sums_BN = jnp.cumsum(parts_BN, axis=-1)
    there_BN = (sums_BN > goal_B[:, None]) & (parts_BN > 0)
    last_B = parts_BN.shape[-1] - 1 - jnp.argmax(parts_BN[:, ::-1] > 0, axis=-1)
    index_B = jnp.where(jnp.any(there_BN, axis=-1), jnp.argmax(there_BN, axis=-1), last_B)

    def at(values_BN):
        return jnp.take_along_axis(values_BN, index_B[:, None], axis=-1)[:, 0]

    return index_B.astype(jnp.int32), jnp.maximum(goal_B - (at(sums_BN) - at(parts_BN)), 0.0)


def _top_k(weights_BV: jax.Array, k: jax.Array) -> jax.Array:
    def enough(least_B1):
        return jnp.sum(weights_BV >= least_B1, axis=-1, keepdims=True) >= k

    return _highest(weights_BV, enough)


def _top_p(weights_BV: jax.Array, p: jax.Array) -> jax.Array:
    def mass(kept_BV):
        return jnp.sum(jnp.where(kept_BV, weights_BV, 0.0), axis=-1, keepdims=True)

    goal_B1 = p * mass(weights_BV > 0)
    return _highest(weights_BV, lambda least_B1: mass(weights_BV >= least_B1) >= goal_B1)


def _highest(weights_BV: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The fewest of the highest weights that are `enough`, the others set to zero.

    Args:
      weights_BV: float32 in 0..1.
      enough: of a threshold [B, 1], whether what is at or above it will do; true at 0.
    """

    # The bit patterns of floats that are not negative are in the order of the floats.
    def halve(_, bounds):
        low_B1, high_B1 = bounds
        middle_B1 = low_B1 + (high_B1 - low_B1) // 2
        fits_B1 = enough(jax.lax.bitcast_convert_type(middle_B1, jnp.float32))
        return jnp.where(fits_B1, middle_B1, low_B1), jnp.where(fits_B1, high_B1, middle_B1)

    start = jnp.zeros((len(weights_BV), 1), jnp.int32)
    past_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    low_B1, _ = jax.lax.fori_loop(0, 30, halve, (start, start + past_one))
    least_B1 = jax.lax.bitcast_convert_type(low_B1, jnp.float32)
    return jnp.where(weights_BV >= least_B1, weights_BV, 0.0)
