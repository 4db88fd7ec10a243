"""Square matrix products: the rate that everything else is measured against."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from fm.benchmark.core import BenchConfig, Candidate, Case
from fm.benchmark.timing import jax_candidate

DTYPES = ("float32", "bfloat16")


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields one case per dtype: a square matrix product of `config.gemm_size`."""
    n = config.gemm_size
    for dtype in DTYPES:

        def torch_mm(dtype=dtype):
            from fm.benchmark.peers import pytorch

            return pytorch.gemm(*_factors(config), dtype)

        yield Case(
            suite="matmul",
            name=f"{n}x{n}x{n}",
            dtype=dtype,
            candidates={"jnp.matmul": lambda dtype=dtype: gemm_candidate(config, dtype)[0]},
            peers={"torch": {"mm": torch_mm}},
            flops=2.0 * n**3,
        )


def gemm_candidate(config: BenchConfig, dtype: str) -> tuple[Candidate, float]:
    """Returns a compiled matrix product and its FLOPs (a multiply-add counts two)."""
    x, y = (jnp.asarray(each, dtype) for each in _factors(config))
    return jax_candidate(jnp.matmul, x, y), 2.0 * config.gemm_size**3


def bandwidth_candidate(config: BenchConfig) -> tuple[Candidate, int]:
    """Returns a compiled copy of an array too large for caches, and the bytes it moves."""
    size = (1 << 20) if config.quick else (1 << 28) if config.on_accelerator else (1 << 25)
    x = jnp.ones(size, jnp.float32)
    return jax_candidate(lambda x: x + 1.0, x), 2 * 4 * size


def read_candidate(config: BenchConfig) -> tuple[Candidate, int]:
    """Returns a compiled product of a matrix too large for caches with one vector, and its bytes.

    Nothing in JAX reads faster on a CPU: a sum runs on one thread.
    """
    rows = 1 << (8 if config.quick else 18 if config.on_accelerator else 15)
    matrix, vector = jnp.ones((rows, 1024), jnp.float32), jnp.ones((1, 1024), jnp.float32)
    product = jax_candidate(lambda w_OI, x_TI: jnp.einsum("ti,oi->to", x_TI, w_OI), matrix, vector)
    return product, 4 * matrix.size


def _factors(config: BenchConfig) -> tuple[np.ndarray, np.ndarray]:
    rng, shape = np.random.default_rng(config.seed), (config.gemm_size, config.gemm_size)
    return rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
