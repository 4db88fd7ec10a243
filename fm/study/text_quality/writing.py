"""Writing: a model goes on from prompts, under a decoding, one compiled loop over a cache."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.errors import UserError
from fm.model import streams
from fm.model.config import ModelConfig
from fm.model.layers import queries_keys_values, rms_norm
from fm.model.positions import rotations


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits.
      top_p: of the likeliest tokens that reach this share, no others (Holtzman et al. 2020).
      min_p: of those at least this share as likely as the likeliest (Nguyen et al. 2024).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and 0 <= self.min_p < 1):
            raise UserError(
                f"temperature={self.temperature} must be above 0, top_p={self.top_p} lie in (0, 1] "
                f"and min_p={self.min_p} in [0, 1)"
            )

    @property
    def by_temperature(self) -> bool:
        """Whether nothing but the temperature is set."""
        return self.top_p == 1 and self.min_p == 0

    @property
    def name(self) -> str:
        """What differs from plain sampling, such as `T 0.7` or `top-p 0.9`."""
        parts = [f"T {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p {self.min_p:g}"] if self.min_p > 0 else []
        return ", ".join(parts) or "T 1"


def kept(logits_BV: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """The logits with tokens outside of top-p and min-p at minus infinity.

    The least chance that top-p keeps is found by halving, to 2^-30 of the greatest: sorting a
    vocabulary at every token would take most of the time.
    """
    chances_BV = jax.nn.softmax(logits_BV, axis=-1)
    top_B1 = jnp.max(chances_BV, axis=-1, keepdims=True)

    def halve(_, ends):
        low_B1, high_B1 = ends
        middle_B1 = (low_B1 + high_B1) / 2
        held_B1 = jnp.sum(chances_BV, axis=-1, keepdims=True, where=chances_BV >= middle_B1)
        enough = held_B1 >= top_p
        return jnp.where(enough, middle_B1, low_B1), jnp.where(enough, high_B1, middle_B1)

    nothing_B1 = jnp.zeros_like(top_B1)
    least_B1 = jax.lax.cond(
        top_p < 1,
        lambda: jax.lax.fori_loop(0, 30, halve, (nothing_B1, top_B1))[0],
        lambda: nothing_B1,
    )
    least_B1 = jnp.maximum(least_B1, min_p * top_B1)
    return jnp.where(chances_BV >= least_B1, logits_BV, -jnp.inf)


def write(
    params: dict,
    prompts_BP: jax.Array,
    config: ModelConfig,
    decoding: Decoding,
    *,
    new_tokens: int,
    seed: int,
    barred_V: jax.Array,
) -> jax.Array:
    """Goes on from prompts of one length.

    Args:
      params: of the model.
      prompts_BP: int, at least one token each.
      config: the model's.
      decoding: how to draw.
      new_tokens: to be written after each.
      seed: of the draws.
      barred_V: bool, tokens never drawn.

    Returns:
      int [B, P + new_tokens], the prompts first.
    """
    settings = jnp.array([decoding.temperature, decoding.top_p, decoding.min_p])
    return _write(params, prompts_BP, config, settings, seed, barred_V, new_tokens)


@functools.partial(jax.jit, static_argnames=("config", "new_tokens"))
def _write(params, prompts_BP, config, settings, seed, barred_V, new_tokens):
    B, P = prompts_BP.shape
    S = P + new_tokens
    temperature, top_p, min_p = settings
    tokens_BS = jnp.zeros((B, S), jnp.int32).at[:, :P].set(prompts_BP)
    empty = jnp.zeros((B, S, config.kv_heads, config.head_width), config.dtype)
    cache = [(empty, empty)] * config.depth
    turns_S = rotations(jnp.arange(S)[None, :, None], config.head_width, config.rope_base)

    def step(at, carry):
        tokens_BS, cache = carry
        cosines, sines = (jax.lax.dynamic_slice_in_dim(each, at, 1, axis=1) for each in turns_S)
        inputs = {"tokens": jax.lax.dynamic_slice_in_dim(tokens_BS, at, 1, axis=1)}
        x_BLD = rms_norm(streams.embed(params["streams"], inputs, config), config.norm_eps)
        filled = []
        for n, kept_kv in enumerate(cache):
            layer = {name: w[n].astype(x_BLD.dtype) for name, w in params["layers"].items()}
            q_BLHC, *new_kv = queries_keys_values(layer, x_BLD, (cosines, sines), config)
            k_BSKC, v_BSKC = (
                jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=1)
                for old, new in zip(kept_kv, new_kv, strict=True)
            )
            mask = Mask(kv_length=jnp.broadcast_to(at + 1, (B,)))
            o_BLHC = attention(q_BLHC, k_BSKC, v_BSKC, mask=mask)
            out_ED = layer["attention_out"].reshape(-1, config.width)
            x_BLD = x_BLD + o_BLHC.reshape(B, 1, -1) @ out_ED
            h_BLF = jnp.square(jax.nn.relu(rms_norm(x_BLD, config.norm_eps) @ layer["up"]))
            x_BLD = x_BLD + h_BLF @ layer["down"]
            filled.append((k_BSKC, v_BSKC))
        final_BD = rms_norm(x_BLD[:, 0], config.norm_eps)
        logits_BV = streams.token_logits(params["streams"], final_BD) / temperature
        logits_BV = kept(jnp.where(barred_V, -jnp.inf, logits_BV), top_p, min_p)
        rng = jax.random.fold_in(jax.random.key(seed), at)
        drawn_B = jax.random.categorical(rng, logits_BV)
        # Within the prompt the token is known.
        given_B = jax.lax.dynamic_index_in_dim(tokens_BS, at + 1, axis=1, keepdims=False)
        next_B = jnp.where(at + 1 < P, given_B, drawn_B)
        return tokens_BS.at[:, at + 1].set(next_B), filled

    return jax.lax.fori_loop(0, S - 1, step, (tokens_BS, cache))[0]
