"""Conversion of a family's tensors to the parameters of `fm.model.transformer`, and back."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.hf.config import FAMILIES, Family, family_of, text_part
from fm.hf.config_reader import ConfigReader
from fm.hf.tensor_names import TensorSpec
from fm.model.config import ModelConfig
from fm.model.transformer import init

# No family has a mask embedding: it starts at zero, and only our masked objective reads it.
_OWN = "hidden_piece"

# Tensor names of before 2019, in files that are still in use.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# Part of the names of the text model's tensors in a model of text and images, before the family's
# prefix or after it.
_TEXT_PREFIX = "language_model."

# Fields that do not change a model's output, or that no family has.
_RUNTIME_FIELDS = (
    "scan_layers",
    "dtype",
    "attention",
    "num_mixtures",
    "head_dim_override",
)


def from_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, dtype: str = "float32"
) -> tuple[ModelConfig, dict]:
    """Converts a Hugging Face config and its tensors to a `ModelConfig` and fm parameters.

    Args:
      config: config.json.
      tensors: by their names there; each is read once, so they may be loaded on demand.
      dtype: of the parameters and of the computation: float32 or bfloat16.

    Returns:
      The model's config, and its parameters as `fm.model.transformer.init` lays them out.

    Raises:
      UserError: the config asks for something unsupported, or a tensor is missing, left over, of
        another shape, not of floats, or beyond the range of `dtype`.
    """
    family = family_of(config)
    given = {_canonical_name(name, family): name for name in tensors}
    if len(given) < len(tensors):
        raise UserError(f"two tensors share a name but for the prefix {family.prefix!r}")
    model_config = family.to_model_config(ConfigReader(text_part(config)), given.keys())
    if model_config.num_layers > len(given):
        raise UserError(
            f"{model_config.num_layers} layers in config.json, but only {len(given)} tensors"
        )
    model_config = dataclasses.replace(model_config, dtype=dtype)
    shapes = _param_shapes(model_config)
    ignored = {given[name] for name in given if re.fullmatch(family.buffers, name)}
    ignored |= set(unused_tensors(family, tensors))

    wanted = {name: (spec, layer) for spec, layer, name in _tensor_places(family, shapes)}
    missing = [name for name in wanted if name not in given]
    if missing:
        raise UserError(f"missing from the weights: {_listed(missing)}")
    extra = [name for name in given if name not in wanted and given[name] not in ignored]
    if model_config.arch.tie_embeddings and extra == ["lm_head.weight"]:
        _check_tied(tensors[given["lm_head.weight"]], tensors, given, family)
    elif extra:
        raise UserError(f"left over in the weights: {_listed(extra)}")

    params = {
        part: {name: np.zeros(leaf.shape, dtype) for name, leaf in leaves.items()}
        for part, leaves in shapes.items()
    }
    if not model_config.arch.first_attention_norm:  # the unread norm is as a fresh model has it
        params["layers"]["attention_norm"][0] = 1.0
    for name, (spec, layer) in wanted.items():
        _fill(params, spec, layer, given[name], tensors[given[name]])
    return model_config, jax.tree.map(jnp.asarray, params)


def check_finite(path: pathlib.Path, name: str, values: np.ndarray) -> None:
    """Raises UserError, naming tensor and file, if a number of it is NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        raise UserError(
            f"{path}: {name} has {len(bad)} of {values.size} numbers that are not finite, the "
            f"first at {bad[0].tolist()}; takes weights without NaN and infinity"
        )


def to_tensors(family: Family, model_config: ModelConfig, params: dict) -> dict[str, np.ndarray]:
    """Converts fm parameters to Hugging Face tensors by name, in the dtype of the parameters.

    Raises:
      UserError: the parameters do not belong to the config.
    """
    shapes = _param_shapes(model_config)
    differing = sorted(_leaf_shapes(shapes) ^ _leaf_shapes(params))
    if differing:
        raise UserError(f"not the parameters of this config: {_listed(differing)}")
    tensors = {}
    for spec, layer, name in _tensor_places(family, shapes):
        parts = []
        for leaf in spec.leaves:
            value = params[spec.part][leaf]
            value = np.asarray(value if layer is None else value[layer])
            value = value - np.asarray(spec.offset, value.dtype) if spec.offset else value
            parts.append(value.reshape(_flat_shape(leaf, value.shape)))
        joined = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        prefix = "" if name == "lm_head.weight" or not family.causal else family.prefix
        tensors[prefix + name] = np.ascontiguousarray(joined.T if spec.transposed else joined)
    return tensors


def choose_family(model_config: ModelConfig, name: str = "") -> tuple[Family, dict[str, Any]]:
    """Returns the family whose config.json can express the model exactly, and that config.json.

    Args:
      model_config: the model's config.
      name: the family it must be; "" for the first that fits.

    Raises:
      UserError: none fits; the message says how the nearest would differ.
    """
    if name and name not in FAMILIES:
        raise UserError(f"family {name!r} is not known; known are {', '.join(FAMILIES)}")
    errors, differences = {}, {}
    for family in [FAMILIES[name]] if name else FAMILIES.values():
        config = {
            "architectures": [family.architecture],
            "model_type": family.name,
            "torch_dtype": model_config.dtype,
            "vocab_size": model_config.vocab_size,
            "tie_word_embeddings": model_config.arch.tie_embeddings,
            **family.to_hf_config(model_config),
        }
        try:
            found = _differences(family, config, model_config)
        except UserError as error:
            errors[family.name] = [str(error)]
            continue
        if not found:
            return family, config
        differences[family.name] = found
    reasons = differences or errors
    nearest = min(reasons, key=lambda family: len(reasons[family]))
    raise UserError(
        f"no {name or 'known'} model is like this one: nearest is {nearest}, which takes "
        f"{', '.join(reasons[nearest])}"
    )


