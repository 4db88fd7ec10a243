"""Attention over lengths, head dimensions, dtypes and masks, and of one query against a cache.

FLOPs as is usual for flash attention (Dao 2023, sec. 4.1): 4 B H L S C forward, half of it under
a causal mask, and 2.5 times as much more for the backward pass. A single query does two FLOPs for
every number it reads, so `min_bytes` is what to hold it against.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask, attention, choose
from fm.benchmark.core import BenchConfig, Build, Candidate, Case
from fm.benchmark.suites.matmul import DTYPES
from fm.benchmark.timing import jax_candidate


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields attention cases (length, head dimension, dtype, mask, pass) of equally many tokens."""
    if config.quick:
        grid = itertools.product((32,), (16,), ("float32",), (True,), (False, True))
        num_tokens, width = 64, 32
    elif config.on_accelerator:
        # The shapes of FlashAttention-3's figures: 16k tokens, H x C = 2048.
        grid = itertools.product(
            (2048, 4096, 8192, 16384), (64, 128), ("bfloat16",), (True, False), (False, True)
        )
        num_tokens, width = 16384, 2048
    else:
        lengths, head_dims, passes = (64, 256, 1024, 4096), (32, 64, 128), (False, True)
        grid = itertools.product(lengths, head_dims, DTYPES, (True, False), passes)
        if config.scale != "full":
            # Cases that differ in at most one way from the usual head dimension, dtype and mask.
            usual = (64, "float32", True)
            grid = (each for each in grid if sum(map(operator.ne, each[1:4], usual)) <= 1)
        num_tokens, width = 4096, 256
    for length, head_dim, dtype, causal, backward in grid:
        shape = (max(1, num_tokens // length), length, width // head_dim, head_dim)
        yield _case(config, shape, dtype, causal, backward)


def _case(
    config: BenchConfig, shape: tuple[int, ...], dtype: str, causal: bool, backward: bool
) -> Case:
    B, L, H, C = shape
    mask = Mask(causal=causal)

    def candidate(attend: Callable) -> Candidate:
        def with_gradients(q, k, v, do):
            o, vjp = jax.vjp(attend, q, k, v)
            return o, vjp(do)

        q, k, v, do = random_arrays(config, shape, dtype)
        if backward:
            return jax_candidate(with_gradients, q, k, v, do)
        return jax_candidate(attend, q, k, v)

    def ours(name: str) -> Candidate:
        return candidate(lambda q, k, v: attention(q, k, v, mask=mask, implementation=name))

    # On a GPU XLA's own would hold every score, tens of gigabytes at these lengths.
    backend = "cudnn" if config.platform == "gpu" else "xla"

    def jax_attention() -> Candidate:
        return candidate(
            lambda q, k, v: jax.nn.dot_product_attention(
                q, k, v, is_causal=causal, implementation=backend
            )
        )

    def torch_sdpa() -> Candidate:
        from fm.benchmark.peers import pytorch

        q, k, v, do = (np.asarray(x) for x in random_arrays(config, shape, "float32"))
        return pytorch.attention(q, k, v, do, dtype, causal=causal, backward=backward)

    like = jax.ShapeDtypeStruct(shape, dtype)
    return Case(
        suite="attention",
        name=f"{'causal' if causal else 'full'}, {'forward+backward' if backward else 'forward'}, "
        f"B{B} L{L} H{H} C{C}",
        dtype=dtype,
        candidates=_by_implementation(ours, choose(like, like, mask), config),
        peers={
            "jax": {f"dot_product_attention, {backend}": jax_attention},
            "torch": {"scaled_dot_product_attention": torch_sdpa},
        },
        flops=attention_flops(shape, L, causal=causal, backward=backward),
        num_tokens=B * L,
    )


def cache_cases(config: BenchConfig) -> Iterator[Case]:
    """Yields decoding cases: one query against KV caches of three lengths, MHA and GQA."""
    if config.quick:
        yield _cache_case(config, (2, 32, 2, 1, 16), "float32")
        return
    lengths = (1024, 8192, 32768) if config.on_accelerator else (256, 1024, 4096)
    for num_keys, num_kv_heads, dtype in itertools.product(lengths, (8, 2), DTYPES):
        yield _cache_case(config, (8, num_keys, 8, num_kv_heads, 64), dtype)


def _cache_case(config: BenchConfig, shape: tuple[int, int, int, int, int], dtype: str) -> Case:
    B, S, H, K, C = shape
    sizes = ((B, 1, H, C), (B, S, K, C), (B, S, K, C))
    lengths_B = np.random.default_rng(config.seed).integers(S // 2, S + 1, B, np.int32)

    def arrays() -> list[np.ndarray]:
        rng = np.random.default_rng(config.seed)
        return [rng.standard_normal(size, np.float32) for size in sizes]

    def candidate(attend: Callable) -> Candidate:
        return jax_candidate(
            attend, *(jnp.asarray(x, dtype) for x in arrays()), jnp.asarray(lengths_B)
        )

    def ours(name: str) -> Candidate:
        def attend(q, k, v, lengths):
            return attention(q, k, v, mask=Mask(kv_length=lengths), implementation=name)

        return candidate(attend)

    def jax_attention() -> Candidate:
        def attend(q, k, v, lengths):
            return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths)

        return candidate(attend)

    def torch_sdpa() -> Candidate:
        from fm.benchmark.peers import pytorch

        q, k, v = arrays()
        return pytorch.attention(
            q, k, v, q, dtype, causal=False, backward=False, kv_length=lengths_B
        )

    q, k = (jax.ShapeDtypeStruct(size, dtype) for size in sizes[:2])
    chosen = choose(q, k, Mask(kv_length=jnp.asarray(lengths_B)))
    return Case(
        suite="decode",
        name=f"one query, B{B} S{S} H{H} K{K} C{C}",
        dtype=dtype,
        candidates=_by_implementation(ours, chosen, config),
        peers={
            "jax": {"dot_product_attention": jax_attention},
            "torch": {"scaled_dot_product_attention": torch_sdpa},
        },
        flops=attention_flops((B, 1, H, C), S, causal=False, backward=False),
        num_tokens=B,
    )


def _by_implementation(
    build: Callable[[str], Candidate], chosen: str, config: BenchConfig
) -> dict[str, Build]:
    """A candidate for the selected implementation and for each one asked for."""
    names = dict.fromkeys((chosen, *config.attention_implementations))
    return {name: lambda name=name: build(name) for name in names}


def attention_flops(
    shape: tuple[int, ...], num_keys: int, *, causal: bool, backward: bool
) -> float:
    """Returns FLOPs of attention of queries [B, L, H, C] to `num_keys` keys (causal: half)."""
    B, L, H, C = shape
    return 4.0 * B * H * L * num_keys * C * (0.5 if causal else 1.0) * (3.5 if backward else 1.0)


def random_arrays(config: BenchConfig, shape: tuple[int, ...], dtype: str) -> list[jax.Array]:
    """Returns random normal queries, keys, values and output gradient."""
    rng = np.random.default_rng(config.seed)
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(4)]
