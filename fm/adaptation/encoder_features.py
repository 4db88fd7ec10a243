"""Features of images and sounds by a published encoder: class tokens and patches of late layers.

As in DINOv2's linear evaluation (Oquab et al. 2023, sec. 7.1) several of the last layers are read,
each through the final norm. What of them a probe reads is a hyper-parameter.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.adaptation.batching import BATCH_TOKENS
from fm.adaptation.features import pool_segments
from fm.attention import Mask
from fm.model.stems import EncoderConfig
from fm.model.transformer import final_norm, forward

# Layers whose outputs are kept, the last of them last.
NUM_LAYERS = 4
# Examples preprocessed at once.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class ProbeReading:
    """What of an encoder's features a probe reads.

    Attributes:
      parts: "class" for the mean of the class tokens, "patches" for that of the patches.
      num_layers: of the last ones.
    """

    parts: tuple[str, ...]
    num_layers: int

    @property
    def name(self) -> str:
        """Returns the value of the hyper-parameter "reading"."""
        layers = "last layer" if self.num_layers == 1 else f"last {self.num_layers} layers"
        return f"{' and '.join(self.parts)} of the {layers}"


def probe_readings(config: EncoderConfig) -> tuple[ProbeReading, ...]:
    """Returns what probes of an encoder may read; methods that do not choose read the first."""
    deep = min(NUM_LAYERS, config.num_layers)
    parts = feature_parts(config)
    choices = [ProbeReading(parts, 1), ProbeReading(parts, deep)]
    if len(parts) > 1:
        choices += [ProbeReading((part,), 1) for part in parts]
    return tuple(dict.fromkeys(choices))


def feature_parts(config: EncoderConfig) -> tuple[str, ...]:
    """Returns the names of the vectors that are kept of each layer."""
    return ("class", "patches") if config.stem.num_class_tokens else ("patches",)


def encoder_features(
    params: dict,
    config: EncoderConfig,
    inputs: Callable[[np.ndarray], dict[str, np.ndarray]],
    examples: np.ndarray,
) -> np.ndarray:
    """Returns features of examples, float32 [N, layers, parts, D]; an example's are its own alone.

    Args:
      params: of the encoder.
      config: of the encoder.
      inputs: preprocesses some examples, see `fm.hf.encoders.PublishedEncoder.inputs`.
      examples: images or sounds [N, ...].
    """
    return map_examples(functools.partial(_features, config=config), params, inputs, examples)


def map_examples(
    fn: Callable[[Any, dict[str, jax.Array]], jax.Array],
    operands: Any,
    inputs: Callable[[np.ndarray], dict[str, np.ndarray]],
    examples: np.ndarray,
) -> np.ndarray:
    """Returns a jitted function of examples, [N, ...], in batches of one size.

    The inputs of an encoder are large, so only some are preprocessed, and few computed, at once.

    Args:
      fn: (operands, batch) -> [B, ...].
      operands: first argument of `fn`.
      inputs: preprocesses some examples to a batch.
      examples: [N, ...], at least one.
    """
    out = []
    for start in range(0, len(examples), _CHUNK):
        chunk = inputs(examples[start : start + _CHUNK])
        count, length = chunk["segments"].shape
        size = max(1, BATCH_TOKENS // length)
        for first in range(0, count, size):
            # The last batch is filled with repeats, so that it has no shape of its own.
            idx = np.minimum(np.arange(first, first + size), count - 1)
            values = fn(operands, {name: jnp.asarray(each[idx]) for name, each in chunk.items()})
            out.append(np.asarray(values)[: min(size, count - first)])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames="config")
def _features(params: dict, batch: dict[str, jax.Array], config: EncoderConfig) -> jax.Array:
    states = forward(params, batch, config, mask=Mask())["layers"]
    parts = feature_parts(config)
    kept = []
    for state in states[-min(NUM_LAYERS, config.num_layers) :]:
        x_BLD = final_norm(params["streams"], state, config).astype(jnp.float32)
        pooled = pool_segments(x_BLD, batch["segments"], parts)
        kept.append(pooled.reshape(len(x_BLD), len(parts), -1))
    return jnp.stack(kept, axis=1)


def select_reading(
    features: np.ndarray, parts: tuple[str, ...], reading: ProbeReading
) -> np.ndarray:
    """Returns what a probe reads, [N, E]: vectors of length 1, side by side.

    Args:
      features: [N, layers, parts, D].
      parts: their names.
      reading: which of them.
    """
    chosen = [parts.index(part) for part in reading.parts]
    vectors = features[:, -reading.num_layers :, chosen]
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-6)).reshape(len(features), -1)
