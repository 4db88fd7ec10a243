"""Shared by the three kernels: tile arithmetic, ring buffers in shared memory, chip operations."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

LOG2_E = math.log2(math.e)
# Warpgroups that compute (one more copies), and registers per thread of the two kinds.
COMPUTE_WARPGROUPS, MEMORY_REGISTERS, COMPUTE_REGISTERS = 2, 40, 232
TILE_ROWS = 64  # rows of a warpgroup's tile
# Before jax 0.12 `load` takes an index; since then the reference carries it.
_WHOLE = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()


# --- A tile of scores, the same on the chip and in the interpreter ---


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """Static options of an attention kernel: kind of mask, scale of the scores and softcap.

    Attributes:
      causal: as in `Mask`.
      window: as in `Mask`.
      window_right: as in `Mask`.
      has_prefix: whether batch rows have a prefix.
      has_kv_length: whether some keys of the padded arrays are invalid.
      has_segments: whether positions have segments.
      scale: positive factor on the scores.
      softcap: positive or None.
    """

    causal: bool
    window: int | None
    window_right: int | None
    has_prefix: bool
    has_kv_length: bool
    has_segments: bool
    scale: float
    softcap: float | None

    @property
    def log2_scale(self) -> float:
        """Factor from the output of `softcap_logits` to base-2 logits."""
        return LOG2_E * (self.scale if self.softcap is None else self.softcap)


def visible_tile(spec: KernelSpec, i, j, prefix, valid, q_segments, k_segments):
    """Returns the boolean mask of a tile of scores, or None if every query sees every key.

    `i` and `j` are absolute positions of the queries and keys, `prefix` and `valid` numbers, the
    segments of queries and keys all in the shape of the tile.
    """
    terms = []
    if spec.causal:
        past = j <= i
        terms.append(past | (j < prefix) if spec.has_prefix else past)
    if spec.window is not None:
        terms.append(j > i - spec.window)
    if spec.window_right is not None:
        terms.append(j < i + spec.window_right)
    if spec.has_kv_length:
        terms.append(j < valid)
    if spec.has_segments:
        terms.append(q_segments == k_segments)
    if not terms:
        return None
    visible = terms[0]
    for term in terms[1:]:
        visible = visible & term
    return visible


def softcap_logits(spec: KernelSpec, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns tanh(scaled q k^T / cap) and its derivative; (q k^T, None) without a softcap.

    The tanh of a soft cap comes from one exp2 and one division: the chip's own tanh is accurate
    to 11 bits only, which a cap of 50 turns into an error of 0.02 in a logit.
    """
    if spec.softcap is None:
        return products, None
    power = jnp.exp2(products * (2 * LOG2_E * spec.scale / spec.softcap))
    capped = 1.0 - 2.0 / (1.0 + power)
    return capped, 1.0 - capped * capped


def mask_logits(logits: jax.Array, visible: jax.Array | None) -> jax.Array:
    """Returns the logits with minus infinity where `visible` is False; None masks nothing."""
    return logits if visible is None else jnp.where(visible, logits, -jnp.inf)


