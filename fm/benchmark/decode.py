"""Decoding: one query against a cache of keys and values, and whole generations.

A single query does two FLOPs for every number it reads: the memory is what counts, and `bytes`
is the figure to hold it against.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask, attention, choose
from fm.benchmark import generation
from fm.benchmark.attention import flops
from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.gemm import DTYPES
from fm.benchmark.timing import Candidate, jax_candidate


def cases(setting: BenchConfig) -> Iterator[Case]:
    """Caches of three lengths, with as many heads as keys and with shared ones; then texts."""
    if setting.quick:
        yield _query(setting, (2, 32, 2, 1, 16), "float32")
        yield from generation.cases(setting)
        return
    lengths = (1024, 8192, 32768) if setting.on_accelerator else (256, 1024, 4096)
    for keys in lengths:
        for kv_heads in (8, 2):
            for dtype in DTYPES:
                yield _query(setting, (8, keys, 8, kv_heads, 64), dtype)
    yield from generation.cases(setting)


def _query(setting: BenchConfig, shape: tuple[int, int, int, int, int], dtype: str) -> Case:
    B, S, H, K, C = shape
    lengths_B = np.random.default_rng(setting.seed).integers(S // 2, S + 1, B, np.int32)

    def arrays() -> list[np.ndarray]:
        rng = np.random.default_rng(setting.seed)
        sizes = ((B, 1, H, C), (B, S, K, C), (B, S, K, C))
        return [rng.standard_normal(each, np.float32) for each in sizes]

    def ours(name: str) -> Candidate:
        def attend(q, k, v, lengths):
            return attention(q, k, v, mask=Mask(kv_length=lengths), implementation=name)

        return jax_candidate(
            attend, *(jnp.asarray(x, dtype) for x in arrays()), jnp.asarray(lengths_B)
        )

    def theirs() -> Candidate:
        def attend(q, k, v, lengths):
            return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths)

        return jax_candidate(
            attend, *(jnp.asarray(x, dtype) for x in arrays()), jnp.asarray(lengths_B)
        )

    def sdpa() -> Candidate:
        from fm.benchmark.peers import pytorch

        q, k, v = arrays()
        return pytorch.attention(
            q, k, v, q, dtype, causal=False, backward=False, kv_length=lengths_B
        )

    q, k = (jax.ShapeDtypeStruct(each, dtype) for each in ((B, 1, H, C), (B, S, K, C)))
    chosen = choose(q, k, Mask(kv_length=jnp.asarray(lengths_B)))
    names = dict.fromkeys((chosen, *setting.attention_implementations))
    return Case(
        suite="decode",
        name=f"one query, B{B} S{S} H{H} K{K} C{C}",
        dtype=dtype,
        candidates={name: lambda name=name: ours(name) for name in names},
        peers={
            "jax": {"dot_product_attention": theirs},
            "torch": {"scaled_dot_product_attention": sdpa},
        },
        flops=flops((B, 1, H, C), S, causal=False, backward=False),
        num_tokens=B,
    )
