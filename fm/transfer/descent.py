"""A whole run of AdamW inside one program: the schedule, the order of examples, the updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# (trained, number of the update) to the gradient of the loss.
Gradient = Callable[[Any, jax.Array], Any]


def descend(
    gradient: Gradient, trained: Any, peak: jax.Array, steps: jax.Array, weight_decay: float
) -> Any:
    """Follows the gradient, to be called under jit.

    Args:
      gradient: see `Gradient`.
      trained: parameters to start from.
      peak: AdamW's highest learning rate, warmed up over a tenth of the steps, then cosine to 0.
      steps: number of updates; it may be traced, so that one program serves all lengths.
      weight_decay: decoupled, on everything trained.

    Returns:
      The parameters after the last update.
    """
    rule = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(weight_decay),
    )

    def step(number, carry):
        trained, state = carry
        updates, state = rule.update(gradient(trained, number), state, trained)
        rate = -peak * _rate(number, steps)
        return optax.apply_updates(trained, jax.tree.map(lambda u: rate * u, updates)), state

    return jax.lax.fori_loop(0, steps, step, (trained, rule.init(trained)))[0]


def order(examples: int, updates: int, batch_size: int, seed: int) -> np.ndarray:
    """Which examples each update sees, int [updates, batch_size]: shuffled pass after pass."""
    draws = np.random.default_rng([seed, examples])
    passes = -(-updates * batch_size // examples)
    every = np.concatenate([draws.permutation(examples) for _ in range(passes)])
    return every[: updates * batch_size].reshape(updates, -1)


def pad(value: np.ndarray, length: int) -> np.ndarray:
    """Repeats of the first row, never drawn, up to `length` rows: one shape for all budgets."""
    return np.concatenate([value, np.repeat(value[:1], length - len(value), axis=0)])


def _rate(number: jax.Array, steps: jax.Array) -> jax.Array:
    """Share of the peak rate: linear over the first tenth, then half a cosine down to zero."""
    warm = jnp.maximum(1, steps // 10)
    rising = (number + 1) / warm
    falling = 0.5 * (1.0 + jnp.cos(jnp.pi * (number - warm) / jnp.maximum(1, steps - warm)))
    return jnp.where(number < warm, rising, falling)
