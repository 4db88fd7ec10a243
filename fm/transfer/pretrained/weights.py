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
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.transfer.pretrained import families
from fm.transfer.pretrained.families import Family
from fm.transfer.pretrained.names import Entry
from fm.transfer.pretrained.settings import Settings

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
    family = families.of(config)
    given = {_plain(name, family): name for name in tensors}
    if len(given) < len(tensors):
        raise UserError(f"two tensors share a name but for the prefix {family.prefix!r}")
    model = family.model(Settings(config), given.keys())
    if model.depth > len(given):
        raise UserError(f"{model.depth} layers in config.json, but only {len(given)} tensors")
    model = dataclasses.replace(model, dtype=dtype)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))
    skipped = {given[name] for name in given if re.fullmatch(family.buffers, name)}
    skipped |= set(left_out(family, tensors))

    wanted = {name: (entry, layer) for entry, layer, name in _places(family, shapes)}
    missing = [name for name in wanted if name not in given]
    if missing:
        raise UserError(f"missing from the weights: {_listed(missing)}")
    spare = [name for name in given if name not in wanted and given[name] not in skipped]
    if model.style.tied and spare == ["lm_head.weight"]:
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
    for entry, layer, name in _places(family, shapes):
        parts = []
        for leaf in entry.leaves:
            value = params[entry.part][leaf]
            value = np.asarray(value if layer is None else value[layer])
            parts.append(value.reshape(_flat(leaf, value.shape)))
        joined = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        prefix = "" if name == "lm_head.weight" or not family.causal else family.prefix
        tensors[prefix + name] = np.ascontiguousarray(joined.T if entry.transposed else joined)
    return tensors


def left_out(family: Family, tensors: Iterable[str]) -> tuple[str, ...]:
    """Names of learned tensors that `fm` has no place for, such as BERT's heads."""
    return tuple(
        sorted(name for name in tensors if re.fullmatch(family.heads, _plain(name, family)))
    )


def uncovered(family: Family, shapes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Leaves of a model that no tensor of the family holds."""
    covered = {(entry.part, leaf) for entry in family.entries for leaf in entry.leaves}
    return [
        f"{part}.{leaf}"
        for part, leaves in shapes.items()
        for leaf in leaves
        if leaf != _OWN and (part, leaf) not in covered
    ]


def _plain(name: str, family: Family) -> str:
    """A tensor's name as the tables have it."""
    name = name.removeprefix(family.prefix)
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _places(
    family: Family, shapes: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Entry, int | None, str]]:
    """Every tensor of a model: its entry, layer (None outside the layers) and name."""
    for entry in family.entries:
        if not set(entry.leaves) <= shapes[entry.part].keys():
            continue
        if entry.part == "streams":
            yield entry, None, entry.tensor
            continue
        for layer in range(shapes["layers"][entry.leaves[0]].shape[0]):
            yield entry, layer, entry.tensor.format(n=layer)


def _fill(params: dict, entry: Entry, layer: int | None, name: str, tensor: np.ndarray) -> None:
    """Puts a tensor's values into the leaves it holds."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{name} holds {tensor.dtype}, not floats")
    places = [params[entry.part][leaf] for leaf in entry.leaves]
    places = places if layer is None else [place[layer] for place in places]
    flat = [_flat(leaf, place.shape) for leaf, place in zip(entry.leaves, places, strict=True)]
    want = (*flat[0][:-1], sum(shape[-1] for shape in flat))
    want = want[::-1] if entry.transposed else want
    if tensor.shape != want:
        raise UserError(f"{name} has shape {list(tensor.shape)}, not {list(want)}")
    joined, start = tensor.T if entry.transposed else tensor, 0
    for place, shape in zip(places, flat, strict=True):
        place[...] = joined[..., start : start + shape[-1]].reshape(place.shape)
        start += shape[-1]


def _flat(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
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
