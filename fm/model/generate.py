"""Sampling what comes next, piece by piece.

Every step runs the whole sequence again: right for the short samples of a report.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.attention import Mask
from fm.model import streams
from fm.model.config import ModelConfig
from fm.model.transformer import forward


@functools.partial(jax.jit, static_argnames=("config", "length"))
def sample_tokens(
    params: dict,
    prompt_BP: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    length: int,
    temperature: float = 0.8,
    barred_V: jax.Array | None = None,
) -> jax.Array:
    """Continues prompts of one length.

    Args:
      params: of the model.
      prompt_BP: int, at least one token each.
      rng: of the draws.
      config: the model's.
      length: tokens of the whole, prompt included.
      temperature: divides the logits.
      barred_V: bool, tokens never drawn (padding and other specials).

    Returns:
      int [B, length], the prompt first.
    """
    B, P = prompt_BP.shape
    tokens_BL = jnp.zeros((B, length), jnp.int32).at[:, :P].set(prompt_BP)
    positions_BL = jnp.broadcast_to(jnp.arange(length), (B, length))

    def step(at, tokens_BL):
        inputs = {"tokens": tokens_BL, "positions": positions_BL}
        final_BLD = forward(params, inputs, config, mask=Mask(causal=True))["final"]
        logits_BV = streams.token_logits(params["streams"], final_BLD[:, at - 1]) / temperature
        if barred_V is not None:
            logits_BV = jnp.where(barred_V, -jnp.inf, logits_BV)
        drawn_B = jax.random.categorical(jax.random.fold_in(rng, at), logits_BV)
        return tokens_BL.at[:, at].set(drawn_B)

    return jax.lax.fori_loop(P, length, step, tokens_BL)


@functools.partial(jax.jit, static_argnames=("config", "count"))
def sample_patches(
    params: dict,
    positions_LA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    count: int,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws pictures from nothing.

    Args:
      params: of the model.
      positions_LA: int, where the patches lie, in the order of training.
      rng: of the draws.
      config: the model's.
      count: pictures (B).
      temperature: multiplies the scales of the components.

    Returns:
      float32 [B, L, P] in 0..1.
    """
    L = positions_LA.shape[0]
    inputs = streams.with_start(
        {
            "patches": jnp.zeros((count, L, config.patch)),
            "positions": jnp.broadcast_to(positions_LA, (count, *positions_LA.shape)),
            "segments": jnp.ones((count, L), jnp.int32),
        }
    )

    def step(at, patches_BLP):
        final_BLD = forward(
            params, inputs | {"patches": patches_BLP}, config, mask=Mask(causal=True)
        )["final"]
        log_weights_BM, means, scales = streams.mixture(
            params["streams"], final_BLD[:, at - 1], config
        )
        which, noise = jax.random.split(jax.random.fold_in(rng, at))
        component_B11 = jax.random.categorical(which, log_weights_BM)[:, None, None]
        mean_BP = jnp.take_along_axis(means, component_B11, axis=1)[:, 0]
        scale_BP = jnp.take_along_axis(scales, component_B11, axis=1)[:, 0]
        drawn_BP = mean_BP + temperature * scale_BP * jax.random.normal(noise, mean_BP.shape)
        return patches_BLP.at[:, at].set(jnp.clip(drawn_BP, 0.0, 1.0))

    return jax.lax.fori_loop(1, L + 1, step, inputs["patches"])[:, 1:]
