"""What a model makes of an input, as one vector: the features a probe or a head reads."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import forward
from fm.transfer.examples import Rows
from fm.transfer.sweep import BATCH_SIZE, Read, sweep

POOLS = ("mean", "concat")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an example's pieces become one vector.

    Attributes:
      pool: "mean" over the pieces, or "concat" of all pieces (rows of one fixed length, such as
        pictures, where what stands where matters).
      view: with "mean", a row of more than this many pieces is read as several thinned views,
        every so-manieth piece in each, that do not see each other: what a model pretrained on a
        sparse part of the pieces is used to, and attention stays cheap. 0 reads all at once.
    """

    pool: str = "mean"
    view: int = 0

    def __post_init__(self):
        if self.pool not in POOLS:
            raise UserError(f"pool={self.pool!r} is not known; accepted are {', '.join(POOLS)}")
        if self.view < 0 or (self.view and self.pool == "concat"):
            raise UserError(f"view={self.view} must be 0, or with pool=mean a number of pieces")


def pooled(
    params: dict, rows: dict[str, jax.Array], config: ModelConfig, reading: Reading
) -> list[jax.Array]:
    """Features of every depth under bidirectional attention.

    Args:
      params: of the model.
      rows: see `fm.transfer.examples`.
      config: the model's.
      reading: see `Reading`.

    Returns:
      N + 2 arrays [B, E]: the residual before and after each layer, then the final output;
      E = D for "mean", L D for "concat".
    """
    B, L = rows["segments"].shape
    views = -(-L // reading.view) if reading.view else 1
    rows = {key: _thinned(value, views) for key, value in rows.items()}
    segments = rows["segments"]
    mask = Mask(q_segments=segments, kv_segments=segments) if "tokens" in rows else Mask()
    outputs = forward(params, rows, config, mask=mask)
    depths = [x.astype(jnp.float32) for x in (*outputs["layers"], outputs["final"])]
    if reading.pool == "concat":
        return [x.reshape(B, -1) for x in depths]
    filled_BL1 = (segments > 0).reshape(B, -1, 1)
    count_B1 = jnp.maximum(jnp.sum(filled_BL1, axis=1), 1)
    return [jnp.sum(x.reshape(B, -1, config.width) * filled_BL1, axis=1) / count_B1 for x in depths]


def _thinned(value: jax.Array, views: int) -> jax.Array:
    """[B, L, ...] to [B * views, L / views, ...], piece l in view l % views; padded to fit."""
    B, L = value.shape[:2]
    each = -(-L // views)
    value = jnp.pad(value, [(0, 0), (0, each * views - L), *[(0, 0)] * (value.ndim - 2)])
    split = jnp.swapaxes(value.reshape(B, each, views, *value.shape[2:]), 1, 2)
    return split.reshape(B * views, each, *value.shape[2:])


@functools.lru_cache(maxsize=64)
def _frozen(config: ModelConfig, reading: Reading) -> Read:
    """Depths side by side, each of unit length, so none drowns the others."""

    def read(params, rows):
        depths = pooled(params, rows, config, reading)
        norms = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in depths]
        scaled = [x / jnp.maximum(norm, 1e-6) for x, norm in zip(depths, norms, strict=True)]
        return jnp.concatenate(scaled, axis=-1)

    return read


def frozen_features(
    params: dict,
    rows: Rows,
    config: ModelConfig,
    *,
    reading: Reading,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Features of every row, computed once, float32 [N, (depth + 2) E]."""
    return sweep(_frozen(config, reading), params, rows, batch_size)
