"""What a model makes of an input, as one vector: the features a probe or a head reads."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import forward
from fm.transfer.examples import Rows

POOLS = ("mean", "concat")


def pooled(
    params: dict, rows: dict[str, jax.Array], config: ModelConfig, pool: str
) -> list[jax.Array]:
    """Features of every depth under bidirectional attention.

    Args:
      params: of the model.
      rows: see `fm.transfer.examples`.
      config: the model's.
      pool: "mean" over the pieces, or "concat" of all pieces (rows of one fixed length, such as
        pictures, where what stands where matters).

    Returns:
      N + 2 arrays [B, E]: the residual before and after each layer, then the final output;
      E = D for "mean", L D for "concat".
    """
    if pool not in POOLS:
        raise UserError(f"pool={pool!r} is not known; accepted are {', '.join(POOLS)}")
    segments = rows["segments"]
    mask = Mask(q_segments=segments, kv_segments=segments) if "tokens" in rows else Mask()
    outputs = forward(params, rows, config, mask=mask)
    depths = [*outputs["layers"], outputs["final"]]
    if pool == "concat":
        return [x_BLD.reshape(x_BLD.shape[0], -1).astype(jnp.float32) for x_BLD in depths]
    filled_BL1 = (segments > 0)[..., None]
    count_B1 = jnp.maximum(jnp.sum(filled_BL1, axis=1), 1)
    return [jnp.sum(x_BLD.astype(jnp.float32) * filled_BL1, axis=1) / count_B1 for x_BLD in depths]


@functools.partial(jax.jit, static_argnames=("config", "pool"))
def _frozen(params, rows, config, pool):
    """Depths side by side, each of unit length, so none drowns the others."""
    depths = pooled(params, rows, config, pool)
    norms = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in depths]
    scaled = [x / jnp.maximum(norm, 1e-6) for x, norm in zip(depths, norms, strict=True)]
    return jnp.concatenate(scaled, axis=-1)


def frozen_features(
    params: dict, rows: Rows, config: ModelConfig, *, pool: str, batch_size: int = 64
) -> np.ndarray:
    """Features of every row, computed once, float32 [N, (depth + 2) E]."""
    N = len(rows["segments"])
    parts = []
    for start in range(0, N, batch_size):
        part = {key: value[start : start + batch_size] for key, value in rows.items()}
        short = batch_size - len(part["segments"])
        # The last batch is filled up, so that one compiled program serves all.
        part = {
            key: np.concatenate([value, np.repeat(value[:1], short, axis=0)])
            for key, value in part.items()
        }
        parts.append(np.asarray(_frozen(params, part, config, pool))[: batch_size - short])
    return np.concatenate(parts)
