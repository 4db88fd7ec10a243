"""The mesh: many devices as one, split along three axes.

`data` splits the rows of a batch; `fsdp` splits them too, and beside them every large parameter and
the optimiser's memory of it, gathered where it is used (Rajbhandari et al. 2020, ZeRO-3); `tensor`
splits heads, the feed-forward width and the vocabulary (Shoeybi et al. 2019). What lies where is
said by `fm.training.sharding`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from fm.attention.mesh import BATCH_AXES, TENSOR_AXIS
from fm.errors import UserError

MESH_AXES = (*BATCH_AXES, TENSOR_AXIS)
_ACCEPTED = (
    f"takes a whole number above 0 for some of the axes {', '.join(MESH_AXES)}, as data:2,fsdp:4"
)
_chosen: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many ways each axis splits; their product is the number of devices."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        if min(self.data, self.fsdp, self.tensor) < 1:
            raise UserError(f"--mesh={self}: {_ACCEPTED}")

    def __str__(self) -> str:
        return ",".join(f"{axis}:{getattr(self, axis)}" for axis in MESH_AXES)

    @property
    def num_devices(self) -> int:
        """Devices it takes."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_shards(self) -> int:
        """Ways a batch is split."""
        return self.data * self.fsdp

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over all devices of all processes, or over those given.

        Raises:
          UserError: there are more or fewer of them: none is to idle unnoticed.
        """
        devices = jax.devices() if devices is None else devices
        if len(devices) != self.num_devices:
            raise UserError(
                f"--mesh={self} takes {self.num_devices} devices, not the {len(devices)} there are; the "
                f"product of {', '.join(MESH_AXES)} must be their number"
            )
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        types = (AxisType.Auto,) * len(MESH_AXES)
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)


def parse_mesh(text: str) -> MeshConfig:
    """A mesh out of a flag like `data:2,fsdp:4`; an axis left out is 1.

    Raises:
      UserError: another axis, one given twice, or a size that is not a number above 0.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition(":")
        if axis not in MESH_AXES or axis in sizes or not re.fullmatch(r"[1-9][0-9]{0,6}", size):
            raise UserError(f"--mesh={text}: {_ACCEPTED}")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def config_from_mesh(mesh: Mesh | AbstractMesh) -> MeshConfig:
    """The sizes of a mesh that `MeshConfig.build` made."""
    return MeshConfig(**mesh.shape)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Training inside takes this mesh where it is given none."""
    token = _chosen.set(mesh)
    try:
        yield
    finally:
        _chosen.reset(token)


def current_mesh() -> Mesh | None:
    """The mesh of `over`."""
    return _chosen.get()
