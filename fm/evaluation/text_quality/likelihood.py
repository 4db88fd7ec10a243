"""Likelihood: nats a model needs for tokens it is shown, a text a row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask
from fm.model import streams
from fm.model.config import ModelConfig
from fm.model.transformer import forward

_ROWS = 32


def nats(
    params: dict, tokens_NL: np.ndarray, counted_NL: np.ndarray, config: ModelConfig
) -> np.ndarray:
    """Sum over each row's counted tokens of -log p(token | those before it), float64 [N].

    Args:
      params: of a model that predicts the next token.
      tokens_NL: int, filled up at the end.
      counted_NL: bool; the first token of a row is given and cannot count.
      config: the model's.

    Raises:
      ValueError: a row's first token is counted.
    """
    if counted_NL[:, 0].any():
        raise ValueError("a row's first token has none before it and cannot be counted")
    sums = []
    for start in range(0, len(tokens_NL), _ROWS):
        rows = [each[start : start + _ROWS] for each in (tokens_NL, counted_NL)]
        short = _ROWS - len(rows[0])
        filled = [np.pad(each, ((0, short), (0, 0))) for each in rows]
        sums.append(np.asarray(_nats(params, *filled, config), np.float64)[: _ROWS - short])
    return np.concatenate(sums)


@functools.partial(jax.jit, static_argnames="config")
def _nats(params: dict, tokens_BL: jax.Array, counted_BL: jax.Array, config: ModelConfig):
    B, L = tokens_BL.shape
    inputs = {"tokens": tokens_BL, "positions": jnp.broadcast_to(jnp.arange(L), (B, L))}
    final_BLD = forward(params, inputs, config, mask=Mask(causal=True))["final"]
    logits_BLV = streams.token_logits(params["streams"], final_BLD[:, :-1])
    picked_BL = jnp.take_along_axis(logits_BLV, tokens_BL[:, 1:, None], axis=-1)[..., 0]
    nats_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - picked_BL
    return jnp.sum(nats_BL * counted_BL[:, 1:], axis=-1)