def broadcast_tile(values: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
    """Returns one value per row (axis 0) or per column (axis 1), broadcast to a tile."""
    return jax.lax.broadcast_in_dim(values, shape, (axis,))


def online_softmax_step(spec: KernelSpec, logits, row_max, row_sum):
    """Returns a tile's softmax numerators, the accumulator's decay, new row maxima and row sums.

    Source: Milakov & Gimelshein 2018.

    Args:
      spec: for its `log2_scale`.
      logits: a tile, one row per query.
      row_max: the largest logit of each row so far, times `log2_scale`.
      row_sum: the sum of each row's weights so far.

    Returns:
      The tile's weights, the factor on what was accumulated before, new `row_max` and `row_sum`.
    """
    new_max = jnp.maximum(row_max, jnp.max(logits, axis=1) * spec.log2_scale)
    # The maximum of a row that has seen no key is -inf: with 0 instead its weights are zeros.
    base = jnp.where(new_max == -jnp.inf, 0.0, new_max)
    weights = jnp.exp2(logits * spec.log2_scale - broadcast_tile(base, logits.shape, 0))
    decay = jnp.exp2(row_max - base)
    return weights, decay, new_max, row_sum * decay + jnp.sum(weights, axis=1)


def finish_softmax(row_max, row_sum):
    """Returns each row's 1 / sum (0 if it saw no key) and base-2 logsumexp of an online softmax.

    The logsumexp of such a row is plus infinity, so that its weights in the backward are zeros.
    """
    empty = row_sum == 0.0
    safe_sum = jnp.where(empty, 1.0, row_sum)
    inverse = jnp.where(empty, 0.0, 1.0 / safe_sum)
    return inverse, jnp.where(empty, jnp.inf, row_max + jnp.log(safe_sum) * LOG2_E)


def load_visible_tile(spec, ops, shape, q_axis, q_offset, k_offset, row, q_segments, k_segments):
    """Returns the boolean mask of a tile (None: all visible), reading segments from shared memory.

    `row` is (q_start, prefix, valid keys) of the batch row; the offsets are those of the tile.
    """
    start, prefix, valid = row
    k_axis = 1 - q_axis
    if spec.has_segments:
        q_segments = broadcast_tile(ops.load(q_segments, q_axis), shape, q_axis)
        k_segments = broadcast_tile(ops.load(k_segments, k_axis), shape, k_axis)
    i = ops.iota(shape, q_axis) + (q_offset + start)
    j = ops.iota(shape, k_axis) + k_offset
    return visible_tile(spec, i, j, prefix, valid, q_segments, k_segments)


# --- Blocks streamed through shared memory: one warpgroup copies, the others compute ---


def swizzled_tiles(count: int, rows: int, width: int, dtype) -> Any:
    """Returns a `plgpu.SMEM` spec [count, rows, width], tiled 8 x 64 with a 128-byte swizzle."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, width), dtype, transforms=transforms)


def ring_barriers(num_slots: int, num_copies: int) -> tuple[Any, Any]:
    """Returns the `ready` and `free` barriers of a `RingBuffer` with `num_copies` per slot."""
    return (
        plgpu.Barrier(num_arrivals=num_copies, num_barriers=num_slots),
        plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS, num_barriers=num_slots),
    )


@dataclasses.dataclass(frozen=True)
class RingBuffer:
    """Shared-memory ring: one warpgroup copies blocks into its slots, others read and free them.

    Attributes:
      copies: pairs of a function from a step to a slice of global memory, and the shared memory
        it is copied to.
      barriers: `ready` (the bytes of a slot have arrived) and `free` (a slot has been read).
      num_slots: slots of the ring.
    """

    copies: Sequence[tuple[Callable[[jax.Array], Any], Any]]
    barriers: tuple[Any, Any]
    num_slots: int

    def slot(self, step):
        """The slot of a step's blocks."""
        return jax.lax.rem(step, jnp.int32(self.num_slots))

    def wait(self, step):
        """Waits for a step's blocks; returns their slot."""
        slot = self.slot(step)
        plgpu.barrier_wait(self.barriers[0].at[slot])
        return slot

    def release(self, slot) -> None:
        """Marks a slot as read by this warpgroup."""
        plgpu.barrier_arrive(self.barriers[1].at[slot])

    def fill(self, step) -> None:
        """Copies a step's blocks once their slot is free."""
        ready, free = self.barriers
        slot = self.slot(step)

        @pl.when(step >= self.num_slots)
        def _reuse():
            plgpu.barrier_wait(free.at[slot])

        for source, ring in self.copies:
            plgpu.copy_gmem_to_smem(source(step), ring.at[slot], ready.at[slot])


def run_ring_producer(num_steps, *rings: RingBuffer) -> None:
    """Runs the producer warpgroup: copies `num_steps` blocks through each ring buffer."""

    def fill(step, _):
        for ring in rings:
            ring.fill(step)

    def drain(step, _):
        for ring in rings:

            @pl.when(step >= num_steps - ring.num_slots)
            def _last(ring=ring):
                plgpu.barrier_wait(ring.barriers[1].at[ring.slot(step)])

    jax.lax.fori_loop(0, num_steps, fill, None)
    # Return only when no block is in use and every arrival at a barrier was waited for.
    most = max(ring.num_slots for ring in rings)
    jax.lax.fori_loop(jnp.maximum(0, num_steps - most), num_steps, drain, None)


# --- Operations of the chip that the interpreter of Mosaic GPU kernels does not have ---


def _no_op() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class HopperOps:
    """Operations of a warpgroup on GPUs of compute capability 9.0, accumulating in registers."""

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

    def matmul_transposed(self, *pairs, meanwhile=_no_op):
        """a b^T for each pair of tiles in shared memory, float32."""

        def multiply(*sums):
            for sum_ref, (a, b) in zip(sums, pairs, strict=True):
                plgpu.wgmma(sum_ref, a, plgpu.transpose_ref(b, (1, 0)))
            meanwhile()
            return tuple(sum_ref[...] for sum_ref in sums)

        sums = (plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[0]), jnp.float32) for a, b in pairs)
        return pl.run_scoped(multiply, *sums)

    def matmul_accumulate(self, *triples, meanwhile=_no_op):
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
    """The operations of `HopperOps` on plain arrays, to run the kernels in Pallas' interpreter.

    `interpret` holds the interpreter's parameters.

    All else in the kernels (grid, warpgroups, barriers, copies, loops) is interpreted as it is.
    """

    interpret: Any

    def full(self, shape, value=0.0):
        """A constant tile, or a constant per row of a tile."""
        return jnp.full(shape, value, jnp.float32)

    def iota(self, shape, axis):
        """Row numbers (axis 0) or column numbers (axis 1) of a tile."""
        return jax.lax.broadcasted_iota(jnp.int32, shape, axis)

    def load(self, ref, axis):
        """One value per row (axis 0) or column (axis 1) of a tile."""
        del axis
        return ref[...]

    def matmul_transposed(self, *pairs, meanwhile=_no_op):
        """a b^T for each pair of tiles, float32."""
        sums = tuple(_matmul(a[...], b[...].T) for a, b in pairs)
        meanwhile()
        return sums

    def matmul_accumulate(self, *triples, meanwhile=_no_op):
        """sum + a b for each triple of tiles."""
        sums = tuple(total + _matmul(a.astype(b.dtype), b[...]) for total, a, b in triples)
        meanwhile()
        return sums


def _matmul(a, b):
    # XLA:CPU does not support every 16-bit product; in float32 each product is exact.
    return jnp.dot(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
