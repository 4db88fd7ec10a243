"""The backward kernel for the queries: keys and values are streamed past a block of queries.

With P the weights and o = P v, the gradient of softmax is dS = P (dP - sum(o do)), dP = do v^T
(Dao et al. 2022, eq. 4). P is recomputed from the scores and the saved logsumexp. Programs,
warpgroups and copies as in `forward`; queries and output gradients stay in shared memory, 64 KB at
head dimension 128. Registers: 64 for scores, 64 for dP, C / 2 for the sum; no turns are taken.
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


def backward_dq(inputs, do_BLHC, lse_BHL, delta_BHL, ranges_BQ4, *, spec, ops):
    """Returns the gradient with respect to the queries, dq_BLHC.

    Args:
      inputs: as for `forward`.
      do_BLHC: gradient by the output.
      lse_BHL: float32, from `forward`.
      delta_BHL: float32, sum over C of o do.
      ranges_BQ4: as for `forward`.
      spec: a `KernelSpec`.
      ops: `HopperOps` or `InterpretedOps`.
    """
    q_BLHC, k_BSKC, v_BSKC, rows_B3, segments = inputs
    B, L, H, C = q_BLHC.shape
    group = H // k_BSKC.shape[2]
    num_slots, dtype = NUM_SLOTS[C], q_BLHC.dtype
    tile = (TILE_ROWS, BLOCK_K)

    def kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, ranges_ref, rows_ref, *rest):
        q_segments_ref, k_segments_ref = rest[:2]  # only if the spec has segments
        dq_ref, scratch, barriers = rest[-3:]
        q_smem, do_smem, k_smem, v_smem, lse_smem, delta_smem = scratch[:6]
        q_segments_smem, k_segments_smem = scratch[6:]
        inputs_ready, k_barriers, v_barriers = barriers
        b, h = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
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
            rows = pl.ds(q_offset, TILE_ROWS)
            ready = inputs_ready.at[warpgroup]
            copies = [
                (q_ref.at[b, rows, h], q_smem),
                (do_ref.at[b, rows, h], do_smem),
                (lse_ref.at[b, h, rows], lse_smem),
                (delta_ref.at[b, h, rows], delta_smem),
            ]
            if spec.has_segments:
                copies.append((q_segments_ref.at[b, rows], q_segments_smem))
            for source, target in copies:
                plgpu.copy_gmem_to_smem(source, target.at[warpgroup], ready)
            plgpu.barrier_wait(ready)
            queries, do = q_smem.at[warpgroup], do_smem.at[warpgroup]
            lse = ops.load(lse_smem.at[warpgroup], 0)
            delta = ops.load(delta_smem.at[warpgroup], 0)
            row = tuple(rows_ref[b, n] for n in range(3))

            def visible(step, slot):
                refs = (None, None)
                if spec.has_segments:
                    refs = q_segments_smem.at[warpgroup], k_segments_smem.at[slot]
                return common.load_visible_tile(
                    spec, ops, tile, 0, q_offset, k_offset(step), row, *refs
                )

            def attend(masked):
                def body(step, dq):
                    slot = k_ring.wait(step)
                    v_ring.wait(step)
                    keys = k_smem.at[slot]
                    scores, dp = ops.matmul_transposed((queries, keys), (do, v_smem.at[slot]))
                    v_ring.release(slot)
                    logits, softcap_grad = common.softcap_logits(spec, scores)
                    if masked:
                        logits = common.mask_logits(logits, visible(step, slot))
                    lse_tile = common.broadcast_tile(lse, tile, 0)
                    weights = jnp.exp2(logits * spec.log2_scale - lse_tile)
                    ds = weights * (dp - common.broadcast_tile(delta, tile, 0))
                    if softcap_grad is not None:
                        ds = ds * softcap_grad
                    (dq,) = ops.matmul_accumulate((dq, ds.astype(dtype), keys))
                    k_ring.release(slot)
                    return dq

                return body

            num_masked = num_masked_steps(block_range)
            dq = jax.lax.fori_loop(0, num_masked, attend(True), ops.full((TILE_ROWS, C)))
            dq = jax.lax.fori_loop(num_masked, num_steps, attend(False), dq)
            queries[...] = (dq * spec.scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, dq_ref.at[b, rows, h])
            plgpu.wait_smem_to_gmem(0)

    segments_smem = (None, None)
    if spec.has_segments:
        segments_smem = (
            plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.int32),
            plgpu.SMEM((num_slots, BLOCK_K), jnp.int32),
        )
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(q_BLHC.shape, dtype),
        scratch_types=[
            (
                common.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                common.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                common.swizzled_tiles(num_slots, BLOCK_K, C, dtype),
                common.swizzled_tiles(num_slots, BLOCK_K, C, dtype),
                plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.float32),
                plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.float32),
                *segments_smem,
            ),
            (
                plgpu.Barrier(num_arrivals=4 + spec.has_segments, num_barriers=COMPUTE_WARPGROUPS),
                common.ring_barriers(num_slots, 1 + spec.has_segments),
                common.ring_barriers(num_slots, 1),
            ),
        ],
        grid=(B, H, L // BLOCK_Q),
        grid_names=("batch", "head", "block"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=ops.interpret,
    )(q_BLHC, k_BSKC, v_BSKC, do_BLHC, lse_BHL, delta_BHL, ranges_BQ4, rows_B3, *segments)
