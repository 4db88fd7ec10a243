"""The forward kernel: online softmax over streamed keys (Dao et al. 2022; Shah et al. 2024).

A program takes 128 queries of one head: two warpgroups compute 64 of them each, a third copies.
Shared memory at head width 128: queries (then output) 32 KB, two slots of 128 keys and values
128 KB; at 64: 16 KB, four slots of 32 KB. Registers of a computing warpgroup (232 a thread): 64
for the scores of 64 x 128, 32 for the weights in 16 bits, C / 2 for the output. The two take
turns: one multiplies while the other exponentiates (FlashAttention-3's ping-pong).
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


def forward(q_BLHC, k_BSKC, v_BSKC, spans_BQ4, rows_B3, segments, *, rule, machine):
    """Output and base-2 logsumexp.

    Args:
      q_BLHC: bfloat16 or float16; L a multiple of `BLOCK_Q`, C 64 or 128.
      k_BSKC: S a multiple of `BLOCK_K`.
      v_BSKC: likewise.
      spans_BQ4: `blocks.spans` of the key blocks for each block of queries.
      rows_B3: int32; start, prefix and number of valid keys of each row.
      segments: int32 of queries [B, L] and keys [B, S], or empty.
      rule: a `tiles.Rule`.
      machine: `Hopper` or `Interpreted`.

    Returns:
      o_BLHC; float32 [B, H, L], plus infinity for a row that sees nothing.
    """
    B, L, H, C = q_BLHC.shape
    group = H // k_BSKC.shape[2]
    slots, dtype = NUM_SLOTS[C], q_BLHC.dtype
    tile = (TILE_ROWS, BLOCK_K)

    def kernel(q_ref, k_ref, v_ref, spans_ref, rows_ref, *rest):
        q_segments_ref, k_segments_ref = rest[:2]  # those only if the rule has segments
        o_ref, lse_ref, scratch, bars = rest[-4:]
        q_smem, k_smem, v_smem, lse_smem, q_segments_smem, k_segments_smem = scratch
        q_ready, turns, k_bars, v_bars = bars
        b, h = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        # Under causality the last queries have most to do: they go first.
        block = L // BLOCK_Q - 1 - jax.lax.axis_index("block")
        kv_head = jax.lax.div(h, jnp.int32(group))
        group_index = jax.lax.axis_index("group")
        span = tuple(spans_ref[b, block, n] for n in range(4))
        first, _, _, last = span
        steps = last - first

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
            queries = q_smem.at[group_index]
            ready = q_ready.at[group_index]
            here = pl.ds(base, TILE_ROWS)
            plgpu.copy_gmem_to_smem(q_ref.at[b, here, h], queries, ready)
            if rule.segments:
                plgpu.copy_gmem_to_smem(
                    q_segments_ref.at[b, here], q_segments_smem.at[group_index], ready
                )
            plgpu.barrier_wait(ready)
            start, prefix, valid = (rows_ref[b, n] for n in range(3))

            def turn():
                plgpu.barrier_arrive(turns)
                plgpu.barrier_wait(turns)

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
                def body(step, carry):
                    o, top, total = carry
                    slot = k_stream.wait(step)
                    (scores,) = machine.products((queries, k_smem.at[slot]), meanwhile=turn)
                    logits, _ = tiles.softcap_logits(rule, scores)
                    if masked:
                        logits = tiles.mask_logits(logits, seen(step, slot))
                    k_stream.release(slot)
                    weights, shrink, top, total = tiles.online_softmax_step(
                        rule, logits, top, total
                    )
                    o = o * tiles.broadcast_tile(shrink, (TILE_ROWS, C), 0)
                    weights = weights.astype(dtype)
                    o, top, total, weights = jax.lax.optimization_barrier((o, top, total, weights))
                    plgpu.barrier_arrive(turns)
                    v_stream.wait(step)
                    plgpu.barrier_wait(turns)
                    (o,) = machine.add_products((o, weights, v_smem.at[slot]))
                    v_stream.release(slot)
                    return o, top, total

                return body

            pl.when(group_index == 1)(turn)
            carry = (
                machine.filled((TILE_ROWS, C)),
                machine.filled((TILE_ROWS,), -jnp.inf),
                machine.filled((TILE_ROWS,)),
            )
            edge = num_masked_steps(span)
            carry = jax.lax.fori_loop(0, edge, attend(True), carry)
            o, top, total = jax.lax.fori_loop(edge, steps, attend(False), carry)
            pl.when(group_index == 0)(turn)
            inverse, lse = tiles.finish_softmax(top, total)
            queries[...] = (o * tiles.broadcast_tile(inverse, (TILE_ROWS, C), 0)).astype(dtype)
            lse_smem.at[group_index][...] = lse
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, o_ref.at[b, here, h])
            plgpu.copy_smem_to_gmem(lse_smem.at[group_index], lse_ref.at[b, h, here])
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
        out_type=[
            jax.ShapeDtypeStruct(q_BLHC.shape, dtype),
            jax.ShapeDtypeStruct((B, H, L), jnp.float32),
        ],
        scratch_types=[
            (
                stream.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                stream.swizzled_tiles(slots, BLOCK_K, C, dtype),
                stream.swizzled_tiles(slots, BLOCK_K, C, dtype),
                plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.float32),
                *numbers,
            ),
            (
                plgpu.Barrier(num_arrivals=copies, num_barriers=COMPUTE_WARPGROUPS),
                plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
                stream.ring_barriers(slots, copies),
                stream.ring_barriers(slots, 1),
            ),
        ],
        # The last axis runs fastest: one head's keys stay in the L2 cache while its blocks run.
        grid=(B, H, L // BLOCK_Q),
        grid_names=("batch", "head", "block"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=machine.interpret,
    )(q_BLHC, k_BSKC, v_BSKC, spans_BQ4, rows_B3, *segments)
