"""Estimates the bytes and seconds of communication in a train step on a mesh.

Collectives are rings: each of n devices sends (n - 1) / n of an array to gather it or to
reduce-scatter it, and twice that to all-reduce it. Counted is what XLA sends for the sharding
rules, in the dtype of the matrix products; latency and what the compiler adds are left out.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fm.model.config import ModelConfig
from fm.parallel import sharding
from fm.parallel.mesh import MESH_AXES, MeshConfig
from fm.planning.chips import Chip
from fm.planning.memory import bytes_per_device, gathered_elements_per_device, state_shapes
from fm.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
    """Estimated bytes and seconds per step of one kind of collective over one mesh axis.

    Attributes:
      description: of the collective.
      axis: of the mesh.
      bytes: sent by one device in a step.
      seconds: that this takes on its own.
    """

    description: str
    axis: str
    bytes: float
    seconds: float


def estimate_communication(
    model_config: ModelConfig,
    optimizer_config: OptimizerConfig,
    mesh: MeshConfig,
    chip: Chip,
    tokens_per_device: int,
    grad_accum_steps: int = 1,
) -> list[CollectiveCost]:
    """Returns the estimated cost of each kind of collective in one train step.

    Args:
      model_config: of the model.
      optimizer_config: of the optimizer.
      mesh: sizes of the axes.
      chip: of every device.
      tokens_per_device: tokens of a microbatch on one device, rows times length.
      grad_accum_steps: microbatches in a step.
    """
    params = state_shapes(model_config, optimizer_config).params
    specs = sharding.param_specs(params, mesh)
    itemsize = jnp.dtype(model_config.dtype).itemsize
    # Parameters are stored in float32 and sent in the model's dtype.
    shard = bytes_per_device(params, specs, mesh) / 4 * itemsize
    gathered = gathered_elements_per_device(params, specs, mesh) * itemsize
    residual = tokens_per_device * model_config.d_model * itemsize
    # Two sums forward and two backward in each layer, the first again where it is rematerialized;
    # three around the layers.
    recomputes = model_config.remat_policy in ("attention", "full")
    num_sums = model_config.num_layers * (5 if recomputes else 4) + 3
    collectives = []
    for axis, description, size in (
        ("fsdp", "parameters, gathered for each pass", 2 * gathered),
        ("fsdp", "gradients, reduce-scattered", gathered),
        ("data", "gradients, all-reduced", 2 * shard),
        ("tensor", "residuals, all-reduced", 2 * num_sums * residual),
    ):
        n = getattr(mesh, axis)
        if n > 1:
            sent = grad_accum_steps * size * (n - 1) / n
            seconds = sent / axis_bandwidth(mesh, axis, chip)
            collectives.append(CollectiveCost(description, axis, sent, seconds))
    return collectives


def axis_bandwidth(mesh: MeshConfig, axis: str, chip: Chip) -> float:
    """Returns the bandwidth of one device along a mesh axis, in bytes/s one way.

    Neighbors on the last axis are neighbors in the fast network. An axis that leaves the fast
    network uses the network links of all its devices within one server together.
    """
    stride = 1
    for name in MESH_AXES[MESH_AXES.index(axis) + 1 :]:
        stride *= getattr(mesh, name)
    n = getattr(mesh, axis)
    if n * stride <= chip.fast_network_size:
        return chip.link_bandwidth
    per_server = max(1, min(n, chip.fast_network_size // stride))
    return min(chip.link_bandwidth, chip.network_bandwidth * per_server)
