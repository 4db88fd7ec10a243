"""Memory of a train step on each device of a mesh, from shapes and rules: nothing is allocated.

Parameters, gradients and the optimiser's memory are exact: the shapes of `jax.eval_shape`, each
split as the rules of `fm.training.sharding` say. What the layers keep is an estimate: what the
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
from fm.training import meshes, optimizer, sharding, state
from fm.training.meshes import MeshConfig
from fm.training.optimizer import OptimizerConfig
from fm.training.state import State


@functools.lru_cache(maxsize=8)
def state_shapes(model: ModelConfig, rule: OptimizerConfig) -> State:
    """Shapes of a run's whole state."""

    def start():
        return state.init(init(jax.random.key(0), model), optimizer.build(rule, 100))

    return jax.eval_shape(start)


def numbers(shapes: Any) -> int:
    """How many there are in all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def on_one(shapes: Any, specs: Any, mesh: MeshConfig) -> float:
    """Bytes of a tree that lie on one device."""
    leaves = jax.tree.leaves(shapes)
    found = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))
    return float(
        sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize / ways(spec, mesh)
            for leaf, spec in zip(leaves, found, strict=True)
        )
    )


def ways(spec: P, mesh: MeshConfig, axes: tuple[str, ...] = meshes.AXES) -> int:
    """Into how many parts a spec splits an array, along some of the axes."""
    named = [name for each in spec if each for name in ((each,) if isinstance(each, str) else each)]
    return math.prod(getattr(mesh, name) for name in named if name in axes)


def kept(model: ModelConfig, tensor: int) -> float:
    """Bytes a layer keeps of one piece for its backward pass, on each of `tensor` devices."""
    a = jnp.dtype(model.dtype).itemsize
    D, F = model.width, model.hidden / tensor
    C = model.head_width
    q = model.heads * C / tensor
    kv = 2 * model.kv_heads * C / (tensor if model.kv_heads % tensor == 0 else 1)
    # What attention gave lies there twice, in its own order and in the residual's; and there is
    # the logarithm of each sum.
    attended = (3 * q + kv) * a + 4 * model.heads / tensor
    hidden = F * (2 if model.style.gated else 1)
    if model.remat == "full":
        return D * a
    if model.remat == "attention":
        return D * a + attended
    if model.remat == "dots":
        return (2 * D + q + kv + hidden) * a
    before_norm = q + kv / 2 if model.style.qk_norm != "none" else 0.0
    norms = (8 if model.style.gain else 4) * D
    return attended + (norms + before_norm + F * (5 if model.style.gated else 2)) * a


def memory(
    model: ModelConfig, rule: OptimizerConfig, mesh: MeshConfig, pieces: int
) -> dict[str, float]:
    """Bytes on each device, by what they are for.

    Args:
      model: the model's config.
      rule: the optimiser's.
      mesh: sizes of the axes.
      pieces: that one device reads at a time, rows times length.

    Raises:
      UserError: the model does not divide over the mesh.
    """
    shapes = state_shapes(model, rule)
    specs = sharding.state_specs(shapes, mesh)
    a = jnp.dtype(model.dtype).itemsize
    params = on_one(shapes["params"], specs["params"], mesh)
    # Two layers are gathered over fsdp at once: one is at work, the next on its way.
    layers = shapes["params"]["layers"], specs["params"]["layers"]
    layer = gathered(*layers, mesh) * a / max(1, model.depth)
    streams = gathered(shapes["params"]["streams"], specs["params"]["streams"], mesh) * a
    busy = kept(dataclasses.replace(model, remat="none"), mesh.tensor)
    found = {
        "parameters": params,
        "gradients": params,
        "optimizer": on_one(shapes["opt_state"], specs["opt_state"], mesh),
        "activations": model.depth * pieces * kept(model, mesh.tensor),
        # The layer at work holds all it has and as much again of gradients; logits go in chunks.
        "working": 2.0 * pieces * busy + 2 * 4 * 2**21,
    }
    if mesh.fsdp > 1:
        found["gathered"] = 2 * layer + streams
    return found


def gathered(shapes: Any, specs: Any, mesh: MeshConfig) -> float:
    """Numbers on one device once what lies over fsdp is gathered there."""
    leaves = jax.tree.leaves(shapes)
    found = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))
    return float(
        sum(
            math.prod(leaf.shape) / ways(spec, mesh, ("tensor",))
            for leaf, spec in zip(leaves, found, strict=True)
        )
    )
