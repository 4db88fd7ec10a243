"""The mathematics of one tile of scores, the same on the chip and in its interpreter."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """What a kernel is specialised for, everything static.

    Attributes:
      causal: as in `Mask`.
      window: as in `Mask`.
      has_prefix: whether rows have one.
      has_kv_length: whether some keys of the arrays are not to be seen by anyone.
      has_segments: whether positions have them.
      scale: positive, multiplies the scores.
      softcap: positive or None.
    """

    causal: bool
    window: int | None
    has_prefix: bool
    has_kv_length: bool
    has_segments: bool
    scale: float
    softcap: float | None

    @property
    def log2_scale(self) -> float:
        """Logits in base two are this times what `squash` gives."""
        return LOG2_E * (self.scale if self.softcap is None else self.softcap)


def visible_tile(rule: KernelSpec, i, j, prefix, valid, q_segments, k_segments) -> jax.Array | None:
    """Who sees whom in a tile: the rule of `Mask`, term by term; None when everyone everyone.

    Args:
      rule: the terms that matter.
      i: absolute positions of the queries, in the shape of the tile.
      j: positions of the keys, likewise.
      prefix: a number.
      valid: a number; keys from it on do not count.
      q_segments: in the shape of the tile.
      k_segments: likewise.
    """
    terms = []
    if rule.causal:
        past = j <= i
        terms.append(past | (j < prefix) if rule.has_prefix else past)
    if rule.window is not None:
        terms.append(j > i - rule.window)
    if rule.has_kv_length:
        terms.append(j < valid)
    if rule.has_segments:
        terms.append(q_segments == k_segments)
    if not terms:
        return None
    seen = terms[0]
    for term in terms[1:]:
        seen = seen & term
    return seen


def softcap_logits(rule: KernelSpec, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """q k^T to logits over `Rule.factor`, and their slope when capped.

    The tanh of a soft cap comes from one exp2 and one division: the chip's own tanh is good to
    11 bits only, which a cap of 50 turns into an error of 0.02 in a logit.
    """
    if rule.softcap is None:
        return products, None
    power = jnp.exp2(products * (2 * LOG2_E * rule.scale / rule.softcap))
    capped = 1.0 - 2.0 / (1.0 + power)
    return capped, 1.0 - capped * capped


def mask_logits(logits: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Minus infinity where unseen."""
    return logits if seen is None else jnp.where(seen, logits, -jnp.inf)


def broadcast_tile(values: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
    """One value per row (axis 0) or column (axis 1), over a tile."""
    return jax.lax.broadcast_in_dim(values, shape, (axis,))


def online_softmax_step(rule: KernelSpec, logits, top, total):
    """One step of the online softmax (Milakov & Gimelshein 2018), in base two.

    Args:
      rule: for its factor.
      logits: a tile, one row per query.
      top: the largest logit of each row so far, times the factor.
      total: the sum of each row's weights so far.

    Returns:
      Weights of the tile, the factor by which what was summed before shrinks, new `top`, `total`.
    """
    new_top = jnp.maximum(top, jnp.max(logits, axis=1) * rule.log2_scale)
    # A row that has seen nothing yet: zero stands in, and all its weights come out as zeros.
    base = jnp.where(new_top == -jnp.inf, 0.0, new_top)
    weights = jnp.exp2(logits * rule.log2_scale - broadcast_tile(base, logits.shape, 0))
    shrink = jnp.exp2(top - base)
    return weights, shrink, new_top, total * shrink + jnp.sum(weights, axis=1)


def finish_softmax(top, total):
    """The inverse of each row's sum (0 for a row that saw nothing), and its base-2 logsumexp.

    The logsumexp of such a row is plus infinity, so that the backward's weights are zeros.
    """
    empty = total == 0.0
    held = jnp.where(empty, 1.0, total)
    inverse = jnp.where(empty, 0.0, 1.0 / held)
    return inverse, jnp.where(empty, jnp.inf, top + jnp.log(held) * LOG2_E)
