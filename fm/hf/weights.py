"""Tensors of a family to the parameters of `fm`'s one transformer, and back."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.hf import config as families
from fm.hf.config import FAMILIES, ConfigReader, Family
from fm.hf.tensor_names import TensorSpec
from fm.model.config import ModelConfig
from fm.model.transformer import init

# What no family has: it starts at zero, and is of use to fm's own masked objective alone.
_OWN = "hidden_piece"

# Names of before 2019, in files that are still in use.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def from_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, dtype: str = "float32"
) -> tuple[ModelConfig, dict]:
    """A model from what a Hugging Face folder holds.

    Args:
      config: as config.json has it.
      tensors: by their names there; each is asked for once, so they may be read on demand.
      dtype: of the parameters, and what the model computes in: float32 or bfloat16.

    Returns:
      The model's config, and its parameters as `fm.model.transformer.init` would lay them out.

    Raises:
      UserError: the config asks for what `fm` cannot honour, or a tensor is missing, left over,
        of another shape or not of floats.
    """
    family = families.family_of(config)
    given = {_canonical_name(name, family): name for name in tensors}
    if len(given) < len(tensors):
        raise UserError(f"two tensors share a name but for the prefix {family.prefix!r}")
    model = family.to_model_config(ConfigReader(config), given.keys())
    if model.num_layers > len(given):
        raise UserError(f"{model.num_layers} layers in config.json, but only {len(given)} tensors")
    model = dataclasses.replace(model, dtype=dtype)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))
    skipped = {given[name] for name in given if re.fullmatch(family.buffers, name)}
    skipped |= set(unused_tensors(family, tensors))

    wanted = {name: (entry, layer) for entry, layer, name in _tensor_places(family, shapes)}
    missing = [name for name in wanted if name not in given]
    if missing:
        raise UserError(f"missing from the weights: {_listed(missing)}")
    spare = [name for name in given if name not in wanted and given[name] not in skipped]
    if model.arch.tie_embeddings and spare == ["lm_head.weight"]:
        _check_tied(tensors[given["lm_head.weight"]], tensors, given, family)
    elif spare:
        raise UserError(f"left over in the weights: {_listed(spare)}")

    params = {
        part: {name: np.zeros(leaf.shape, dtype) for name, leaf in leaves.items()}
        for part, leaves in shapes.items()
    }
    for name, (entry, layer) in wanted.items():
        _fill(params, entry, layer, given[name], tensors[given[name]])
    return model, jax.tree.map(jnp.asarray, params)


def to_tensors(family: Family, model: ModelConfig, params: dict) -> dict[str, np.ndarray]:
    """The tensors of a written folder, in the dtype of the parameters.

    Raises:
      UserError: the parameters are not those of the config.
    """
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))
    differing = sorted(_leaf_shapes(shapes) ^ _leaf_shapes(params))
    if differing:
        raise UserError(f"not the parameters of this config: {_listed(differing)}")
    tensors = {}
    for entry, layer, name in _tensor_places(family, shapes):
        parts = []
        for leaf in entry.leaves:
            value = params[entry.part][leaf]
            value = np.asarray(value if layer is None else value[layer])
            parts.append(value.reshape(_flat_shape(leaf, value.shape)))
        joined = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        prefix = "" if name == "lm_head.weight" or not family.causal else family.prefix
        tensors[prefix + name] = np.ascontiguousarray(joined.T if entry.transposed else joined)
    return tensors


def unused_tensors(family: Family, tensors: Iterable[str]) -> tuple[str, ...]:
    """Names of learned tensors that `fm` has no place for, such as BERT's heads."""
    return tuple(
        sorted(
            name for name in tensors if re.fullmatch(family.heads, _canonical_name(name, family))
        )
    )


