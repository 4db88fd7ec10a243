"""The backward kernel for keys and values: queries are streamed past a block of keys.

All tiles are transposed here, a row per key: S^T = k q^T. Two warpgroups hold 64 keys and values
each (64 KB at head dimension 128) and sum over the queries of every head that reads them, so that
gradients of shared heads are added in float32, in a fixed order. Blocks of 64 queries at head
dimension 128, where the two sums take 128 registers a thread; of 128 at 64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from fm.attention.mosaic_gpu import common
from fm.attention.mosaic_gpu.block_ranges import block_at_step, num_masked_steps
from fm.attention.mosaic_gpu.common import COMPUTE_WARPGROUPS, TILE_ROWS

BLOCK_K = COMPUTE_WARPGROUPS * TILE_ROWS
BLOCK_Q = {64: 128, 128: 64}  # by head dimension
NUM_SLOTS = 3


def backward_dkv(inputs, do_BLHC, lse_BHL, delta_BHL, ranges_BK4, *, spec, ops):
    """Returns the gradients with respect to keys and values, dk_BSKC and dv_BSKC.

    Args:
      inputs: as for `forward`.
      do_BLHC: gradient by the output.
      lse_BHL: float32, from `forward`.
      delta_BHL: float32, sum over C of o do.
      ranges_BK4: `block_ranges` of the query blocks for each block of keys.
      spec: a `KernelSpec`.
      ops: `HopperOps` or `InterpretedOps`.
    """
    q_BLHC, k_BSKC, v_BSKC, rows_B3, segments = inputs
    B, S, K, C = k_BSKC.shape
    group = q_BLHC.shape[2] // K
    block_q, dtype = BLOCK_Q[C], q_BLHC.dtype
    tile = (TILE_ROWS, block_q)

    def kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, ranges_ref, rows_ref, *rest):
        q_segments_ref, k_segments_ref = rest[:2]  # only if the spec has segments
        dk_ref, dv_ref, scratch, barriers = rest[-4:]
        k_smem, v_smem, q_smem, do_smem, lse_smem, delta_smem = scratch[:6]
        q_segments_smem, k_segments_smem = scratch[6:]
        inputs_ready, q_barriers, do_barriers = barriers
        b, kv_head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        block, warpgroup = jax.lax.axis_index("block"), jax.lax.axis_index("warpgroup")
        block_range = tuple(ranges_ref[b, block, n] for n in range(4))
        num_steps = block_range[3] - block_range[0]  # for each query head

        def q_offset(step):
            return block_at_step(block_range, step) * block_q

        def queries_at(step):
            """The query head and the slice of queries of a step."""
            head = jax.lax.div(step, num_steps)
            queries = pl.ds(q_offset(step - head * num_steps), block_q)
            return kv_head * group + head, queries

        def tiles_at(ref):
            def at(step):
                h, queries = queries_at(step)
                return ref.at[b, queries, h]

            return at

        def row_values_at(ref):
            def at(step):
                h, queries = queries_at(step)
                return ref.at[b, h, queries]

            return at

        q_copies = [(tiles_at(q_ref), q_smem), (row_values_at(lse_ref), lse_smem)]
        do_copies = [(tiles_at(do_ref), do_smem), (row_values_at(delta_ref), delta_smem)]
        if spec.has_segments:
            q_copies.append(
                (lambda step: q_segments_ref.at[b, queries_at(step)[1]], q_segments_smem)
            )
        q_ring = common.RingBuffer(q_copies, q_barriers, NUM_SLOTS)
        do_ring = common.RingBuffer(do_copies, do_barriers, NUM_SLOTS)

        @pl.when(warpgroup == COMPUTE_WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(common.MEMORY_REGISTERS, action="decrease")
            common.run_ring_producer(num_steps * group, q_ring, do_ring)

        @pl.when(warpgroup < COMPUTE_WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(common.COMPUTE_REGISTERS, action="increase")
            k_offset = block * BLOCK_K + warpgroup * TILE_ROWS
            rows = pl.ds(k_offset, TILE_ROWS)
            ready = inputs_ready.at[warpgroup]
            copies = [(k_ref.at[b, rows, kv_head], k_smem), (v_ref.at[b, rows, kv_head], v_smem)]
            if spec.has_segments:
                copies.append((k_segments_ref.at[b, rows], k_segments_smem))
            for source, target in copies:
                plgpu.copy_gmem_to_smem(source, target.at[warpgroup], ready)
            plgpu.barrier_wait(ready)
            keys, values = k_smem.at[warpgroup], v_smem.at[warpgroup]
            row = tuple(rows_ref[b, n] for n in range(3))

            def visible(step, slot):
                refs = (None, None)
                if spec.has_segments:
                    refs = q_segments_smem.at[slot], k_segments_smem.at[warpgroup]
                return common.load_visible_tile(
                    spec, ops, tile, 1, q_offset(step), k_offset, row, *refs
                )

            def attend(masked, first_step):
                def body(step, carry):
                    dk, dv = carry
                    slot = q_ring.wait(first_step + step)
                    do_ring.wait(first_step + step)
                    queries, do = q_smem.at[slot], do_smem.at[slot]
                    scores, dp = ops.matmul_transposed((keys, queries), (values, do))
                    logits, softcap_grad = common.softcap_logits(spec, scores)
                    if masked:
                        logits = common.mask_logits(logits, visible(step, slot))
                    lse = ops.load(lse_smem.at[slot], 1)
                    delta = ops.load(delta_smem.at[slot], 1)
                    lse_tile = common.broadcast_tile(lse, tile, 1)
                    weights = jnp.exp2(logits * spec.log2_scale - lse_tile)
                    ds = weights * (dp - common.broadcast_tile(delta, tile, 1))
                    if softcap_grad is not None:
                        ds = ds * softcap_grad
                    dk, dv = ops.matmul_accumulate(
                        (dk, ds.astype(dtype), queries), (dv, weights.astype(dtype), do)
                    )
                    q_ring.release(slot)
                    do_ring.release(slot)
                    return dk, dv

                return body

            num_masked = num_masked_steps(block_range)

            def query_head(n, carry):
                first = n * num_steps
                carry = jax.lax.fori_loop(0, num_masked, attend(True, first), carry)
                return jax.lax.fori_loop(num_masked, num_steps, attend(False, first), carry)

            zeros = ops.full((TILE_ROWS, C))
            dk, dv = jax.lax.fori_loop(0, group, query_head, (zeros, zeros))
            keys[...] = (dk * spec.scale).astype(dtype)
            values[...] = dv.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(keys, dk_ref.at[b, rows, kv_head])
            plgpu.copy_smem_to_gmem(values, dv_ref.at[b, rows, kv_head])
            plgpu.wait_smem_to_gmem(0)

    segments_smem = (None, None)
    if spec.has_segments:
        segments_smem = (
            plgpu.SMEM((NUM_SLOTS, block_q), jnp.int32),
            plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.int32),
        )
    return plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(k_BSKC.shape, dtype)] * 2,
        scratch_types=[
            (
                common.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                common.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                common.swizzled_tiles(NUM_SLOTS, block_q, C, dtype),
                common.swizzled_tiles(NUM_SLOTS, block_q, C, dtype),
                plgpu.SMEM((NUM_SLOTS, block_q), jnp.float32),
                plgpu.SMEM((NUM_SLOTS, block_q), jnp.float32),
                *segments_smem,
            ),
            (
                plgpu.Barrier(num_arrivals=2 + spec.has_segments, num_barriers=COMPUTE_WARPGROUPS),
                common.ring_barriers(NUM_SLOTS, 2 + spec.has_segments),
                common.ring_barriers(NUM_SLOTS, 2),
            ),
        ],
        grid=(B, K, S // BLOCK_K),
        grid_names=("batch", "head", "block"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=ops.interpret,
    )(q_BLHC, k_BSKC, v_BSKC, do_BLHC, lse_BHL, delta_BHL, ranges_BK4, rows_B3, *segments)
