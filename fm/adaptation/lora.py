"""LoRA (Hu et al. 2021): low-rank products added to the kernels of a frozen model."""

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
from fm.files import atomic_dir, read_json
from fm.model.layers import KERNELS

Adapters = dict[str, jax.Array]

_ARRAYS, _CONFIG = "adapters.safetensors", "adapters.json"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA rank, scale alpha and adapted kernels (Hu et al. 2021).

    Attributes:
      rank: columns of A and rows of B (r).
      alpha: the product is scaled by alpha / rank, so that the learning rate need not change with
        the rank (sec. 4.1).
      kernels: names of the adapted kernels, some of `KERNELS`.
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
    """Initializes adapters: A normal with variance 1/fan_in, B zero, so outputs are unchanged.

    Args:
      rng: key for A.
      layers: `params["layers"]` of the model, for its shapes.
      config: see `LoraConfig`.

    Returns:
      Per kernel `NAME_lora_a` [N, in, r] and `NAME_lora_b` [N, r, out], float32, for N layers, the
      head axes flattened.

    Raises:
      UserError: the model has no such kernel.
    """
    adapters = {}
    for number, name in enumerate(config.kernels):
        if name not in layers:
            present = ", ".join(kernel for kernel in KERNELS if kernel in layers)
            raise UserError(f"the model has no kernel {name!r} to adapt; it has {present}")
        N, fan_in, fan_out = _matrix_shape(name, layers[name].shape)
        normal = jax.random.normal(jax.random.fold_in(rng, number), (N, fan_in, config.rank))
        adapters[f"{name}_lora_a"] = normal * fan_in**-0.5
        adapters[f"{name}_lora_b"] = jnp.zeros((N, config.rank, fan_out))
    return adapters


def attach(params: dict, adapters: Adapters, config: LoraConfig) -> dict:
    """Returns parameters with adapters added, unmerged: layers compute x W + alpha/r (x A) B.

    Other arrays are shared. Differentiated with respect to `adapters` alone, no gradient of a
    kernel is formed.
    """
    scale = config.alpha / config.rank
    scaled = {
        name: value * scale if name.endswith("_a") else value for name, value in adapters.items()
    }
    return params | {"layers": params["layers"] | scaled}


def merge(params: dict, adapters: Adapters, config: LoraConfig) -> dict:
    """Returns parameters with adapters merged into the kernels: W + alpha/r A B, in W's dtype."""
    merged = dict(params["layers"])
    for name in config.kernels:
        kernel = merged[name]
        a, b = adapters[f"{name}_lora_a"], adapters[f"{name}_lora_b"]
        delta = (config.alpha / config.rank) * jnp.matmul(a, b, precision="highest")
        summed = kernel.astype(jnp.float32) + delta.reshape(kernel.shape)
        merged[name] = summed.astype(kernel.dtype)
    return params | {"layers": merged}


def save(folder: pathlib.Path, adapters: Adapters, config: LoraConfig) -> None:
    """Writes adapters to a new folder as safetensors and a JSON config, atomically.

    Raises:
      UserError: `folder` exists.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; adapters are written to a new folder")
    with atomic_dir(folder) as scratch:
        save_file({name: np.asarray(each) for name, each in adapters.items()}, scratch / _ARRAYS)
        (scratch / _CONFIG).write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")


def load(folder: pathlib.Path, layers: Mapping[str, Any]) -> tuple[Adapters, LoraConfig]:
    """Reads adapters written by `save`, and checks that they fit the model's layers.

    Args:
      folder: folder of the adapters.
      layers: `params["layers"]` of the model.

    Raises:
      UserError: a file is missing or damaged, or the adapters belong to another model.
    """
    folder = pathlib.Path(folder)
    try:
        values = read_json(folder / _CONFIG)
        config = LoraConfig(**values | {"kernels": tuple(values["kernels"])})
        arrays = load_file(folder / _ARRAYS)
    except OSError as error:
        raise UserError(f"cannot read the adapters in {folder}: {error}") from error
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder} has no complete adapters: {error}") from error
    expected = jax.eval_shape(lambda: init(jax.random.key(0), layers, config))
    shapes = {name: each.shape for name, each in arrays.items()}
    if shapes != {name: each.shape for name, each in expected.items()}:
        raise UserError(f"the adapters in {folder} belong to another model")
    return {name: jnp.asarray(each) for name, each in arrays.items()}, config


def _matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Layers, inputs and outputs of a stacked kernel, its head axes flattened."""
    if name == "attention_out":
        return shape[0], math.prod(shape[1:-1]), shape[-1]
    return shape[0], shape[1], math.prod(shape[2:])
