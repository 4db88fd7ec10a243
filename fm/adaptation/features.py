"""Features of an example: a model's hidden states pooled into one vector, for a probe or a head."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fm.adaptation.batching import (
    BATCH_SIZE,
    BatchFn,
    TokenizedExamples,
    interleaved_chunks,
    map_batches,
    mean_over_chunks,
)
from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.row_mask import row_mask
from fm.model.transformer import forward

# The last token, for a head that is one linear map without bias, as in `transformers`.
PLAIN_LAST = "plain_last"
# Of published encoders of images and sounds, whose "segments" tell class tokens from patches.
CLASS_TOKENS, CLASS_AND_PATCHES = "class", "class+patches"
POOLINGS = (
    *("mean", "last", "mean+last", "concat", "each", PLAIN_LAST),
    *(CLASS_TOKENS, "patches", CLASS_AND_PATCHES),
)
# By pooling part, what its tokens have in "segments"; their outputs are averaged.
_SEGMENT_OF = {"class": 2, "patches": 1}


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """How an example's feature vector is made: which layers are read, and how tokens are pooled.

    Attributes:
      pooling: "mean" over the tokens, the "last" token, both side by side ("mean+last"), "concat"
        of all tokens (for examples of one fixed length, such as images, where position matters),
        "each": one vector per token, for tagging; "plain_last": the last token, for a head that is
        one linear map without bias, as `transformers` has it for sequence classification; or, of
        published encoders, the mean of the "class" tokens, of the "patches", or both side by side
        ("class+patches").
      chunk_length: with "mean", a longer example is read as strided chunks of this many tokens
        that do not attend to each other: it suits a model pretrained on sparse tokens, and
        attention stays cheap. 0 reads the whole example at once.
      causal: tokens attend to earlier ones only, for a model pretrained that way.
      layers: hidden states a probe reads: 0 is the input of the first layer, n the output of the
        n-th, num_layers + 1 the final output; negative ones count from there. None for all;
        layers beyond the last one read are not computed.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "pool": "pooling",
        "view": "chunk_length",
        "depths": "layers",
    }

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
                f"chunk_length={self.chunk_length} must be 0, or with pooling=mean a number of "
                "tokens"
            )
        if self.layers is not None and not self.layers:
            raise UserError("layers: a probe reads at least one")

    @property
    def plain_head(self) -> bool:
        """Returns whether a head reads features as they are, and has no bias."""
        return self.pooling == PLAIN_LAST

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """Returns the names of the poolings that are concatenated."""
        return tuple(self.pooling.split("+"))

    def resolve_layers(self, num_layers: int) -> tuple[int, ...]:
        """Returns the indices of the hidden states read, counted from 0, given `num_layers`.

        Raises:
          UserError: the model is not that deep.
        """
        count = num_layers + 2
        wanted = range(count) if self.layers is None else self.layers
        for layer in wanted:
            if not -count <= layer < count:
                raise UserError(
                    f"hidden state {layer} is not in a model of {num_layers} layers, which has 0 "
                    f"(the input) to {count - 1} (the final output)"
                )
        return tuple(layer % count for layer in wanted)


def pooled_features(
    params: dict,
    batch: dict[str, jax.Array],
    config: ModelConfig,
    feature_config: FeatureConfig = FeatureConfig(),
) -> list[jax.Array]:
    """Returns pooled features [B, E] of the embeddings, every layer and the final norm output.

    E = L * D for "concat", else D for each pooling part; [B, L, D] for "each". Examples are not
    split into chunks.
    """
    states = _unnormalized_features(params, batch, config, feature_config)
    if feature_config.pooling != "mean":
        return states
    tokens_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
    return [x / jnp.maximum(tokens_B1, 1) for x in states]


