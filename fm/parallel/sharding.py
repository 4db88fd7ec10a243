"""PartitionSpecs of all arrays: every parameter by its path, train states and batches.

XLA adds the communication (GSPMD, Xu et al. 2021). Steps are traced under `jax.set_mesh`;
`constrain` keeps their results where the inputs were.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fm.errors import UserError
from fm.parallel.mesh import (
    BATCH_AXES,
    MeshConfig,
    active_mesh_config,
    config_from_mesh,
    current_mesh,
)

# Path pattern and PartitionSpec. Of the rules that match a path, the first counts whose axes
# divide the dimensions: few key heads stay whole, and a vocabulary that does not divide splits
# only the model dimension. The leading layer axis of `layers` is never split.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/query$", P(None, "fsdp", "tensor", None)),
    (r"layers/(key|value)$", P(None, "fsdp", "tensor", None)),
    (r"layers/(key|value)$", P(None, "fsdp", None, None)),
    (r"layers/attention_out$", P(None, "tensor", None, "fsdp")),
    (r"layers/(up|gate)$", P(None, "fsdp", "tensor")),
    (r"layers/down$", P(None, "tensor", "fsdp")),
    (r"layers/\w+_(bias|norm|shift|lora_a|lora_b)$", P()),
    (r"streams/token_embedding$", P("tensor", "fsdp")),
    (r"streams/token_embedding$", P(None, "fsdp")),
    (r"streams/token_head$", P("fsdp", "tensor")),
    (r"streams/token_head$", P("fsdp", None)),
    (r"streams/\w+_embedding$", P(None, "fsdp")),
    (r"streams/(image|audio|video)_head$", P("fsdp", None)),
    (r"streams/pooler$", P("fsdp", None)),
    (r"streams/(stem|stem_second|class_tokens|registers)$", P()),
    (r"streams/(hidden_piece|\w+_(bias|norm|shift))$", P()),
    (r"opt_state/.*/ns_coeffs$", P()),  # of Muon's polynomial
)


def batch_spec() -> P:
    """Returns the PartitionSpec of every batch array: leading axis over `data` and `fsdp`."""
    return P(BATCH_AXES)


def param_specs(shapes: Any, mesh_config: MeshConfig) -> Any:
    """Returns a pytree with the PartitionSpec of each parameter, by the parameter's path.

    Args:
      shapes: pytree of arrays or ShapeDtypeStructs, its paths those of `fm.model.transformer`.
      mesh_config: sizes of the axes.

    Raises:
      UserError: no rule covers a parameter, or an axis does not divide its dimension.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _spec(_path_name(path), tuple(leaf.shape), mesh_config), shapes
    )


def state_specs(state: Any, mesh_config: MeshConfig) -> Any:
    """Returns a pytree with the PartitionSpec of each array of a train state.

    The path of an optimizer moment ends in that of its parameter, so it lies where that does;
    scalars, such as step counts, are replicated.
    """

    def spec(path, leaf):
        return _spec(_path_name(path), tuple(leaf.shape), mesh_config) if leaf.shape else P()

    return jax.tree_util.tree_map_with_path(spec, state)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns a pytree with the NamedSharding on `mesh` of each array of a train state."""
    specs = state_specs(state, config_from_mesh(mesh))
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, P)
    )


def shard_state(state: Any, mesh: Mesh) -> Any:
    """Returns a train state or parameters sharded on the mesh; all processes pass equal values.

    Arrays that already lie there are returned as they are.
    """
    return jax.tree.map(_place, state, state_shardings(state, mesh))


@contextlib.contextmanager
def sharded_params(params: dict) -> Iterator[dict]:
    """Yields parameters sharded on the current mesh, and runs the block under `jax.set_mesh`.

    Without a mesh it yields them unchanged.
    """
    mesh = current_mesh()
    if mesh is None:
        yield params
        return
    with jax.set_mesh(mesh):
        yield shard_state(params, mesh)


def constrain(state: Any) -> Any:
    """Returns a traced state, params or gradient sharded by `state_specs`; no-op without a mesh.

    Raises:
      UserError: see `fm.parallel.mesh.config_from_mesh`.
    """
    config = active_mesh_config()
    if config is None:
        return state
    return jax.tree.map(jax.lax.with_sharding_constraint, state, state_specs(state, config))


def stacked_state_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of each array of states like `state` stacked on axis 0.

    Each is sharded as a single state; axis 0 is not sharded.
    """
    return jax.tree.map(
        lambda single: NamedSharding(mesh, P(None, *single.spec)), state_shardings(state, mesh)
    )


def shard_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Shards a batch over the mesh along `axis`; every process passes the whole batch.

    Rows that the mesh does not divide are replicated; the objectives split them all the same.
    """
    shards, leading = config_from_mesh(mesh).batch_shards, (None,) * axis

    def place(leaf):
        spec = P() if leaf.shape[axis] % shards else P(*leading, *batch_spec())
        return _place(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, batch)


def replicate(array: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns the array with a full copy on every device of the mesh."""
    return _place(array, NamedSharding(mesh, P()))


def on_devices(tree: Any, mesh: Mesh | None) -> Any:
    """Returns a pytree with its numbers and numpy arrays put on the device, or on all of the mesh.

    Arrays that are on devices stay where they are. With `jax.transfer_guard("disallow")` numpy
    arguments of a jitted function are refused; these are not.
    """

    def put(leaf):
        if isinstance(leaf, jax.Array):
            return leaf
        return jax.device_put(leaf) if mesh is None else replicate(leaf, mesh)

    return jax.tree.map(put, tree)


def _place(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    whole = np.asarray(leaf)  # each process copies only what its own devices hold
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _path_name(path: tuple) -> str:
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _spec(name: str, shape: tuple[int, ...], mesh_config: MeshConfig) -> P:
    """The spec of the first rule that matches and divides."""
    rules = [spec for pattern, spec in RULES if re.search(rf"(^|/){pattern}", name)]
    specs = [spec for spec in rules if len(spec) <= len(shape)]
    if not specs:
        raise UserError(
            f"no rule in fm.parallel.sharding covers the parameter {name} {list(shape)}"
        )
    misfits = [_misfit(shape, spec, mesh_config) for spec in specs]
    for spec, misfit in zip(specs, misfits, strict=True):
        if misfit is None:
            return spec
    raise UserError(f"--mesh={mesh_config}: {misfits[-1]} of {name} {list(shape)}")


def _misfit(shape: tuple[int, ...], spec: P, mesh_config: MeshConfig) -> str | None:
    """Which axis does not divide its dimension, or None."""
    for n, axes in enumerate(spec):
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        shards = math.prod(getattr(mesh_config, axis) for axis in names)
        if shape[n] % shards:
            return f"{' x '.join(names)} = {shards} does not divide dimension {n}, {shape[n]},"
    return None
