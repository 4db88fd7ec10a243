"""Estimates the memory of a train step on each device of a mesh, without allocating anything.

Parameters, gradients and optimizer state are exact: the shapes of `jax.eval_shape`, sharded by the
rules of `fm.parallel.sharding`. Activations are estimated from a layer's mathematics and its remat
policy, without what the compiler adds or saves.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.parallel import sharding
from fm.parallel.mesh import MESH_AXES, MeshConfig
from fm.training import optimizer
from fm.training.optimizer import OptimizerConfig
from fm.training.train_state import TrainState, init_train_state


@functools.lru_cache(maxsize=8)
def state_shapes(model_config: ModelConfig, optimizer_config: OptimizerConfig) -> TrainState:
    """Returns the train state as ShapeDtypeStructs, without allocating it."""

    def create():
        params = init(jax.random.key(0), model_config)
        return init_train_state(params, optimizer.build(optimizer_config, 100))

    return jax.eval_shape(create)


def num_elements(shapes: Any) -> int:
    """Returns the total number of array elements in a pytree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def bytes_per_device(shapes: Any, specs: Any, mesh: MeshConfig) -> float:
    """Returns the bytes that one device stores of arrays sharded by PartitionSpecs `specs`."""
    return _sum_shards(shapes, specs, mesh, MESH_AXES, lambda leaf: leaf.dtype.itemsize)


def gathered_elements_per_device(shapes: Any, specs: Any, mesh: MeshConfig) -> float:
    """Returns elements per device after an all-gather over every axis but `tensor`."""
    return _sum_shards(shapes, specs, mesh, ("tensor",), lambda leaf: 1)


def _sum_shards(shapes, specs, mesh, axes, size_of) -> float:
    leaves = jax.tree.leaves(shapes)
    leaf_specs = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))
    return float(
        sum(
            math.prod(leaf.shape) * size_of(leaf) / num_shards(spec, mesh, axes)
            for leaf, spec in zip(leaves, leaf_specs, strict=True)
        )
    )


def num_shards(spec: P, mesh: MeshConfig, axes: tuple[str, ...] = MESH_AXES) -> int:
    """Returns into how many parts a PartitionSpec splits an array, counting only `axes`."""
    named = [name for each in spec if each for name in ((each,) if isinstance(each, str) else each)]
    return math.prod(getattr(mesh, name) for name in named if name in axes)


def layer_saved_bytes_per_token(model_config: ModelConfig, tensor: int) -> float:
    """Returns the activation bytes per token and device that one layer saves for its backward.

    `tensor` is the size of the tensor axis.
    """
    itemsize = jnp.dtype(model_config.dtype).itemsize
    D, F = model_config.d_model, model_config.mlp_dim / tensor
    num_kv_heads, C = model_config.num_kv_heads, model_config.head_dim
    gated = model_config.arch.gated_mlp
    q = model_config.num_heads * C / tensor
    kv = 2 * num_kv_heads * C / (tensor if num_kv_heads % tensor == 0 else 1)
    # The attention output is stored twice, in its own layout and the residual's, besides q, k, v
    # and the float32 log-sum-exp of each head.
    attention = (3 * q + kv) * itemsize + 4 * model_config.num_heads / tensor
    if model_config.remat_policy == "full":
        return D * itemsize
    if model_config.remat_policy == "attention":
        return D * itemsize + attention
    if model_config.remat_policy == "dots":
        return (2 * D + q + kv + F * (2 if gated else 1)) * itemsize
    qk_norm_inputs = q + kv / 2 if model_config.arch.qk_norm != "none" else 0.0
    norms = (8 if model_config.arch.norm_scale else 4) * D
    norms *= 2 if model_config.arch.sandwich_norm else 1
    return attention + (norms + qk_norm_inputs + F * (5 if gated else 2)) * itemsize


def estimate_memory(
    model_config: ModelConfig,
    optimizer_config: OptimizerConfig,
    mesh: MeshConfig,
    tokens_per_device: int,
) -> dict[str, float]:
    """Returns the estimated bytes on each device by purpose (parameters, gradients, ...).

    Args:
      model_config: of the model.
      optimizer_config: of the optimizer.
      mesh: sizes of the axes.
      tokens_per_device: tokens of a microbatch on one device, rows times length.

    Raises:
      UserError: the mesh does not divide the model.
    """
    shapes = state_shapes(model_config, optimizer_config)
    specs = sharding.state_specs(shapes, mesh)
    itemsize = jnp.dtype(model_config.dtype).itemsize
    params = bytes_per_device(shapes.params, specs.params, mesh)
    unrematerialized = dataclasses.replace(model_config, remat_policy="none")
    per_token = layer_saved_bytes_per_token(model_config, mesh.tensor)
    memory = {
        "parameters": params,
        "gradients": params,
        "optimizer": bytes_per_device(shapes.opt_state, specs.opt_state, mesh),
        "activations": model_config.num_layers * tokens_per_device * per_token,
        # The current layer with its gradients, and one chunk of logits (see cross_entropy).
        "working": 2.0
        * tokens_per_device
        * layer_saved_bytes_per_token(unrematerialized, mesh.tensor)
        + 2 * 4 * 2**21,
    }
    if mesh.fsdp > 1:
        # Two layers are gathered over fsdp at once: the current one and the next.
        layers, embeddings = (
            gathered_elements_per_device(shapes.params[name], specs.params[name], mesh) * itemsize
            for name in ("layers", "streams")
        )
        memory["gathered"] = 2 * (layers / max(1, model_config.num_layers)) + embeddings
    return memory