def uncovered_leaves(family: Family, shapes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Leaves of a model that no tensor of the family holds."""
    covered = {(entry.part, leaf) for entry in family.entries for leaf in entry.leaves}
    return [
        f"{part}.{leaf}"
        for part, leaves in shapes.items()
        for leaf in leaves
        if leaf != _OWN and (part, leaf) not in covered
    ]


def _canonical_name(name: str, family: Family) -> str:
    """A tensor's name as the tables have it."""
    name = name.removeprefix(family.prefix)
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _tensor_places(
    family: Family, shapes: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[TensorSpec, int | None, str]]:
    """Every tensor of a model: its entry, layer (None outside the layers) and name."""
    for entry in family.entries:
        if not set(entry.leaves) <= shapes[entry.part].keys():
            continue
        if entry.part == "streams":
            yield entry, None, entry.tensor
            continue
        for layer in range(shapes["layers"][entry.leaves[0]].shape[0]):
            yield entry, layer, entry.tensor.format(n=layer)


def _fill(
    params: dict, entry: TensorSpec, layer: int | None, name: str, tensor: np.ndarray
) -> None:
    """Puts a tensor's values into the leaves it holds."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{name} holds {tensor.dtype}, not floats")
    places = [params[entry.part][leaf] for leaf in entry.leaves]
    places = places if layer is None else [place[layer] for place in places]
    flat = [
        _flat_shape(leaf, place.shape) for leaf, place in zip(entry.leaves, places, strict=True)
    ]
    want = (*flat[0][:-1], sum(shape[-1] for shape in flat))
    want = want[::-1] if entry.transposed else want
    if tensor.shape != want:
        raise UserError(f"{name} has shape {list(tensor.shape)}, not {list(want)}")
    joined, start = tensor.T if entry.transposed else tensor, 0
    for place, shape in zip(places, flat, strict=True):
        place[...] = joined[..., start : start + shape[-1]].reshape(place.shape)
        start += shape[-1]


def _flat_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A leaf's shape with its heads in one axis: a matrix [in, out], or a vector."""
    if leaf == "attention_out":
        return math.prod(shape[:-1]), shape[-1]
    if leaf.endswith("_bias"):
        return (math.prod(shape),)
    return shape if len(shape) < 3 else (shape[0], math.prod(shape[1:]))


def _check_tied(
    head_VD: np.ndarray, tensors: Mapping[str, np.ndarray], given: Mapping[str, str], family: Family
) -> None:
    """That a head stored beside the embedding it is tied to is the same."""
    name = next(entry.tensor for entry in family.entries if entry.leaves == ("token_embedding",))
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


# How a model is run, or sizes of parts that no family has.
_RUNTIME_FIELDS = ("scan_layers", "dtype", "attention", "num_mixtures", "head_dim_override")


def choose_family(model: ModelConfig, name: str = "") -> tuple[Family, dict[str, Any]]:
    """A family that expresses a model, and the config.json it is expressed by.

    Args:
      model: the model's config.
      name: the family it must be; "" for the first that will do.

    Raises:
      UserError: none does; one line says what the nearest would have instead.
    """
    if name and name not in FAMILIES:
        raise UserError(f"family {name!r} is not known; known are {', '.join(FAMILIES)}")
    refusals, differences = {}, {}
    for family in [FAMILIES[name]] if name else FAMILIES.values():
        config = _hf_config(family, model)
        try:
            found = _differences(family, config, model)
        except UserError as error:
            refusals[family.name] = [str(error)]
            continue
        if not found:
            return family, config
        differences[family.name] = found
    reasons = differences or refusals
    nearest = min(reasons, key=lambda family: len(reasons[family]))
    raise UserError(
        f"no {name or 'known'} model is like this one: nearest is {nearest}, which takes "
        f"{', '.join(reasons[nearest])}"
    )


def _hf_config(family: Family, model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        "torch_dtype": model.dtype,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.arch.tie_embeddings,
        **family.to_hf_config(model),
    }


def _differences(family: Family, config: dict[str, Any], model: ModelConfig) -> list[str]:
    """What the family's model would have otherwise, each as `field=theirs (not ours)`.

    Raises:
      UserError: the family has no model of such a config.json at all.
    """
    pooler = ["pooler.dense.weight"] if model.arch.pooler else []
    theirs = _described(family.to_model_config(ConfigReader(config), pooler))
    ours = _described(model)
    found = [
        f"{name}={theirs[name]} (not {ours[name]})" for name in ours if theirs[name] != ours[name]
    ]
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))
    return found or [f"no {leaf}" for leaf in uncovered_leaves(family, shapes)]


def _described(model: ModelConfig) -> dict[str, Any]:
    """Everything that makes a difference to a model's output."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    arch = fields.pop("arch")
    fields |= {field.name: getattr(arch, field.name) for field in dataclasses.fields(arch)}
    fields["head_dim"] = model.head_dim
    if arch.position_encoding == "learned":
        fields["rope_theta"] = None
    return {name: value for name, value in fields.items() if name not in _RUNTIME_FIELDS}
