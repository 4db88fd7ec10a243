"""Attention, forward and backward, over lengths, head widths, dtypes and masks.

FLOPs as is usual for flash attention (Dao 2023, sec. 4.1): 4 B H L S C forward, half of it under
a causal mask, and 2.5 times as much more for the backward pass.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask, attention, choose
from fm.benchmark.core import BenchConfig, Build, Case
from fm.benchmark.gemm import DTYPES
from fm.benchmark.timing import Candidate, jax_candidate


def cases(setting: BenchConfig) -> Iterator[Case]:
    """Lengths x heads x dtypes x masks x passes, with as many sequences as keep a size."""
    if setting.quick:
        grid = itertools.product((32,), (16,), ("float32",), (True,), (False, True))
        pieces, width = 64, 32
    elif setting.on_accelerator:
        # The shapes of FlashAttention-3's figures: 16k pieces, 2048 wide.
        grid = itertools.product(
            (2048, 4096, 8192, 16384), (64, 128), ("bfloat16",), (True, False), (False, True)
        )
        pieces, width = 16384, 2048
    else:
        lengths, heads, passes = (64, 256, 1024, 4096), (32, 64, 128), (False, True)
        grid = itertools.product(lengths, heads, DTYPES, (True, False), passes)
        if setting.scale != "full":
            # What differs in at most one way from the usual head, dtype and mask.
            usual = (64, "float32", True)
            grid = (each for each in grid if sum(map(operator.ne, each[1:4], usual)) <= 1)
        pieces, width = 4096, 256
    for length, head_width, dtype, causal, backward in grid:
        shape = (max(1, pieces // length), length, width // head_width, head_width)
        yield _case(setting, shape, dtype, causal, backward)


def _case(
    setting: BenchConfig, shape: tuple[int, ...], dtype: str, causal: bool, backward: bool
) -> Case:
    B, L, H, C = shape
    mask = Mask(causal=causal)
    like = jax.ShapeDtypeStruct(shape, dtype)
    chosen = choose(like, like, mask)

    def ours(name: str | None) -> Candidate:
        def attend(q, k, v):
            return attention(q, k, v, mask=mask, implementation=name)

        return _program(attend, arrays(setting, shape, dtype), backward)

    def theirs(way: Any) -> Candidate:
        def attend(q, k, v):
            return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=way)

        return _program(attend, arrays(setting, shape, dtype), backward)

    def sdpa() -> Candidate:
        from fm.benchmark.peers import pytorch

        q, k, v, do = (np.asarray(x) for x in arrays(setting, shape, "float32"))
        return pytorch.attention(q, k, v, do, dtype, causal=causal, backward=backward)

    names = dict.fromkeys((chosen, *setting.attention_implementations))
    # On a GPU XLA's own would hold every score, tens of gigabytes at these lengths.
    way = "cudnn" if setting.platform == "gpu" else "xla"
    jax_peer: dict[str, Build] = {f"dot_product_attention, {way}": lambda: theirs(way)}
    return Case(
        suite="attention",
        name=f"{'causal' if causal else 'full'}, {'forward+backward' if backward else 'forward'}, "
        f"B{B} L{L} H{H} C{C}",
        dtype=dtype,
        candidates={name: lambda name=name: ours(name) for name in names},
        peers={"jax": jax_peer, "torch": {"scaled_dot_product_attention": sdpa}},
        flops=flops(shape, L, causal=causal, backward=backward),
        num_tokens=B * L,
    )


def flops(shape: tuple[int, ...], keys: int, *, causal: bool, backward: bool) -> float:
    """Of queries [B, L, H, C] against a number of keys; see the top of the file."""
    B, L, H, C = shape
    return 4.0 * B * H * L * keys * C * (0.5 if causal else 1.0) * (3.5 if backward else 1.0)


def arrays(setting: BenchConfig, shape: tuple[int, ...], dtype: str) -> list[jax.Array]:
    """Queries, keys, values and a gradient of the output, normal."""
    rng = np.random.default_rng(setting.seed)
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(4)]


def _program(attend: Any, qkv_do: list[jax.Array], backward: bool) -> Candidate:
    """Attention alone, or with the gradients of q, k and v."""

    def both(q, k, v, do):
        o, back = jax.vjp(attend, q, k, v)
        return o, back(do)

    return jax_candidate(both, *qkv_do) if backward else jax_candidate(attend, *qkv_do[:3])
