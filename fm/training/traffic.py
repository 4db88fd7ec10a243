"""What the devices of a mesh send each other in a train step, counted from shapes and rules.

Ring collectives: of n devices each sends (n - 1) / n of an array to gather it or to reduce and
scatter it, and twice that to reduce it everywhere. Sent is what XLA sends of these rules: in the
dtype of the products. Latency is left out, and so is what a compiler may add.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from fm.model.config import ModelConfig
from fm.training import footprint, meshes, sharding
from fm.training.chips import Chip
from fm.training.meshes import MeshConfig
from fm.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Sent:
    """One kind of collective, over one axis.

    Attributes:
      what: in words.
      axis: of the mesh.
      bytes: one device sends, a step.
      seconds: that takes, alone.
    """

    what: str
    axis: str
    bytes: float
    seconds: float


def sent(
    model: ModelConfig,
    rule: OptimizerConfig,
    mesh: MeshConfig,
    chip: Chip,
    pieces: int,
    accumulate: int = 1,
) -> list[Sent]:
    """By axis, what there is to send.

    Args:
      model: the model's config.
      rule: the optimiser's.
      mesh: sizes of the axes.
      chip: of every device.
      pieces: that one device reads at a time, rows times length.
      accumulate: how often in a step.
    """
    params = footprint.state_shapes(model, rule)["params"]
    specs = sharding.specs(params, mesh)
    a = jnp.dtype(model.dtype).itemsize
    # float32 at rest, `a` bytes on the way.
    mine = footprint.on_one(params, specs, mesh) / 4 * a
    whole = footprint.gathered(params, specs, mesh) * a
    residual = pieces * model.width * a
    # Each layer's two sums forward and two backward; the first anew where it was not kept; what
    # enters and what leaves the layers.
    sums = model.depth * (5 if model.remat in ("attention", "full") else 4) + 3
    found = []
    for axis, what, size in (
        ("fsdp", "parameters, gathered for each pass", 2 * whole),
        ("fsdp", "gradients, reduced and scattered", whole),
        ("data", "gradients, reduced everywhere", 2 * mine),
        ("tensor", "residuals, reduced everywhere", 2 * sums * residual),
    ):
        n = getattr(mesh, axis)
        if n > 1:
            each = accumulate * size * (n - 1) / n
            found.append(Sent(what, axis, each, each / rate(mesh, axis, chip)))
    return found


def rate(mesh: MeshConfig, axis: str, chip: Chip) -> float:
    """Bytes/s one way that a device sends along an axis.

    Neighbours on the last axis are neighbours in the fast network; an axis that leaves it sends
    through the network of all its devices within one server together.
    """
    within = 1
    for name in meshes.AXES[meshes.AXES.index(axis) + 1 :]:
        within *= getattr(mesh, name)
    n = getattr(mesh, axis)
    if n * within <= chip.joined:
        return chip.link
    return min(chip.link, chip.network * max(1, min(n, chip.joined // within)))
