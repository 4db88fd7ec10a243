"""The backward kernel for the queries: keys and values are streamed past a block of queries.

With P the weights and o = P v, the softmax passes back dS = P (dP - sum(o do)), dP = do v^T
(Dao et al. 2022, eq. 4). P is made anew from the scores and the saved logsumexp. Programs,
warpgroups and copies as in `forward`; queries and output gradients are held, 64 KB at head width
128. Registers: 64 for scores, 64 for dP, C / 2 for the sum; no turns are taken.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from fm.attention.mosaic_gpu import stream, tiles
from fm.attention.mosaic_gpu.block_ranges import block_at_step, num_masked_steps
from fm.attention.mosaic_gpu.machine import COMPUTE_REGISTERS, COMPUTE_WARPGROUPS, MEMORY_REGISTERS

TILE_ROWS = 64  # of a warpgroup
BLOCK_Q, BLOCK_K = COMPUTE_WARPGROUPS * TILE_ROWS, 128
NUM_SLOTS = {64: 4, 128: 2}


def backward_dq(given, do_BLHC, lse_BHL, delta_BHL, spans_BQ4, *, rule, machine):
    """Gradient by the queries.

    Args:
      given: q_BLHC, k_BSKC, v_BSKC, rows_B3, segments as `forward` takes them.
      do_BLHC: gradient by the output.
      lse_BHL: float32, from `forward`.
      delta_BHL: float32, sum over C of o do.
      spans_BQ4: as `forward` takes them.
      rule: a `tiles.Rule`.
      machine: `Hopper` or `Interpreted`.
    """
    q_BLHC, k_BSKC, v_BSKC, rows_B3, segments = given
    B, L, H, C = q_BLHC.shape
    group = H // k_BSKC.shape[2]
    slots, dtype = NUM_SLOTS[C], q_BLHC.dtype
    tile = (TILE_ROWS, BLOCK_K)

    def kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, spans_ref, rows_ref, *rest):
        q_segments_ref, k_segments_ref = rest[:2]  # those only if the rule has segments
        dq_ref, scratch, bars = rest[-3:]
        q_smem, do_smem, k_smem, v_smem, lse_smem, delta_smem = scratch[:6]
        q_segments_smem, k_segments_smem = scratch[6:]
        held_ready, k_bars, v_bars = bars
        b, h = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        block = L // BLOCK_Q - 1 - jax.lax.axis_index("block")
        kv_head = jax.lax.div(h, jnp.int32(group))
        group_index = jax.lax.axis_index("group")
        span = tuple(spans_ref[b, block, n] for n in range(4))
        steps = span[3] - span[0]

        def keys_at(ref):
            return lambda step: ref.at[
                b, pl.ds(block_at_step(span, step) * BLOCK_K, BLOCK_K), kv_head
            ]

        def segments_at(step):
            return k_segments_ref.at[b, pl.ds(block_at_step(span, step) * BLOCK_K, BLOCK_K)]

        k_copies = [(keys_at(k_ref), k_smem)]
        if rule.segments:
            k_copies.append((segments_at, k_segments_smem))
        k_stream = stream.RingBuffer(k_copies, k_bars, slots)
        v_stream = stream.RingBuffer([(keys_at(v_ref), v_smem)], v_bars, slots)

        @pl.when(group_index == COMPUTE_WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
            stream.fill_ring_buffers(steps, k_stream, v_stream)

        @pl.when(group_index < COMPUTE_WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            base = block * BLOCK_Q + group_index * TILE_ROWS
            here = pl.ds(base, TILE_ROWS)
            ready = held_ready.at[group_index]
            held = [
                (q_ref.at[b, here, h], q_smem),
                (do_ref.at[b, here, h], do_smem),
                (lse_ref.at[b, h, here], lse_smem),
                (delta_ref.at[b, h, here], delta_smem),
            ]
            if rule.segments:
                held.append((q_segments_ref.at[b, here], q_segments_smem))
            for source, place in held:
                plgpu.copy_gmem_to_smem(source, place.at[group_index], ready)
            plgpu.barrier_wait(ready)
            queries, gradients = q_smem.at[group_index], do_smem.at[group_index]
            lse = machine.load(lse_smem.at[group_index], 0)
            delta = machine.load(delta_smem.at[group_index], 0)
            start, prefix, valid = (rows_ref[b, n] for n in range(3))

            def seen(step, slot):
                q_segments = k_segments = None
                if rule.segments:
                    q_segments = machine.load(q_segments_smem.at[group_index], 0)
                    k_segments = machine.load(k_segments_smem.at[slot], 1)
                    q_segments = tiles.broadcast_tile(q_segments, tile, 0)
                    k_segments = tiles.broadcast_tile(k_segments, tile, 1)
                i = machine.positions(tile, 0) + (base + start)
                j = machine.positions(tile, 1) + block_at_step(span, step) * BLOCK_K
                return tiles.visible_tile(rule, i, j, prefix, valid, q_segments, k_segments)

            def attend(masked):
                def body(step, dq):
                    slot = k_stream.wait(step)
                    v_stream.wait(step)
                    keys = k_smem.at[slot]
                    scores, dp = machine.products((queries, keys), (gradients, v_smem.at[slot]))
                    v_stream.release(slot)
                    logits, slope = tiles.softcap_logits(rule, scores)
                    if masked:
                        logits = tiles.mask_logits(logits, seen(step, slot))
                    weights = jnp.exp2(logits * rule.factor - tiles.broadcast_tile(lse, tile, 0))
                    ds = weights * (dp - tiles.broadcast_tile(delta, tile, 0))
                    if slope is not None:
                        ds = ds * slope
                    (dq,) = machine.add_products((dq, ds.astype(dtype), keys))
                    k_stream.release(slot)
                    return dq

                return body

            edge = num_masked_steps(span)
            dq = jax.lax.fori_loop(0, edge, attend(True), machine.filled((TILE_ROWS, C)))
            dq = jax.lax.fori_loop(edge, steps, attend(False), dq)
            queries[...] = (dq * rule.scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, dq_ref.at[b, here, h])
            plgpu.wait_smem_to_gmem(0)

    copies = 1 + rule.segments
    numbers = (
        (
            plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.int32),
            plgpu.SMEM((slots, BLOCK_K), jnp.int32),
        )
        if rule.segments
        else (None, None)
    )
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(q_BLHC.shape, dtype),
        scratch_types=[
            (
                stream.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                stream.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                stream.swizzled_tiles(slots, BLOCK_K, C, dtype),
                stream.swizzled_tiles(slots, BLOCK_K, C, dtype),
                plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.float32),
                plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.float32),
                *numbers,
            ),
            (
                plgpu.Barrier(num_arrivals=4 + rule.segments, num_barriers=COMPUTE_WARPGROUPS),
                stream.ring_barriers(slots, copies),
                stream.ring_barriers(slots, 1),
            ),
        ],
        grid=(B, H, L // BLOCK_Q),
        grid_names=("batch", "head", "block"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=machine.interpret,
    )(q_BLHC, k_BSKC, v_BSKC, do_BLHC, lse_BHL, delta_BHL, spans_BQ4, rows_B3, *segments)
