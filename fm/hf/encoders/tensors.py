"""Conversion of an encoder's tensors to the parameters of `fm.model.transformer`."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.hf.config_reader import ConfigReader
from fm.hf.encoders.families import (
    EncoderFamily,
    canonical_name,
    pretraining_grid,
    unused_tensors,
)
from fm.hf.encoders.positions import resize_positions
from fm.model.stems import CONVOLUTIONS, IMAGE_PATCHES, EncoderConfig

_MOST_LISTED = 4


class _Taken:
    """Tensors by canonical name; each is read once, checked for its shape, and remembered."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors
        self._names = {canonical_name(name): name for name in tensors}
        if len(self._names) < len(tensors):
            raise UserError("two tensors of the weights stand for the same one")
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> set[str]:
        return set(self._names)

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of this shape as float32."""
        if name not in self._names:
            raise UserError(f"missing from the weights: {name}")
        own, self._taken = self._names[name], self._taken | {name}
        values = self._tensors[own]
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise UserError(f"{own} holds {values.dtype}, not floats")
        if values.shape != shape:
            raise UserError(f"{own} has shape {list(values.shape)}, not {list(shape)}")
        return values.astype(np.float32)

    def left(self) -> list[str]:
        """Returns the names, as in the file, of what has not been taken."""
        return [self._names[name] for name in sorted(self._names.keys() - self._taken)]


def canonical_names(tensors: Mapping[str, np.ndarray]) -> set[str]:
    """Returns the canonical names of tensors."""
    return {canonical_name(name) for name in tensors}


def params_from_tensors(
    family: EncoderFamily,
    config: ConfigReader,
    model: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
) -> dict:
    """Returns an encoder's parameters, as `fm.model.transformer.init` lays them out.

    Args:
      family: of the encoder.
      config: config.json.
      model: made of it.
      tensors: by their names; each is read once, so they may be loaded on demand.

    Raises:
      UserError: a tensor is missing, left over, of another shape or not of floats.
    """
    taken = _Taken(tensors)
    ignored = set(unused_tensors(family, taken.names()))
    layers = [_layer(taken, n, family, model) for n in range(model.num_layers)]
    streams = _stem(taken, family, config, model)
    unknown = [name for name in taken.left() if canonical_name(name) not in ignored]
    if unknown:
        more = len(unknown) - _MOST_LISTED
        listed = ", ".join(unknown[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        raise UserError(f"left over in the weights: {listed}")
    stacked = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
    return jax.tree.map(jnp.asarray, {"streams": streams, "layers": stacked})


def _layer(
    taken: _Taken, number: int, family: EncoderFamily, model: EncoderConfig
) -> dict[str, np.ndarray]:
    """Returns one layer's parameters; biases that a family lacks are zeros."""
    D, F, H, C = model.d_model, model.mlp_dim, model.num_heads, model.head_dim
    outputs = {"query": H * C, "key": H * C, "value": H * C, "attention_out": D, "up": F, "down": D}
    inputs = {"attention_out": H * C, "down": F}
    scales = {"attention_out": "attention_scale", "down": "feed_forward_scale"}
    at = f"layers.{number}"
    layer = {}
    for name in ("attention_norm", "feed_forward_norm"):
        layer[name] = taken.take(f"{at}.{name}.weight", D)
        layer[f"{name}_shift"] = taken.take(f"{at}.{name}.bias", D)
    if model.arch.gated_mlp:
        outputs["gate"] = F
    fused = f"{at}.gate_and_up"
    linear: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if model.arch.gated_mlp and f"{fused}.weight" in taken:
        weights = np.split(taken.take(f"{fused}.weight", 2 * F, D), 2)
        biases = np.split(taken.take(f"{fused}.bias", 2 * F), 2)
        linear = dict(zip(("gate", "up"), zip(weights, biases, strict=True), strict=True))
    for name, out in outputs.items():
        if name not in linear:
            weight = taken.take(f"{at}.{name}.weight", out, inputs.get(name, D))
            has_bias = f"{at}.{name}.bias" in taken or name not in ("query", "key", "value")
            bias = taken.take(f"{at}.{name}.bias", out) if has_bias else np.zeros(out, np.float32)
            linear[name] = weight, bias
        weight, bias = linear[name]
        if family.has_layer_scale and name in scales:
            scale = taken.take(f"{at}.{scales[name]}", D)
            weight, bias = weight * scale[:, None], bias * scale
        kernel_IO = weight.T
        if name in ("query", "key", "value"):
            kernel_IO, bias = kernel_IO.reshape(D, H, C), bias.reshape(H, C)
        elif name == "attention_out":
            kernel_IO = kernel_IO.reshape(H, C, D)
        layer[name], layer[f"{name}_bias"] = kernel_IO, bias
    return layer


def _stem(
    taken: _Taken, family: EncoderFamily, config: ConfigReader, model: EncoderConfig
) -> dict[str, np.ndarray]:
    """Returns the parameters of the stem, the final norm and the pooler."""
    D, stem = model.d_model, model.stem
    streams = {
        "final_norm": taken.take("final_norm.weight", D),
        "final_norm_shift": taken.take("final_norm.bias", D),
    }
    if model.arch.pooler:
        streams["pooler"] = taken.take("pooler.weight", D, D).T
        streams["pooler_bias"] = taken.take("pooler.bias", D)
    if stem.kind == CONVOLUTIONS:
        for name, channels in (("stem", stem.channels), ("stem_second", D)):
            kernel = taken.take(f"{name}.weight", D, channels, 3)
            streams[name] = kernel.transpose(2, 1, 0).reshape(-1, D)
            streams[f"{name}_bias"] = taken.take(f"{name}.bias", D)
        streams["position_embedding"] = taken.take("position_embeddings", stem.num_patches, D)
        return streams
    kernel = taken.take("stem.weight", D, stem.channels, *stem.patch)
    streams["stem"] = kernel.transpose(2, 3, 1, 0).reshape(-1, D)
    streams["stem_bias"] = taken.take("stem.bias", D)
    tokens = ["cls_token", "distillation_token"][: stem.num_class_tokens]
    is_image = stem.kind == IMAGE_PATCHES
    grid = pretraining_grid(config, stem.patch) if is_image else stem.grid
    count = len(tokens) + grid[0] * grid[1]
    positions = taken.take("position_embeddings", 1, count, D)[0]
    prefix = np.concatenate([taken.take(name, 1, 1, D)[0] for name in tokens])
    # A class token and its position are one vector.
    streams["class_tokens"] = prefix + positions[: len(tokens)]
    if stem.num_registers:
        streams["registers"] = taken.take("register_tokens", 1, stem.num_registers, D)[0]
    streams["position_embedding"] = resize_positions(
        positions[len(tokens) :], grid, stem.grid, antialias=family.antialias
    )
    return streams
