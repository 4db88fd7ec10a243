"""The backward kernel for keys and values: queries are streamed past a block of keys.

All tiles are transposed here, a row per key: S^T = k q^T. Two warpgroups hold 64 keys and values
each (64 KB at head width 128) and sum over the queries of every head that reads them, so that
gradients of shared heads are added in float32, in a fixed order. Blocks of 64 queries at head
width 128, where the two sums take 128 registers a thread; of 128 at 64.
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
BLOCK_K = COMPUTE_WARPGROUPS * TILE_ROWS
BLOCK_Q = {64: 128, 128: 64}
NUM_SLOTS = {64: 3, 128: 3}


def backward_dkv(given, do_BLHC, lse_BHL, delta_BHL, spans_BK4, *, rule, machine):
    """Gradients by keys and values.

    Args:
      given: q_BLHC, k_BSKC, v_BSKC, rows_B3, segments as `forward` takes them.
      do_BLHC: gradient by the output.
      lse_BHL: float32, from `forward`.
      delta_BHL: float32, sum over C of o do.
      spans_BK4: `blocks.spans` of the query blocks for each block of keys.
      rule: a `tiles.Rule`.
      machine: `Hopper` or `Interpreted`.
    """
    q_BLHC, k_BSKC, v_BSKC, rows_B3, segments = given
    B, S, K, C = k_BSKC.shape
    heads = q_BLHC.shape[2] // K
    slots, block_q, dtype = NUM_SLOTS[C], BLOCK_Q[C], q_BLHC.dtype
    tile = (TILE_ROWS, block_q)

    def kernel(q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, spans_ref, rows_ref, *rest):
        q_segments_ref, k_segments_ref = rest[:2]  # those only if the rule has segments
        dk_ref, dv_ref, scratch, bars = rest[-4:]
        k_smem, v_smem, q_smem, do_smem, lse_smem, delta_smem = scratch[:6]
        q_segments_smem, k_segments_smem = scratch[6:]
        held_ready, q_bars, do_bars = bars
        b, kv_head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
        block, group_index = jax.lax.axis_index("block"), jax.lax.axis_index("group")
        span = tuple(spans_ref[b, block, n] for n in range(4))
        steps = span[3] - span[0]  # for each head

        def place(step):
            """The head and the queries of a step."""
            head = jax.lax.div(step, steps)
            queries = pl.ds(block_at_step(span, step - head * steps) * block_q, block_q)
            return kv_head * heads + head, queries

        def tiles_at(ref):
            def at(step):
                h, queries = place(step)
                return ref.at[b, queries, h]

            return at

        def numbers_at(ref):
            def at(step):
                h, queries = place(step)
                return ref.at[b, h, queries]

            return at

        q_copies = [(tiles_at(q_ref), q_smem), (numbers_at(lse_ref), lse_smem)]
        do_copies = [(tiles_at(do_ref), do_smem), (numbers_at(delta_ref), delta_smem)]
        if rule.segments:
            q_copies.append((lambda step: q_segments_ref.at[b, place(step)[1]], q_segments_smem))
        q_stream = stream.RingBuffer(q_copies, q_bars, slots)
        do_stream = stream.RingBuffer(do_copies, do_bars, slots)

        @pl.when(group_index == COMPUTE_WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
            stream.fill_ring_buffers(steps * heads, q_stream, do_stream)

        @pl.when(group_index < COMPUTE_WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            base = block * BLOCK_K + group_index * TILE_ROWS
            here = pl.ds(base, TILE_ROWS)
            ready = held_ready.at[group_index]
            held = [(k_ref.at[b, here, kv_head], k_smem), (v_ref.at[b, here, kv_head], v_smem)]
            if rule.segments:
                held.append((k_segments_ref.at[b, here], k_segments_smem))
            for source, room in held:
                plgpu.copy_gmem_to_smem(source, room.at[group_index], ready)
            plgpu.barrier_wait(ready)
            keys, values = k_smem.at[group_index], v_smem.at[group_index]
            start, prefix, valid = (rows_ref[b, n] for n in range(3))

            def seen(step, slot):
                q_segments = k_segments = None
                if rule.segments:
                    k_segments = machine.load(k_segments_smem.at[group_index], 0)
                    q_segments = machine.load(q_segments_smem.at[slot], 1)
                    k_segments = tiles.broadcast_tile(k_segments, tile, 0)
                    q_segments = tiles.broadcast_tile(q_segments, tile, 1)
                i = machine.positions(tile, 1) + (block_at_step(span, step) * block_q + start)
                j = machine.positions(tile, 0) + base
                return tiles.visible_tile(rule, i, j, prefix, valid, q_segments, k_segments)

            def attend(masked, before):
                def body(step, carry):
                    dk, dv = carry
                    slot = q_stream.wait(before + step)
                    do_stream.wait(before + step)
                    queries, gradients = q_smem.at[slot], do_smem.at[slot]
                    scores, dp = machine.products((keys, queries), (values, gradients))
                    logits, slope = tiles.softcap_logits(rule, scores)
                    if masked:
                        logits = tiles.mask_logits(logits, seen(step, slot))
                    lse = machine.load(lse_smem.at[slot], 1)
                    delta = machine.load(delta_smem.at[slot], 1)
                    weights = jnp.exp2(logits * rule.factor - tiles.broadcast_tile(lse, tile, 1))
                    ds = weights * (dp - tiles.broadcast_tile(delta, tile, 1))
                    if slope is not None:
                        ds = ds * slope
                    dk, dv = machine.add_products(
                        (dk, ds.astype(dtype), queries), (dv, weights.astype(dtype), gradients)
                    )
                    q_stream.release(slot)
                    do_stream.release(slot)
                    return dk, dv

                return body

            edge = num_masked_steps(span)

            def head(n, carry):
                carry = jax.lax.fori_loop(0, edge, attend(True, n * steps), carry)
                return jax.lax.fori_loop(edge, steps, attend(False, n * steps), carry)

            zeros = machine.filled((TILE_ROWS, C))
            dk, dv = jax.lax.fori_loop(0, heads, head, (zeros, zeros))
            keys[...] = (dk * rule.scale).astype(dtype)
            values[...] = dv.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(keys, dk_ref.at[b, here, kv_head])
            plgpu.copy_smem_to_gmem(values, dv_ref.at[b, here, kv_head])
            plgpu.wait_smem_to_gmem(0)

    numbers = (
        (
            plgpu.SMEM((slots, block_q), jnp.int32),
            plgpu.SMEM((COMPUTE_WARPGROUPS, TILE_ROWS), jnp.int32),
        )
        if rule.segments
        else (None, None)
    )
    return plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(k_BSKC.shape, dtype)] * 2,
        scratch_types=[
            (
                stream.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                stream.swizzled_tiles(COMPUTE_WARPGROUPS, TILE_ROWS, C, dtype),
                stream.swizzled_tiles(slots, block_q, C, dtype),
                stream.swizzled_tiles(slots, block_q, C, dtype),
                plgpu.SMEM((slots, block_q), jnp.float32),
                plgpu.SMEM((slots, block_q), jnp.float32),
                *numbers,
            ),
            (
                plgpu.Barrier(num_arrivals=2 + rule.segments, num_barriers=COMPUTE_WARPGROUPS),
                stream.ring_barriers(slots, 2 + rule.segments),
                stream.ring_barriers(slots, 2),
            ),
        ],
        grid=(B, K, S // BLOCK_K),
        grid_names=("batch", "head", "block"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=machine.interpret,
    )(q_BLHC, k_BSKC, v_BSKC, do_BLHC, lse_BHL, delta_BHL, spans_BK4, rows_B3, *segments)
