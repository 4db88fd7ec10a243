"""Blocks streamed through shared memory: one warpgroup copies, the others compute.

A stream is a ring of slots. The copying warpgroup fills a slot (`ready` tells when its bytes have
arrived), the computing ones use it and say so (`free`), and it is filled again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from fm.attention.mosaic_gpu.machine import COMPUTE_WARPGROUPS


def swizzled_tiles(count: int, rows: int, width: int, dtype) -> Any:
    """Shared memory for tiles that the tensor cores read: 128-byte swizzled, 8 x 64 at a time."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, width), dtype, transforms=transforms)


def ring_barriers(slots: int, copies: int) -> tuple[Any, Any]:
    """The `ready` and `free` barriers of a stream with so many copies to a slot."""
    return (
        plgpu.Barrier(num_arrivals=copies, num_barriers=slots),
        plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS, num_barriers=slots),
    )


@dataclasses.dataclass(frozen=True)
class RingBuffer:
    """One ring.

    Attributes:
      copies: of (step) to a slice of global memory, and the ring of shared memory it goes to.
      bars: the `ready` and `free` barriers, a pair for each slot.
      slots: how many.
    """

    copies: Sequence[tuple[Callable[[jax.Array], Any], Any]]
    bars: tuple[Any, Any]
    slots: int

    @property
    def ready(self):
        """Barriers that a slot's bytes have arrived."""
        return self.bars[0]

    @property
    def free(self):
        """Barriers that a slot has been used."""
        return self.bars[1]

    def slot(self, step):
        """Where a step's blocks are."""
        return jax.lax.rem(step, jnp.int32(self.slots))

    def wait(self, step):
        """Waits for a step's blocks; gives their slot."""
        slot = self.slot(step)
        plgpu.barrier_wait(self.ready.at[slot])
        return slot

    def release(self, slot) -> None:
        """This warpgroup has done with a slot."""
        plgpu.barrier_arrive(self.free.at[slot])


def fill_ring_buffers(steps, *streams: RingBuffer) -> None:
    """The copying warpgroup's part: `steps` blocks through each stream."""

    def fill(step, _):
        for stream in streams:
            slot = stream.slot(step)

            @pl.when(step >= stream.slots)
            def _reuse(stream=stream, slot=slot):
                plgpu.barrier_wait(stream.free.at[slot])

            for source, ring in stream.copies:
                plgpu.copy_gmem_to_smem(source(step), ring.at[slot], stream.ready.at[slot])

    def drain(step, _):
        for stream in streams:

            @pl.when(step >= steps - stream.slots)
            def _last(stream=stream):
                plgpu.barrier_wait(stream.free.at[stream.slot(step)])

    jax.lax.fori_loop(0, steps, fill, None)
    # Not to leave while blocks are in use, and every arrival seen by someone.
    most = max(stream.slots for stream in streams)
    jax.lax.fori_loop(jnp.maximum(0, steps - most), steps, drain, None)
