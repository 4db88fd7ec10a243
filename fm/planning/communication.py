"""What the devices of a mesh send each other in a train step, counted from shapes and rules.

Ring collectives: of n devices each sends (n - 1) / n of an array to gather it or to reduce and
scatter it, and twice that to reduce it everywhere. Sent is what XLA sends of these rules: in the
dtype of the products. Latency is left out, and so is what a compiler may add.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fm.model.config import ModelConfig
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.parallel.mesh import MeshConfig
from fm.planning import memory
from fm.planning.chips import Chip
from fm.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
    """One kind of collective, over one axis.

    Attributes:
      description: in words.
      axis: of the mesh.
      bytes: one device sends, a step.
      seconds: that takes, alone.
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
    """By axis, what there is to send.

    Args:
      model_config: the model's config.
      optimizer_config: the optimiser's.
      mesh: sizes of the axes.
      chip: of every device.
      tokens_per_device: that one device reads at a time, rows times length.
      grad_accum_steps: how often in a step.
    """
    params = memory.state_shapes(model_config, optimizer_config)["params"]
    specs = sharding.param_specs(params, mesh)
    a = jnp.dtype(model_config.dtype).itemsize
    # float32 at rest, `a` bytes on the way.
    mine = memory.bytes_per_device(params, specs, mesh) / 4 * a
    whole = memory.gathered_elements(params, specs, mesh) * a
    residual = tokens_per_device * model_config.d_model * a
    # Each layer's two sums forward and two backward; the first anew where it was not kept; what
    # enters and what leaves the layers.
    sums = (
        model_config.num_layers * (5 if model_config.remat_policy in ("attention", "full") else 4)
        + 3
    )
    found = []
    for axis, what, size in (
        ("fsdp", "parameters, gathered for each pass", 2 * whole),
        ("fsdp", "gradients, reduced and scattered", whole),
        ("data", "gradients, reduced everywhere", 2 * mine),
        ("tensor", "residuals, reduced everywhere", 2 * sums * residual),
    ):
        n = getattr(mesh, axis)
        if n > 1:
            each = grad_accum_steps * size * (n - 1) / n
            found.append(CollectiveCost(what, axis, each, each / axis_bandwidth(mesh, axis, chip)))
    return found


def axis_bandwidth(mesh: MeshConfig, axis: str, chip: Chip) -> float:
    """Bytes/s one way that a device sends along an axis.

    Neighbours on the last axis are neighbours in the fast network; an axis that leaves it sends
    through the network of all its devices within one server together.
    """
    within = 1
    for name in meshes.MESH_AXES[meshes.MESH_AXES.index(axis) + 1 :]:
        within *= getattr(mesh, name)
    n = getattr(mesh, axis)
    if n * within <= chip.fast_network_size:
        return chip.link_bandwidth
    return min(
        chip.link_bandwidth,
        chip.network_bandwidth * max(1, min(n, chip.fast_network_size // within)),
    )
