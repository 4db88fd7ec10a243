"""The forward kernel: online softmax over streamed keys (Dao et al. 2022; Shah et al. 2024).

A program takes 128 queries of one head: two warpgroups compute 64 of them each, a third copies.
Shared memory at head dimension 128: queries (then output) 32 KB, two slots of 128 keys and values
128 KB; at 64: 16 KB, four slots of 32 KB. Registers of a computing warpgroup (232 a thread): 64
for the scores of 64 x 128, 32 for the weights in 16 bits, C / 2 for the output. The two take
turns: one multiplies while the other exponentiates (FlashAttention-3's ping-pong).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from fm.attention.mosaic_gpu import common
from fm.attention.mosaic_gpu.block_ranges import block_at_step, num_masked_steps
from fm.attention.mosaic_gpu.common import COMPUTE_WARPGROUPS, TILE_ROWS

BLOCK_Q, BLOCK_K = COMPUTE_WARPGROUPS * TILE_ROWS, 128
NUM_SLOTS = {64: 4, 128: 2}  # by head dimension


def forward(inputs, ranges_BQ4, *, spec, ops):
    """Returns the attention output o_BLHC and the base-2 logsumexp of each row's scores.

    Args:
      inputs: q_BLHC, bfloat16 or float16, L a multiple of `BLOCK_Q`, C 64 or 128; k_BSKC and
        v_BSKC, S a multiple of `BLOCK_K`; rows_B3, int32, (q_start, prefix, valid keys) of each
        batch row; segments, int32 of queries [B, L] and keys [B, S], or empty.
      ranges_BQ4: `block_ranges` of the key blocks for each block of queries.
      spec: a `KernelSpec`.
      ops: `HopperOps` or `InterpretedOps`.

    Returns:
      o_BLHC; float32 [B, H, L], plus infinity for a row that sees no key.
    """
    q_BLHC, k_BSKC, v_BSKC, rows_B3, segments = inputs
    B, L, H, C = q_BLHC.shape
    group = H // k_BSKC.shape[2]
    num_slots, dtype = NUM_SLOTS[C], q_BLHC.dtype
    tile = (TILE_ROWS, BLOCK_K)

    def kernel(q_ref, k_ref, v_ref, ranges_ref, rows_ref, *rest):
        q_segments_ref, k_segments_ref = rest[:2]  # only if the spec has segments
        o_ref, lse_ref, scratch, barriers = rest[-4:]
        q_smem, k_smem, v_smem, lse_smem, q_segments_smem, k_segments_smem = scratch
        q_ready, turns, k_barriers, v_barriers = barriers
        b, h = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        # Under a causal mask the last queries take longest: they go first.
        block = L // BLOCK_Q - 1 - jax.lax.axis_index("block")
        kv_head = jax.lax.div(h, jnp.int32(group))
        warpgroup = jax.lax.axis_index("warpgroup")
        block_range = tuple(ranges_ref[b, block, n] for n in range(4))
        num_steps = block_range[3] - block_range[0]

        def k_offset(step):
            return block_at_step(block_range, step) * BLOCK_K

        def keys_at(ref):
            return lambda step: ref.at[b, pl.ds(k_offset(step), BLOCK_K), kv_head]

        k_copies = [(keys_at(k_ref), k_smem)]
        if spec.has_segments:
            k_copies.append(
                (lambda step: k_segments_ref.at[b, pl.ds(k_offset(step), BLOCK_K)], k_segments_smem)
            )
        k_ring = common.RingBuffer(k_copies, k_barriers, num_slots)
        v_ring = common.RingBuffer([(keys_at(v_ref), v_smem)], v_barriers, num_slots)

        @pl.when(warpgroup == COMPUTE_WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(common.MEMORY_REGISTERS, action="decrease")
            common.run_ring_producer(num_steps, k_ring, v_ring)

        @pl.when(warpgroup < COMPUTE_WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(common.COMPUTE_REGISTERS, action="increase")
            q_offset = block * BLOCK_Q + warpgroup * TILE_ROWS
            queries = q_smem.at[warpgroup]
            ready = q_ready.at[warpgroup]
            rows = pl.ds(q_offset, TILE_ROWS)
            plgpu.copy_gmem_to_smem(q_ref.at[b, rows, h], queries, ready)
            if spec.has_segments:
                plgpu.copy_gmem_to_smem(
                    q_segments_ref.at[b, rows], q_segments_smem.at[warpgroup], ready
                )
            plgpu.barrier_wait(ready)
            row = tuple(rows_ref[b, n] for n in range(3))

            def take_turn():
                plgpu.barrier_arrive(turns)
                plgpu.barrier_wait(turns)

            def visible(step, slot):
                refs = (None, None)
                if spec.has_segments:
                    refs = q_segments_smem.at[warpgroup], k_segments_smem.at[slot]
                return common.load_visible_tile(
                    spec, ops, tile, 0, q_offset, k_offset(step), row, *refs
                )

            def attend(masked):
                def body(step, carry):
                    o, row_max, row_sum = carry
                    slot = k_ring.wait(step)
                    (scores,) = ops.matmul_transposed(
                        (queries, k_smem.at[slot]), meanwhile=take_turn
                    )
                    logits, _ = common.softcap_logits(spec, scores)
                    if masked:
                        logits = common.mask_logits(logits, visible(step, slot))
                    k_ring.release(slot)
                    weights, decay, row_max, row_sum = common.online_softmax_step(
                        spec, logits, row_max, row_sum
                    )
                    o = o * common.broadcast_tile(decay, (TILE_ROWS, C), 0)
                    o, row_max, row_sum, weights = jax.lax.optimization_barrier(
                        (o, row_max, row_sum, weights.astype(dtype))
                    )
                    plgpu.barrier_arrive(turns)
                    v_ring.wait(step)
                    plgpu.barrier_wait(turns)
                    (o,) = ops.matmul_accumulate((o, weights, v_smem.at[slot]))
                    v_ring.release(slot)
                    return o, row_max, row_sum

                return body

            pl.when(warpgroup == 1)(take_turn)
            carry = (
                ops.full((TILE_ROWS, C)),
                ops.full((TILE_ROWS,), -jnp.inf),
                ops.full((TILE_ROWS,)),
            )
            num_masked = num_masked_steps(block_range)
            carry = jax.lax.fori_loop(0, num_masked, attend(True), carry)
            o, row_max, row_sum = jax.lax.fori_loop(num_masked, num_steps, attend(False), carry)
            pl.when(warpgroup == 0)(take_turn)
            inverse, lse = common.finish_softmax(row_max, row_sum)
            queries[...] = (o * common.broadcast_tile(inverse, (TILE_ROWS, C), 0)).astype(dtype)
            lse_smem.at[warpgroup][...] = lse
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, o_ref.at[b, rows, h])
            plgpu.copy_smem_to_gmem(lse_smem.at[warpgroup], lse_ref.at[b, h, rows])
            plgpu.wait_smem_to_gmem(0)

    num_copies = 1 + spec.has_segments
    segments_smem = (None, None)
    if spec.has_segments:
        segments_smem = (
            plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.int32),
            plgpu.SMEM((num_slots, BLOCK_K), jnp.int32),
        )
    return plgpu.kernel(
        kernel,
        out_type=[
            jax.ShapeDtypeStruct(q_BLHC.shape, dtype),
            jax.ShapeDtypeStruct((B, H, L), jnp.float32),
        ],
        scratch_types=[
            (
                common.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                common.swizzled_tiles(num_slots, BLOCK_K, C, dtype),
                common.swizzled_tiles(num_slots, BLOCK_K, C, dtype),
                plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.float32),
                *segments_smem,
            ),
            (
                plgpu.Barrier(num_arrivals=num_copies, num_barriers=COMPUTE_WARPGROUPS),
                plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
                common.ring_barriers(num_slots, num_copies),
                common.ring_barriers(num_slots, 1),
            ),
        ],
        # The last axis runs fastest: one head's keys stay in the L2 cache while its blocks run.
        grid=(B, H, L // BLOCK_Q),
        grid_names=("batch", "head", "block"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=ops.interpret,
    )(q_BLHC, k_BSKC, v_BSKC, ranges_BQ4, rows_B3, *segments)
