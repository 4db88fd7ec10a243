"""The chip's operations that the interpreter of Mosaic GPU kernels does not have.

`Hopper` is what runs: warpgroup matrix products with accumulators in registers, and arrays laid
out over the registers of a warpgroup as those want them. `Interpreted` says the same in plain
arrays. All else in the kernels (grid, warpgroups, barriers, copies, loops) is the same text in
both, and is interpreted as it stands.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

# Until jax 0.12 a load takes the part that is meant; a reference says it itself.
_WHOLE = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()
COMPUTE_WARPGROUPS, MEMORY_REGISTERS, COMPUTE_REGISTERS = 2, 40, 232


def no_op() -> None:
    """What to do meanwhile, by default."""


@dataclasses.dataclass(frozen=True)
class HopperOps:
    """Operations of one warpgroup of compute capability 9.0."""

    interpret: None = None

    def full(self, shape, value=0.0):
        """A constant tile, or a constant per row of a tile."""
        layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
        return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    def iota(self, shape, axis):
        """Row numbers (axis 0) or column numbers (axis 1) of a tile."""
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def load(self, ref, axis):
        """One value per row (axis 0) or column (axis 1) of a tile, from shared memory."""
        return plgpu.load(ref, *_WHOLE, layout=plgpu.Layout.WGMMA.reduce(1 - axis))

    def matmul_transposed(self, *pairs, meanwhile=no_op):
        """a b^T for each pair of tiles in shared memory, float32."""

        def multiply(*sums):
            for sum_ref, (a, b) in zip(sums, pairs, strict=True):
                plgpu.wgmma(sum_ref, a, plgpu.transpose_ref(b, (1, 0)))
            meanwhile()
            return tuple(sum_ref[...] for sum_ref in sums)

        sums = (plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[0]), jnp.float32) for a, b in pairs)
        return pl.run_scoped(multiply, *sums)

    def matmul_accumulate(self, *triples, meanwhile=no_op):
        """sum + a b for each triple; the sum and a in registers, b in shared memory."""

        def multiply(sums):
            for sum_ref, (_, a, b) in zip(sums, triples, strict=True):
                plgpu.wgmma(sum_ref, a.astype(b.dtype), b)
            meanwhile()

        return pl.run_state(multiply)(
            tuple(plgpu.WGMMAAccumulatorRef.init(total) for total, _, _ in triples)
        )


@dataclasses.dataclass(frozen=True)
class InterpretedOps:
    """The same in plain arrays.

    Attributes:
      interpret: parameters of the interpreter.
    """

    interpret: Any

    def full(self, shape, value=0.0):
        """As `Hopper.filled`."""
        return jnp.full(shape, value, jnp.float32)

    def iota(self, shape, axis):
        """As `Hopper.positions`."""
        return jax.lax.broadcasted_iota(jnp.int32, shape, axis)

    def load(self, ref, axis):
        """As `Hopper.load`."""
        del axis
        return ref[...]

    def matmul_transposed(self, *pairs, meanwhile=no_op):
        """As `Hopper.products`."""
        sums = tuple(_multiply(a[...], b[...].T) for a, b in pairs)
        meanwhile()
        return sums

    def matmul_accumulate(self, *triples, meanwhile=no_op):
        """As `Hopper.add_products`."""
        sums = tuple(total + _multiply(a.astype(b.dtype), b[...]) for total, a, b in triples)
        meanwhile()
        return sums


def _multiply(a, b):
    # XLA:CPU has no thunk for every product of 16-bit floats; in float32 each product is exact.
    return jnp.dot(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
