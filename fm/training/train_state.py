"""The train state: parameters, optimizer state and step count.

It holds no random key: each step's key is the run's seed folded with the step count.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fm.model import transformer
from fm.model.config import ModelConfig
from fm.parallel.mesh import current_mesh
from fm.parallel.sharding import constrain, on_devices, shard_state, state_shardings


class TrainState(flax.struct.PyTreeNode):
    """Train state: parameters, optimizer state and number of steps taken; a pytree.

    Attributes:
      opt_state: of the optax optimizer.
      params: nested dict of arrays.
      step: steps done, int32 scalar.
    """

    opt_state: optax.OptState
    params: dict
    step: jax.Array


def init_train_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the train state before the first step, with a copy of `params` (steps donate it).

    Compiled once for each optimizer, of which `fm.training.optimizer.build` gives one for each
    config.
    """
    return _init(params, optimizer)


# One program; without `jit` there would be one for each array.
@functools.partial(jax.jit, static_argnums=1)
def _init(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    state = TrainState(
        params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
    )
    return constrain(state)


def init_sharded_train_state(
    params: dict, optimizer: optax.GradientTransformation, mesh: Mesh | None
) -> TrainState:
    """Returns the initial train state with its optimizer state created sharded on the mesh.

    Parameters that already lie there, as those of `init_sharded`, are not moved.
    """
    if mesh is None:
        return init_train_state(on_devices(params, None), optimizer)
    with jax.set_mesh(mesh):
        return init_train_state(shard_state(params, mesh), optimizer)


def init_sharded(rng: jax.Array, model_config: ModelConfig) -> dict:
    """Returns initial parameters created in shards on the current mesh; same numbers as `init`.

    The same numbers, to the bit; no device and no host holds them all.

    Raises:
      UserError: see `fm.parallel.sharding.param_specs`.
    """
    mesh = current_mesh()
    if mesh is None:
        return transformer.init(rng, model_config)
    return make_sharded_init(mesh, model_config)(rng)


@functools.lru_cache(maxsize=16)
def make_sharded_init(mesh: Mesh, model_config: ModelConfig) -> Any:
    """Returns the function from a random key to parameters sharded on the mesh, compiled once."""
    init = functools.partial(transformer.init, config=model_config)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return transformer.compile_sharded_init(state_shardings(shapes, mesh), model_config)


def gather_to_host(leaf: jax.Array) -> np.ndarray:
    """Returns the whole array as numpy; every process must call it if the array spans several."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_get(leaf)


def params_digest(params: dict) -> str:
    """Returns the SHA-256 of a parameter tree, independent of the order of its dict keys.

    Equal digests mean bitwise equal parameters, whatever the insertion order of the dicts.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in sorted(leaves, key=lambda pair: jax.tree_util.keystr(pair[0])):
        array = np.ascontiguousarray(gather_to_host(leaf))
        header = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
        digest.update(header.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
