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
from fm.transfer import views
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
    params: dict, rows: dict[str, jax.Array], config: ModelConfig, pool: str = "mean"
) -> list[jax.Array]:
    """Features of every depth under bidirectional attention, each row read at once.

    Args:
      params: of the model.
      rows: see `fm.transfer.examples`.
      config: the model's.
      pool: see `Reading`.

    Returns:
      N + 2 arrays [B, E]: the residual before and after each layer, then the final output;
      E = D for "mean", L D for "concat".
    """
    depths = _summed(params, rows, config, pool)
    if pool == "concat":
        return depths
    filled_B1 = jnp.sum(rows["segments"] > 0, axis=1, keepdims=True)
    return [x / jnp.maximum(filled_B1, 1) for x in depths]


def _summed(params, rows, config, pool) -> list[jax.Array]:
    """`pooled`, its means not yet divided by the number of pieces."""
    segments = rows["segments"]
    mask = Mask(q_segments=segments, kv_segments=segments) if "tokens" in rows else Mask()
    outputs = forward(params, rows, config, mask=mask)
    depths = [x.astype(jnp.float32) for x in (*outputs["layers"], outputs["final"])]
    if pool == "concat":
        return [x.reshape(len(x), -1) for x in depths]
    filled_BL1 = (segments > 0)[..., None]
    return [jnp.sum(x * filled_BL1, axis=1) for x in depths]


@functools.lru_cache(maxsize=64)
def _depths(config: ModelConfig, pool: str, last: bool) -> Read:
    def read(params, rows):
        depths = _summed(params, rows, config, pool)
        return jnp.stack(depths[-1:] if last else depths, axis=1)

    return read


def features(
    params: dict,
    rows: Rows,
    config: ModelConfig,
    *,
    reading: Reading,
    last: bool = False,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Features of any number of rows, view by view, float32 [N, depths, E].

    Args:
      params: of the model.
      rows: N rows, see `fm.transfer.examples`.
      config: the model's.
      reading: see `Reading`.
      last: the final output alone, not all N + 2 depths.
      batch_size: views read at a time.
    """
    read = _depths(config, reading.pool, last)
    pieces, of_M = views.cut(rows, reading.view)
    made = sweep(read, params, pieces, batch_size)
    return made if reading.pool == "concat" else views.mean(made, pieces, of_M)


def frozen_features(
    params: dict,
    rows: Rows,
    config: ModelConfig,
    *,
    reading: Reading,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Features a probe reads, float32 [N, (depth + 2) E]: every depth, side by side.

    Each depth is scaled to unit length, so that none drowns the others.
    """
    depths = features(params, rows, config, reading=reading, batch_size=batch_size)
    norms = np.linalg.norm(depths, axis=-1, keepdims=True)
    return (depths / np.maximum(norms, 1e-6)).reshape(len(depths), -1)