def _differences(family: Family, config: dict[str, Any], model_config: ModelConfig) -> list[str]:
    """How the family's model of a config.json differs, each as `field=theirs (not ours)`.

    Raises:
      UserError: the family has no model of such a config.json.
    """
    pooler = ["pooler.dense.weight"] if model_config.arch.pooler else []
    theirs = _output_fields(family.to_model_config(ConfigReader(config), pooler))
    ours = _output_fields(model_config)
    found = [
        f"{name}={theirs[name]} (not {ours[name]})" for name in ours if theirs[name] != ours[name]
    ]
    covered = {(spec.part, leaf) for spec in family.entries for leaf in spec.leaves}
    return found or [
        f"no {part}.{leaf}"
        for part, leaves in _param_shapes(model_config).items()
        for leaf in leaves
        if leaf != _OWN and (part, leaf) not in covered
    ]


def _output_fields(model_config: ModelConfig) -> dict[str, Any]:
    """Every field that changes a model's output."""
    arch = model_config.arch
    fields = {
        field.name: getattr(config, field.name)
        for config in (model_config, arch)
        for field in dataclasses.fields(config)
        if field.name != "arch"
    }
    fields["head_dim"] = model_config.head_dim
    fields["layer_pattern"] = ",".join(model_config.layer_kinds)
    if "sliding" not in model_config.layer_kinds:
        fields |= {"sliding_window": 0, "local_rope_theta": 0.0}
    fields["query_pre_attn_scalar"] = arch.query_pre_attn_scalar or model_config.head_dim
    if arch.position_encoding == "learned":
        fields["rope_theta"] = None
    return {name: value for name, value in fields.items() if name not in _RUNTIME_FIELDS}


def unused_tensors(family: Family, tensors: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of tensors that an fm model cannot hold, such as BERT's output heads."""
    return tuple(
        sorted(
            name for name in tensors if re.fullmatch(family.heads, _canonical_name(name, family))
        )
    )


def _param_shapes(model_config: ModelConfig) -> dict[str, dict[str, Any]]:
    return jax.eval_shape(lambda: init(jax.random.key(0), model_config))


def _canonical_name(name: str, family: Family) -> str:
    """A tensor's name as in `tensor_names`."""
    name = name.removeprefix(_TEXT_PREFIX).removeprefix(family.prefix).removeprefix(_TEXT_PREFIX)
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _tensor_places(
    family: Family, shapes: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[TensorSpec, int | None, str]]:
    """Every tensor of a model: its spec, layer (None outside the layers) and name."""
    for spec in family.entries:
        if not set(spec.leaves) <= shapes[spec.part].keys():
            continue
        if spec.part == "streams":
            yield spec, None, spec.tensor
            continue
        for layer in range(spec.first_layer, shapes["layers"][spec.leaves[0]].shape[0]):
            yield spec, layer, spec.tensor.format(n=layer)


def _fill(params: dict, spec: TensorSpec, layer: int | None, name: str, tensor: np.ndarray) -> None:
    """Copies a tensor's values into its leaves."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{name} holds {tensor.dtype}, not floats")
    leaves = [params[spec.part][leaf] for leaf in spec.leaves]
    leaves = leaves if layer is None else [leaf[layer] for leaf in leaves]
    shapes = [_flat_shape(name, leaf.shape) for name, leaf in zip(spec.leaves, leaves, strict=True)]
    expected = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    expected = expected[::-1] if spec.transposed else expected
    if tensor.shape != expected:
        raise UserError(f"{name} has shape {list(tensor.shape)}, not {list(expected)}")
    joined, start = tensor.T if spec.transposed else tensor, 0
    for leaf, shape in zip(leaves, shapes, strict=True):
        with np.errstate(over="ignore"):
            values = joined[..., start : start + shape[-1]].reshape(leaf.shape)
            # Added in float32: the sum of two halves would be rounded twice.
            leaf[...] = values + np.float32(spec.offset) if spec.offset else values
        if tensor.dtype != leaf.dtype and not np.isfinite(leaf).all():
            raise UserError(f"{name} has numbers beyond the range of {leaf.dtype}")
        start += shape[-1]


def _flat_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A leaf's shape with its head axes flattened: a matrix [in, out], or a vector."""
    if leaf == "attention_out":
        return math.prod(shape[:-1]), shape[-1]
    if leaf.endswith("_bias"):
        return (math.prod(shape),)
    return shape if len(shape) < 3 else (shape[0], math.prod(shape[1:]))


def _check_tied(
    head_VD: np.ndarray, tensors: Mapping[str, np.ndarray], given: Mapping[str, str], family: Family
) -> None:
    """Checks that a head stored beside the embedding it is tied to equals it."""
    name = next(spec.tensor for spec in family.entries if spec.leaves == ("token_embedding",))
    if name not in given or not np.array_equal(head_VD, tensors[given[name]]):
        raise UserError("lm_head.weight differs from the embedding that config.json ties it to")


def _leaf_shapes(params: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {
        f"{part}.{name} {list(leaf.shape)}"
        for part, leaves in params.items()
        for name, leaf in leaves.items()
    }


def _listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
