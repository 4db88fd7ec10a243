"""Where arrays lie on a mesh: a rule for every parameter, by its path.

XLA adds the communication (GSPMD, Xu et al. 2021). The step is traced under the mesh of
`jax.set_mesh`; `pinned` keeps what it gives where it was.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fm.attention.mesh import BATCH_AXES
from fm.errors import UserError
from fm.model import transformer
from fm.model.config import ModelConfig
from fm.parallel.mesh import MESH_AXES, MeshConfig, config_from_mesh, current_mesh
from fm.training.train_state import TrainState, init_train_state

# Path and the axes of its dimensions. Of the rules that a path matches the first counts whose axes
# divide the dimensions; a kernel's layers (N, leading) are never split. What falls to a second
# rule: few key heads are kept whole, and a vocabulary that does not divide splits the width alone.
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
    (r"streams/(hidden_piece|\w+_(bias|norm|shift))$", P()),
    (r"opt_state/.*/ns_coeffs$", P()),  # of Muon's polynomial
)


@contextlib.contextmanager
def sharded_params(params: dict) -> Iterator[dict]:
    """The parameters over the mesh of `over`, under which what happens inside is traced.

    Without one they are as they were.
    """
    mesh = current_mesh()
    if mesh is None:
        yield params
        return
    with jax.set_mesh(mesh):
        yield shard_state(params, mesh)


def batch_spec() -> P:
    """Of every array of a batch: its rows, which lead, over `data` and `fsdp`."""
    return P(BATCH_AXES)


def param_specs(shapes: Any, mesh_config: MeshConfig) -> Any:
    """A spec for each parameter.

    Args:
      shapes: pytree of arrays or ShapeDtypeStructs, its paths those of `fm.model.transformer`.
      mesh_config: sizes of the axes.

    Returns:
      The same tree of PartitionSpecs.

    Raises:
      UserError: a parameter that no rule covers, or a dimension that its axis does not divide.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _spec(_name(path), tuple(leaf.shape), mesh_config), shapes
    )


def state_specs(state: TrainState, mesh_config: MeshConfig) -> TrainState:
    """`specs` of a state, or of its shapes: what mirrors a parameter lies where that lies.

    The optimiser's moments end in the path of their parameter; its counts are scalars, which
    every device holds.
    """

    def spec(path, leaf):
        return _spec(_name(path), tuple(leaf.shape), mesh_config) if leaf.shape else P()

    return jax.tree_util.tree_map_with_path(spec, state)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """`state_specs` on a mesh."""
    found = state_specs(state, config_from_mesh(mesh))
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), found, is_leaf=lambda leaf: isinstance(leaf, P)
    )


def shard_state(state: TrainState, mesh: Mesh) -> TrainState:
    """The state, or parameters alone, spread over the mesh; every process gives the same values.

    What lies there already is given back as it is.
    """
    return jax.tree.map(_placed, state, state_shardings(state, mesh))


def init_sharded(rng: jax.Array, model: ModelConfig) -> dict:
    """`fm.model.transformer.init`: on the mesh of `over`, every part made where it stays.

    The same numbers, to the bit; no device and no host holds them whole.

    Raises:
      UserError: see `specs`.
    """
    mesh = current_mesh()
    if mesh is None:
        return transformer.init(rng, model)
    return make_sharded_init(mesh, model)(rng)


def make_sharded_init(mesh: Mesh, model: ModelConfig) -> Any:
    """The program of `fresh`, from a key to parameters."""
    shapes = jax.eval_shape(functools.partial(transformer.init, config=model), jax.random.key(0))
    return transformer.sharded_init(state_shardings(shapes, mesh), model)


def create_train_state(
    params: dict, optimizer: optax.GradientTransformation, mesh: Mesh | None
) -> TrainState:
    """`fm.training.train_state.init_train_state`, the optimiser's memory made where it stays.

    Parameters that lie on the mesh already, as those of `fresh`, are not moved.

    Raises:
      UserError: see `specs`.
    """
    if mesh is None:
        return init_train_state(params, optimizer)
    with jax.set_mesh(mesh):
        return jax.jit(lambda params: constrain(init_train_state(params, optimizer)))(
            shard_state(params, mesh)
        )


def constrain(state: TrainState) -> TrainState:
    """Inside a program, the state, parameters or gradient where `state_specs` puts them.

    Without a mesh they are as they were.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != MESH_AXES:
        return state
    return jax.tree.map(
        jax.lax.with_sharding_constraint, state, state_specs(state, config_from_mesh(mesh))
    )


def shard_stacked_states(states: TrainState, mesh: Mesh) -> TrainState:
    """States stacked, [R, ...], each spread as one alone would be."""
    one = jax.eval_shape(lambda stacked: jax.tree.map(lambda leaf: leaf[0], stacked), states)
    found = state_specs(one, config_from_mesh(mesh))
    return jax.tree.map(
        lambda leaf, spec: _placed(leaf, NamedSharding(mesh, P(None, *spec))), states, found
    )


def shard_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """A batch, of which every process holds the whole, with its rows spread over the mesh.

    Rows that the mesh does not divide are given to every device; in the objectives each takes its
    share all the same. The rows lie along `axis`.
    """
    ways, before = config_from_mesh(mesh).batch_shards, (None,) * axis

    def placed(leaf):
        spec = P() if leaf.shape[axis] % ways else P(*before, *batch_spec())
        return _placed(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(placed, batch)


def replicate(array: jax.Array, mesh: Mesh) -> jax.Array:
    """An array that every device holds whole."""
    return _placed(array, NamedSharding(mesh, P()))


def _placed(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    # Each process hands over what its own devices hold.
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _name(path: tuple) -> str:
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _spec(name: str, shape: tuple[int, ...], mesh_config: MeshConfig) -> P:
    """By the first rule that fits."""
    rules = [spec for pattern, spec in RULES if re.search(rf"(^|/){pattern}", name)]
    found = [spec for spec in rules if len(spec) <= len(shape)]
    if not found:
        raise UserError(
            f"no rule of fm.training.sharding says where {name} {list(shape)} lies on a mesh"
        )
    misfits = [_misfit(shape, spec, mesh_config) for spec in found]
    for spec, misfit in zip(found, misfits, strict=True):
        if misfit is None:
            return spec
    raise UserError(f"--mesh={mesh_config}: {misfits[-1]} of {name} {list(shape)}")


def _misfit(shape: tuple[int, ...], spec: P, mesh_config: MeshConfig) -> str | None:
    """What does not divide, in words."""
    for n, axes in enumerate(spec):
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        ways = math.prod(getattr(mesh_config, axis) for axis in names)
        if shape[n] % ways:
            return f"{' x '.join(names)} = {ways} does not divide dimension {n}, {shape[n]},"
    return None