def _unnormalized_features(params, batch, config, feature_config) -> list[jax.Array]:
    """`pooled_features`, but "mean" is not yet divided by the number of tokens."""
    segments, causal = batch["segments"], feature_config.causal
    if "tokens" in batch and "length" not in batch:
        # Not `packed`: chunks and token dropout interleave the segments of an example.
        mask = Mask(causal, q_segments=segments, kv_segments=segments)
    else:
        mask = row_mask(batch, causal=causal)
    outputs = forward(params, batch, config, mask=mask)
    states = [x.astype(jnp.float32) for x in (*outputs["layers"], outputs["final"])]
    if feature_config.pooling == "each":
        return states
    if feature_config.pooling == "concat":
        return [x.reshape(len(x), -1) for x in states]
    if set(feature_config.pooling_parts) <= _SEGMENT_OF.keys():
        return [pool_segments(x, segments, feature_config.pooling_parts) for x in states]
    valid_BL = segments > 0
    valid_BL1 = valid_BL[..., None]
    if feature_config.pooling == "mean":
        return [jnp.sum(x * valid_BL1, axis=1) for x in states]
    last_B = valid_BL.shape[1] - 1 - jnp.argmax(valid_BL[:, ::-1], axis=1)
    lasts = [jnp.take_along_axis(x, last_B[:, None, None], axis=1)[:, 0] for x in states]
    if feature_config.pooling in ("last", PLAIN_LAST):
        return lasts
    counts_B1 = jnp.maximum(jnp.sum(valid_BL, axis=1, keepdims=True), 1)
    return [
        jnp.concatenate([jnp.sum(x * valid_BL1, axis=1) / counts_B1, last], axis=-1)
        for x, last in zip(states, lasts, strict=True)
    ]


def pool_segments(x_BLD: jax.Array, segments_BL: jax.Array, parts: Sequence[str]) -> jax.Array:
    """Returns the means of a published encoder's class tokens or patches, side by side [B, E]."""
    means = []
    for part in parts:
        is_part_BL1 = (segments_BL == _SEGMENT_OF[part])[..., None]
        counts_B1 = jnp.maximum(jnp.sum(is_part_BL1, axis=1), 1)
        means.append(jnp.sum(x_BLD * is_part_BL1, axis=1) / counts_B1)
    return jnp.concatenate(means, axis=-1)


def feature_fn(config: ModelConfig, feature_config: FeatureConfig) -> BatchFn:
    """Returns a jittable function: (params, batch) to features [B, layers read, E], float32.

    The same arguments give the same function. With pooling "mean" it returns sums over tokens, as
    an example may come in several chunks. Layers beyond the last one read are not computed.
    """
    return _cached_feature_fn(config, dataclasses.replace(feature_config, chunk_length=0))


@functools.lru_cache(maxsize=64)
def _cached_feature_fn(config: ModelConfig, feature_config: FeatureConfig) -> BatchFn:
    wanted = feature_config.resolve_layers(config.num_layers)
    depth = config.num_layers
    if max(wanted) <= depth:
        depth = max(wanted)
    shallow = dataclasses.replace(config, num_layers=depth)

    def fn(params, batch):
        if depth < config.num_layers:
            layers = {name: value[:depth] for name, value in params["layers"].items()}
            params = params | {"layers": layers}
        states = _unnormalized_features(params, batch, shallow, feature_config)
        return jnp.stack([states[layer] for layer in wanted], axis=1)

    return fn


def extract_features(
    params: dict,
    examples: TokenizedExamples,
    config: ModelConfig,
    *,
    feature_config: FeatureConfig,
    final_only: bool = False,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Computes frozen features, float32 [N, layers, E], or [N, layers, L, E] with `pooling="each"`.

    With `final_only` the final output is read, not `feature_config.layers`.
    """
    if final_only:
        feature_config = dataclasses.replace(feature_config, layers=(-1,))
    chunks, example_M = interleaved_chunks(examples, feature_config.chunk_length)
    out = map_batches(feature_fn(config, feature_config), params, chunks, batch_size)
    return mean_over_chunks(out, chunks, example_M) if feature_config.pooling == "mean" else out


def probe_features(*args: Any, feature_config: FeatureConfig, **kwargs: Any) -> np.ndarray:
    """Extracts the inputs of a linear probe [N, E]: unit-length layer features, concatenated."""
    features = extract_features(*args, feature_config=feature_config, **kwargs)
    return normalize_and_concat(features, feature_config)


def normalize_and_concat(features: np.ndarray, feature_config: FeatureConfig) -> np.ndarray:
    """Scales each layer's pooled parts [N, layers, E] to unit length and concatenates them.

    Unit length keeps one layer from drowning the others.
    """
    N, num_layers, _ = features.shape
    parts = features.reshape(N, num_layers * len(feature_config.pooling_parts), -1)
    norms = np.linalg.norm(parts, axis=-1, keepdims=True)
    return (parts / np.maximum(norms, 1e-6)).reshape(N, -1)
