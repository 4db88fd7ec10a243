"""Normalisation over the last axis, in float32 whatever the dtype of its input."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.model.style import Style


def init(style: Style, name: str, *shape: int) -> dict[str, jax.Array]:
    """Parameters of one norm: `<name>` ones for the gain, `<name>_shift` zeros, where it has them.

    Args:
      style: whether it has them.
      name: of the norm among its neighbours.
      *shape: of its vectors, (D,) or stacked (N, D).
    """
    vectors = {}
    if style.gain:
        vectors[name] = jnp.ones(shape)
    if style.shift:
        vectors[f"{name}_shift"] = jnp.zeros(shape)
    return vectors


def norm(
    x: jax.Array, params: dict[str, jax.Array], name: str, style: Style, eps: float
) -> jax.Array:
    """The style's norm, with the gain and shift it has under this name."""
    y = rms_norm(x, eps) if style.norm == "rms" else layer_norm(x, eps)
    if style.gain:
        y = y * params[name].astype(y.dtype)
    if style.shift:
        y = y + params[f"{name}_shift"].astype(y.dtype)
    return y


def rms_norm(x: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) over the last axis, without a gain (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """(x - mean(x)) / std(x) over the last axis, without gain or shift (Ba et al. 2016, eq. 3)."""
    x32 = x.astype(jnp.float32)
    return rms_norm(x32 - jnp.mean(x32, -1, keepdims=True), eps).astype(x.dtype)
