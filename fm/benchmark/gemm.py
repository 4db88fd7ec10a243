"""Square matrix products: the rate everything else is held against."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.timing import Candidate, jax_candidate

DTYPES = ("float32", "bfloat16")


def cases(setting: BenchConfig) -> Iterator[Case]:
    """One size, both dtypes."""
    n = setting.gemm_size
    for dtype in DTYPES:

        def torch_mm(dtype=dtype):
            from fm.benchmark.peers import pytorch

            return pytorch.gemm(*_factors(n, setting.seed), dtype)

        yield Case(
            suite="gemm",
            name=f"{n}x{n}x{n}",
            dtype=dtype,
            candidates={"jnp.matmul": lambda dtype=dtype: side(setting, dtype)[0]},
            peers={"torch": {"mm": torch_mm}},
            flops=side_flops(setting),
        )


def side(setting: BenchConfig, dtype: str) -> tuple[Candidate, float]:
    """The product, and its FLOPs."""
    x, y = (jnp.asarray(each, dtype) for each in _factors(setting.gemm_size, setting.seed))
    return jax_candidate(jnp.matmul, x, y), side_flops(setting)


def side_flops(setting: BenchConfig) -> float:
    """A multiply-add is two."""
    return 2.0 * setting.gemm_size**3


def bandwidth(setting: BenchConfig) -> tuple[Candidate, int]:
    """An array read and written once, too large for a cache; and the bytes that moves."""
    size = (1 << 20) if setting.quick else (1 << 28) if setting.on_accelerator else (1 << 25)
    x = jnp.ones(size, jnp.float32)
    made = jax_candidate(lambda x: x + 1.0, x)
    return made, 2 * 4 * size


def _factors(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)
