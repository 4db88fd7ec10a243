"""Low-rank adapters (Hu et al. 2021): a frozen model, and small products added to its kernels."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fm.errors import UserError
from fm.files import new_dir, read_json
from fm.model.layers import KERNELS

Adapters = dict[str, jax.Array]

_ARRAYS, _CONFIG = "adapters.safetensors", "adapters.json"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and by how much.

    Attributes:
      rank: columns of A and rows of B (r).
      alpha: the product is scaled by alpha / rank, so that the rank can change and the learning
        rate stay (sec. 4.1).
      kernels: some of `KERNELS`.
    """

    rank: int = 4
    alpha: float = 8.0
    kernels: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise UserError(
                f"LoRA takes a rank={self.rank} of at least 1 and an alpha={self.alpha} above 0"
            )
        unknown = [name for name in self.kernels if name not in KERNELS]
        if unknown or not self.kernels or len(set(self.kernels)) < len(self.kernels):
            raise UserError(
                f"LoRA takes kernels={','.join(self.kernels)} out of {', '.join(KERNELS)}, at "
                "least one, none of them twice"
            )


def init(rng: jax.Array, layers: Mapping[str, Any], config: LoraConfig) -> Adapters:
    """Fresh adapters: A normal with variance 1/fan_in and B zero, so the model starts as it was.

    Args:
      rng: decides A.
      layers: `params["layers"]` of the model, for its shapes.
      config: see `LoraConfig`.

    Returns:
      Per kernel `NAME_lora_a` [N, in, r] and `NAME_lora_b` [N, r, out], float32, the axes of heads
      flattened.

    Raises:
      UserError: the model lacks a kernel asked for.
    """
    adapters = {}
    for number, name in enumerate(config.kernels):
        if name not in layers:
            own = ", ".join(kernel for kernel in KERNELS if kernel in layers)
            raise UserError(f"the model has no kernel {name!r} to adapt; it has {own}")
        N, fan_in, fan_out = _flat(name, layers[name].shape)
        normal = jax.random.normal(jax.random.fold_in(rng, number), (N, fan_in, config.rank))
        adapters[f"{name}_lora_a"] = normal * fan_in**-0.5
        adapters[f"{name}_lora_b"] = jnp.zeros((N, config.rank, fan_out))
    return adapters


def attach(params: dict, adapters: Adapters, config: LoraConfig) -> dict:
    """Parameters whose adapted maps give x W + alpha/r (x A) B; the base arrays are shared.

    Differentiated by `adapters` alone, no gradient of a kernel is ever formed.
    """
    scale = config.alpha / config.rank
    scaled = {
        name: value * scale if name.endswith("_a") else value for name, value in adapters.items()
    }
    return params | {"layers": params["layers"] | scaled}


def merge(params: dict, adapters: Adapters, config: LoraConfig) -> dict:
    """Plain parameters that give the same outputs: W + alpha/r A B, in the dtype of W."""
    merged = dict(params["layers"])
    for name in config.kernels:
        kernel = merged[name]
        a, b = adapters[f"{name}_lora_a"], adapters[f"{name}_lora_b"]
        added = (config.alpha / config.rank) * jnp.matmul(a, b, precision="highest")
        summed = kernel.astype(jnp.float32) + added.reshape(kernel.shape)
        merged[name] = summed.astype(kernel.dtype)
    return params | {"layers": merged}


def save(folder: pathlib.Path, adapters: Adapters, config: LoraConfig) -> None:
    """Writes the adapters alone, as safetensors and JSON; the folder appears whole or not at all.

    Raises:
      UserError: there is something at `folder`.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; adapters are written to a new folder")
    with new_dir(folder) as scratch:
        save_file({name: np.asarray(each) for name, each in adapters.items()}, scratch / _ARRAYS)
        (scratch / _CONFIG).write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")


def load(folder: pathlib.Path, layers: Mapping[str, Any]) -> tuple[Adapters, LoraConfig]:
    """What `save` wrote, checked to fit a model.

    Args:
      folder: of the adapters.
      layers: `params["layers"]` of the model they are for.

    Raises:
      UserError: the folder lacks a file, one of them is broken, or the adapters are those of
        another model.
    """
    folder = pathlib.Path(folder)
    try:
        plain = read_json(folder / _CONFIG)
        config = LoraConfig(**plain | {"kernels": tuple(plain["kernels"])})
        arrays = load_file(folder / _ARRAYS)
    except OSError as error:
        raise UserError(f"cannot read the adapters in {folder}: {error}") from error
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder} holds no whole adapters: {error}") from error
    like = jax.eval_shape(lambda: init(jax.random.key(0), layers, config))
    shapes = {name: each.shape for name, each in arrays.items()}
    if shapes != {name: each.shape for name, each in like.items()}:
        raise UserError(f"the adapters in {folder} are those of another model")
    return {name: jnp.asarray(each) for name, each in arrays.items()}, config


def _flat(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Layers, inputs and outputs of a stacked kernel, its heads in one axis."""
    if name == "attention_out":
        return shape[0], math.prod(shape[1:-1]), shape[-1]
    return shape[0], shape[1], math.prod(shape[2:])
