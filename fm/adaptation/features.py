"""What a model makes of an input, as one vector: the features a probe or a head reads."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fm.adaptation import batching
from fm.adaptation.batching import BATCH_SIZE, BatchFn, TokenizedExamples, map_batches
from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import forward

POOLINGS = ("mean", "last", "mean+last", "concat", "each")


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """How an example's pieces become one vector.

    Attributes:
      pooling: "mean" over the pieces, the "last" piece, both side by side ("mean+last"), or "concat"
        of all pieces (rows of one fixed length, such as pictures, where what stands where
        matters), or "each": a vector for every piece, for tags.
      chunk_length: with "mean", a row of more than this many pieces is read as several thinned views,
        every so-manieth piece in each, that do not see each other: what a model pretrained on a
        sparse part of the pieces is used to, and attention stays cheap. 0 reads all at once.
      causal: pieces see those before them alone, as in a model pretrained that way.
      layers: what a probe reads: 0 is the residual before the first layer, n that after the n-th,
        N + 1 the final output; negative ones count from there. None for all; layers beyond the
        last one are not computed.
    """

    pooling: str = "mean"
    chunk_length: int = 0
    causal: bool = False
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise UserError(
                f"pooling={self.pooling!r} is not known; accepted are {', '.join(POOLINGS)}"
            )
        if self.chunk_length < 0 or (self.chunk_length and self.pooling != "mean"):
            raise UserError(
                f"chunk_length={self.chunk_length} must be 0, or with pool=mean a number of pieces"
            )
        if self.layers is not None and not self.layers:
            raise UserError("depths: a probe reads at least one")

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The pools that stand side by side."""
        return tuple(self.pooling.split("+"))

    def resolve_layers(self, layers: int) -> tuple[int, ...]:
        """The depths read of a model of so many layers, counted from 0.

        Raises:
          UserError: the model is not that deep.
        """
        count = layers + 2
        wanted = range(count) if self.layers is None else self.layers
        for depth in wanted:
            if not -count <= depth < count:
                raise UserError(
                    f"depth {depth} is not in a model of {layers} layers, which has 0 (the input) "
                    f"to {count - 1} (the final output)"
                )
        return tuple(depth % count for depth in wanted)


def pooled_features(
    params: dict,
    batch: dict[str, jax.Array],
    config: ModelConfig,
    feature_config: FeatureConfig = FeatureConfig(),
) -> list[jax.Array]:
    """Features of every depth, each row read at once.

    Args:
      params: of the model.
      batch: see `fm.adaptation.batching`.
      config: the model's.
      feature_config: its `pool` and `causal`.

    Returns:
      N + 2 arrays [B, E]: the residual before and after each layer, then the final output;
      E = L D for "concat", else D for each part of the pool. For "each" [B, L, D].
    """
    depths = _summed(params, batch, config, feature_config)
    if feature_config.pooling != "mean":
        return depths
    filled_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
    return [x / jnp.maximum(filled_B1, 1) for x in depths]


def _summed(params, rows, config, reading) -> list[jax.Array]:
    """`pooled`, but that "mean" alone is not yet divided by the number of pieces."""
    segments = rows["segments"]
    causal = reading.causal
    text = "tokens" in rows
    mask = Mask(causal, q_segments=segments, kv_segments=segments) if text else Mask(causal)
    outputs = forward(params, rows, config, mask=mask)
    depths = [x.astype(jnp.float32) for x in (*outputs["layers"], outputs["final"])]
    if reading.pool == "each":
        return depths
    if reading.pool == "concat":
        return [x.reshape(len(x), -1) for x in depths]
    filled_BL = segments > 0
    filled_BL1 = filled_BL[..., None]
    if reading.pool == "mean":
        return [jnp.sum(x * filled_BL1, axis=1) for x in depths]
    last_B = filled_BL.shape[1] - 1 - jnp.argmax(filled_BL[:, ::-1], axis=1)
    lasts = [jnp.take_along_axis(x, last_B[:, None, None], axis=1)[:, 0] for x in depths]
    if reading.pool == "last":
        return lasts
    counts_B1 = jnp.maximum(jnp.sum(filled_BL, axis=1, keepdims=True), 1)
    return [
        jnp.concatenate([jnp.sum(x * filled_BL1, axis=1) / counts_B1, last], axis=-1)
        for x, last in zip(depths, lasts, strict=True)
    ]


def feature_fn(config: ModelConfig, feature_config: FeatureConfig) -> BatchFn:
    """A function of (params, batch) to features [B, depths, E], float32; the same for the same.

    Means are sums still where the pool is "mean" alone (rows may come in several views). Layers
    beyond the last depth read are not computed.
    """
    return _depths(config, dataclasses.replace(feature_config, chunk_length=0))


@functools.lru_cache(maxsize=64)
def _depths(config: ModelConfig, reading: FeatureConfig) -> BatchFn:
    wanted = reading.resolve_layers(config.num_layers)
    used = config.num_layers
    if max(wanted) <= config.num_layers:
        used = max(wanted)
    shallow = dataclasses.replace(config, num_layers=used)

    def read(params, rows):
        if used < config.num_layers:
            cut = {name: value[:used] for name, value in params["layers"].items()}
            params = params | {"layers": cut}
        depths = _summed(params, rows, shallow, reading)
        return jnp.stack([depths[depth] for depth in wanted], axis=1)

    return read


def extract_features(
    params: dict,
    examples: TokenizedExamples,
    config: ModelConfig,
    *,
    feature_config: FeatureConfig,
    final_only: bool = False,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Features of any number of rows, view by view, float32 [N, depths read, E].

    With the pool "each", [N, depths read, L, E].

    Args:
      params: of the model.
      examples: N rows, see `fm.adaptation.batching`.
      config: the model's.
      feature_config: see `Reading`.
      final_only: the final output alone, not the depths of the reading.
      batch_size: views read at a time.
    """
    if final_only:
        feature_config = dataclasses.replace(feature_config, layers=(-1,))
    pieces, of_M = batching.strided_chunks(examples, feature_config.chunk_length)
    made = map_batches(feature_fn(config, feature_config), params, pieces, batch_size)
    return (
        batching.mean_over_chunks(made, pieces, of_M) if feature_config.pooling == "mean" else made
    )


def probe_features(
    params: dict,
    examples: TokenizedExamples,
    config: ModelConfig,
    *,
    feature_config: FeatureConfig,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Features a probe reads, float32 [N, depths read x E]: every depth, side by side.

    Each part of each depth is scaled to unit length, so that none drowns the others.
    """
    depths = extract_features(
        params, examples, config, feature_config=feature_config, batch_size=batch_size
    )
    return normalize_and_concat(depths, feature_config)


def normalize_and_concat(depths: np.ndarray, feature_config: FeatureConfig) -> np.ndarray:
    """Features [N, depths, E] as `frozen_features` gives them."""
    N, depth, _ = depths.shape
    parts = depths.reshape(N, depth * len(feature_config.pooling_parts), -1)
    norms = np.linalg.norm(parts, axis=-1, keepdims=True)
    return (parts / np.maximum(norms, 1e-6)).reshape(N, -1)
