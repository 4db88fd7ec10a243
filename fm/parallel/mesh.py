"""The device mesh, its three axes, and sharding constraints inside jitted code.

`data` splits the rows of a batch; `fsdp` splits them too, and also every large parameter with its
optimizer state, gathered where it is used (Rajbhandari et al. 2020, ZeRO-3); `tensor` splits
heads, the feed-forward dimension and the vocabulary (Shoeybi et al. 2019). `fm.parallel.sharding`
says which array is split how.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from fm.errors import UserError

BATCH_AXES, TENSOR_AXIS = ("data", "fsdp"), "tensor"
MESH_AXES = (*BATCH_AXES, TENSOR_AXIS)
_ACCEPTED = (
    f"takes a whole number above 0 for some of the axes {', '.join(MESH_AXES)}, such as "
    "data:2,fsdp:4"
)
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes data, fsdp and tensor; their product is the number of devices."""

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
        """Number of devices of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_shards(self) -> int:
        """Number of parts that the rows of a batch are split into."""
        return self.data * self.fsdp

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Returns the mesh over `devices`, by default all of the default device's platform.

        Raises:
          UserError: their number is not that of the mesh, so that none idles unnoticed.
        """
        devices = jax.devices(default_device().platform) if devices is None else devices
        if len(devices) != self.num_devices:
            raise UserError(
                f"--mesh={self} takes {self.num_devices} devices, not the {len(devices)} there "
                f"are; the product of {', '.join(MESH_AXES)} must be their number"
            )
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        types = (AxisType.Auto,) * len(MESH_AXES)
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)


def parse_mesh(text: str) -> MeshConfig:
    """Returns the mesh sizes in a flag like `data:2,fsdp:4`; an axis left out has size 1.

    Raises:
      UserError: an unknown or repeated axis, or a size that is not a number above 0.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition(":")
        if axis not in MESH_AXES or axis in sizes or not re.fullmatch(r"[1-9][0-9]{0,6}", size):
            raise UserError(f"--mesh={text}: {_ACCEPTED}")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def config_from_mesh(mesh: Mesh | AbstractMesh) -> MeshConfig:
    """Returns the axis sizes of a mesh built by `MeshConfig.build`, with its axes in any order.

    Raises:
      UserError: it has other axes, or axes that JAX does not shard over automatically.
    """
    types = sorted({kind.name for kind in mesh.axis_types})
    if set(mesh.axis_names) != set(MESH_AXES) or types != [AxisType.Auto.name]:
        raise UserError(
            f"a mesh with the axes {', '.join(map(str, mesh.axis_names))} of type "
            f"{', '.join(types)}: must have {', '.join(MESH_AXES)} of type Auto, as "
            "fm.parallel.mesh.MeshConfig(...).build() makes it"
        )
    return MeshConfig(**mesh.shape)


def active_mesh_config() -> MeshConfig | None:
    """Returns the axis sizes of the current JAX mesh; None without one and inside `shard_map`.

    Raises:
      UserError: see `config_from_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names or AxisType.Manual in mesh.axis_types:
        return None
    return config_from_mesh(mesh)


def default_device() -> Any:
    """Returns the device of this process that JAX puts arrays on by default."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(device, jax.Device):
        return device
    return jax.local_devices(backend=device)[0]


@contextlib.contextmanager
def default_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Context manager that sets the mesh of fm's training and model loading, not JAX's own.

    `jax.set_mesh` would move everything else inside to the mesh too: data preparation and
    evaluation, whose row counts it need not divide and which one process may run alone.

    Raises:
      UserError: see `config_from_mesh`.
    """
    if mesh is not None:
        config_from_mesh(mesh)
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def current_mesh() -> Mesh | None:
    """Returns the mesh set by the enclosing `default_mesh` block, or None."""
    return _mesh.get()


class MeshShardCounts(NamedTuple):
    """Numbers of parts that a mesh splits the batch rows and the attention heads into."""

    batch: int = 1
    heads: int = 1


def mesh_shard_counts() -> MeshShardCounts:
    """Returns the numbers of batch shards and of head shards under the current JAX mesh.

    (1, 1) without a mesh and inside `shard_map`.

    Raises:
      UserError: see `config_from_mesh`.
    """
    config = active_mesh_config() or MeshConfig()
    return MeshShardCounts(config.batch_shards, config.tensor)


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """Returns a traced array with its batch axis sharded over the mesh, other axes replicated."""
    if mesh_shard_counts() == MeshShardCounts():
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, BATCH_AXES))


def constrain_embedding_table(table_ID: jax.Array) -> jax.Array:
    """Returns a traced lookup table with rows sharded over `TENSOR_AXIS` and columns replicated.

    With its width split, the result of the lookup would have to be resharded.
    """
    shards = mesh_shard_counts()
    if shards == MeshShardCounts():
        return table_ID
    rows = None if table_ID.shape[0] % shards.heads else TENSOR_AXIS
    return jax.lax.with_sharding_constraint(table_ID, P(rows, None))
