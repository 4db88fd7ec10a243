"""A mesh of devices as the mathematics meets it: rows of a batch here, heads there.

The mesh is the one of `jax.set_mesh`, its axes those of `fm.parallel.mesh`. Without one, on a
mesh of other axes and inside `shard_map`, nothing is split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fm.attention.mask import Mask
from fm.errors import UserError

BATCH_AXES, TENSOR_AXIS = ("data", "fsdp"), "tensor"


class MeshShards(NamedTuple):
    """Into how many parts rows and heads are split."""

    batch: int = 1
    heads: int = 1


def mesh_shards() -> MeshShards:
    """Those of the mesh this is traced under."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = {*BATCH_AXES, TENSOR_AXIS}
    if set(mesh.axis_names) != axes or set(mesh.axis_types) != {AxisType.Auto}:
        return MeshShards()
    return MeshShards(
        mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]], mesh.shape[TENSOR_AXIS]
    )


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """The array with this axis, of rows, split over the mesh, and every other whole."""
    if mesh_shards() == MeshShards():
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, BATCH_AXES))


def constrain_embedding_table(table_ID: jax.Array) -> jax.Array:
    """A table of rows to be looked up, its width whole, its rows over the devices of `HEADS`.

    Looked up in parts of its width it would be the result that has to change places.
    """
    if mesh_shards() == MeshShards():
        return table_ID
    return jax.lax.with_sharding_constraint(
        table_ID, P(None if table_ID.shape[0] % mesh_shards().heads else TENSOR_AXIS, None)
    )


def sharded_attention(
    attend: Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array],
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    mask: Mask,
) -> jax.Array:
    """Attention where each device attends for its own rows and heads, without communication.

    So every implementation runs on a mesh, kernels that XLA cannot split among them. Where the
    mesh splits heads further than there are key heads, these are repeated to fill it.

    Raises:
      UserError: the mesh does not divide the rows or the query heads.
    """
    rows, heads = mesh_shards()
    (B, _, H, _), K = q_BLHC.shape, k_BSKC.shape[2]
    for name, size, parts in (("rows", B, rows), ("query heads", H, heads)):
        if size % parts:
            raise UserError(f"attention over {size} {name} cannot be split over {parts} devices")
    times = next(n for n in range(1, H // K + 1) if not (H // K % n or n * K % heads))
    k_BSKC, v_BSKC = (jnp.repeat(x, times, axis=2) if times > 1 else x for x in (k_BSKC, v_BSKC))
    mask = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), mask)
    spec = P(BATCH_AXES, None, TENSOR_AXIS, None)
    # The implementations' loops start from constants, which the check takes for unlike carries.
    split = jax.shard_map(
        attend, in_specs=(spec, spec, spec, P(BATCH_AXES)), out_specs=spec, check_vma=False
    )
    return split(q_BLHC, k_BSKC, v_BSKC, mask)
