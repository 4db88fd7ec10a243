"""Memory of a train step on each device of a mesh, from shapes and rules: nothing is allocated.

Parameters, gradients and the optimiser's memory are exact: the shapes of `jax.eval_shape`, each
split as the rules of `fm.parallel.sharding` say. What the layers keep is an estimate: what the
mathematics of a layer and its remat policy hold, without what the compiler adds or saves.
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
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.parallel.mesh import MeshConfig
from fm.training import optimizer, train_state
from fm.training.optimizer import OptimizerConfig
from fm.training.train_state import TrainState


@functools.lru_cache(maxsize=8)
def state_shapes(model_config: ModelConfig, optimizer_config: OptimizerConfig) -> TrainState:
    """Shapes of a run's whole state."""

    def start():
        return train_state.init_train_state(
            init(jax.random.key(0), model_config), optimizer.build(optimizer_config, 100)
        )

    return jax.eval_shape(start)


def num_elements(shapes: Any) -> int:
    """How many there are in all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def bytes_per_device(shapes: Any, specs: Any, mesh: MeshConfig) -> float:
    """Bytes of a tree that lie on one device."""
    leaves = jax.tree.leaves(shapes)
    found = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))
    return float(
        sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize / num_shards(spec, mesh)
            for leaf, spec in zip(leaves, found, strict=True)
        )
    )


def num_shards(spec: P, mesh: MeshConfig, axes: tuple[str, ...] = meshes.MESH_AXES) -> int:
    """Into how many parts a spec splits an array, along some of the axes."""
    named = [name for each in spec if each for name in ((each,) if isinstance(each, str) else each)]
    return math.prod(getattr(mesh, name) for name in named if name in axes)


def saved_bytes_per_token(model_config: ModelConfig, tensor: int) -> float:
    """Bytes a layer keeps of one piece for its backward pass, on each of `tensor` devices."""
    a = jnp.dtype(model_config.dtype).itemsize
    D, F = model_config.d_model, model_config.mlp_dim / tensor
    C = model_config.head_dim
    q = model_config.num_heads * C / tensor
    kv = (
        2
        * model_config.num_kv_heads
        * C
        / (tensor if model_config.num_kv_heads % tensor == 0 else 1)
    )
    # What attention gave lies there twice, in its own order and in the residual's; and there is
    # the logarithm of each sum.
    attended = (3 * q + kv) * a + 4 * model_config.num_heads / tensor
    hidden = F * (2 if model_config.arch.gated_mlp else 1)
    if model_config.remat_policy == "full":
        return D * a
    if model_config.remat_policy == "attention":
        return D * a + attended
    if model_config.remat_policy == "dots":
        return (2 * D + q + kv + hidden) * a
    before_norm = q + kv / 2 if model_config.arch.qk_norm != "none" else 0.0
    norms = (8 if model_config.arch.norm_scale else 4) * D
    return attended + (norms + before_norm + F * (5 if model_config.arch.gated_mlp else 2)) * a


def estimate_memory(
    model_config: ModelConfig,
    optimizer_config: OptimizerConfig,
    mesh: MeshConfig,
    tokens_per_device: int,
) -> dict[str, float]:
    """Bytes on each device, by what they are for.

    Args:
      model_config: the model's config.
      optimizer_config: the optimiser's.
      mesh: sizes of the axes.
      tokens_per_device: that one device reads at a time, rows times length.

    Raises:
      UserError: the model does not divide over the mesh.
    """
    shapes = state_shapes(model_config, optimizer_config)
    specs = sharding.state_specs(shapes, mesh)
    a = jnp.dtype(model_config.dtype).itemsize
    params = bytes_per_device(shapes["params"], specs["params"], mesh)
    # Two layers are gathered over fsdp at once: one is at work, the next on its way.
    layers = shapes["params"]["layers"], specs["params"]["layers"]
    layer = gathered_elements(*layers, mesh) * a / max(1, model_config.num_layers)
    streams = gathered_elements(shapes["params"]["streams"], specs["params"]["streams"], mesh) * a
    busy = saved_bytes_per_token(
        dataclasses.replace(model_config, remat_policy="none"), mesh.tensor
    )
    found = {
        "parameters": params,
        "gradients": params,
        "optimizer": bytes_per_device(shapes["opt_state"], specs["opt_state"], mesh),
        "activations": model_config.num_layers
        * tokens_per_device
        * saved_bytes_per_token(model_config, mesh.tensor),
        # The layer at work holds all it has and as much again of gradients; logits go in chunks.
        "working": 2.0 * tokens_per_device * busy + 2 * 4 * 2**21,
    }
    if mesh.fsdp > 1:
        found["gathered"] = 2 * layer + streams
    return found


def gathered_elements(shapes: Any, specs: Any, mesh: MeshConfig) -> float:
    """Numbers on one device once what lies over fsdp is gathered there."""
    leaves = jax.tree.leaves(shapes)
    found = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))
    return float(
        sum(
            math.prod(leaf.shape) / num_shards(spec, mesh, ("tensor",))
            for leaf, spec in zip(leaves, found, strict=True)
        )
    )
