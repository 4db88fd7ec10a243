"""The fused linear cross-entropy and its gradients, against all logits at once.

FLOPs: 2 T D V for the logits and twice that for the gradients of the head and its input, however
they are computed; what a chunked loss computes twice is not counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fm.benchmark.core import BenchConfig, Candidate, Case
from fm.benchmark.suites.matmul import DTYPES
from fm.benchmark.timing import jax_candidate
from fm.model.cross_entropy import fused_linear_cross_entropy


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields linear cross-entropy cases over number of targets, model dimension and vocabulary."""
    sizes = [(8192, 128, 4096), (4096, 384, 8192), (2048, 384, 50304)]
    if config.on_accelerator:
        sizes = [(16384, 768, 50304)]
    for size in [(16, 8, 32)] if config.quick else sizes:
        for dtype in DTYPES[:1] if config.quick else DTYPES:
            yield _case(config, size, dtype)


def _case(config: BenchConfig, size: tuple[int, int, int], dtype: str) -> Case:
    T, D, V = size

    def candidate(mean_loss: Callable) -> Candidate:
        head_DV, h_TD, targets_T = random_arrays(config, size)
        return jax_candidate(
            jax.value_and_grad(mean_loss, argnums=(0, 1)),
            jnp.asarray(head_DV),
            jnp.asarray(h_TD, dtype),
            jnp.asarray(targets_T),
        )

    def fused(head_DV, h_TD, targets_T):
        weights_T = jnp.full(len(h_TD), 1.0 / len(h_TD))
        return fused_linear_cross_entropy(head_DV, h_TD, targets_T, weights_T)

    def torch_loss() -> Candidate:
        from fm.benchmark.peers import pytorch

        return pytorch.cross_entropy(*random_arrays(config, size), dtype)

    return Case(
        suite="cross_entropy",
        name=f"T{T} D{D} V{V}, value and gradients",
        dtype=dtype,
        candidates={"fused": lambda: candidate(fused)},
        peers={
            "jax": {"all logits": lambda: candidate(full_logits_cross_entropy)},
            "torch": {"cross_entropy": torch_loss},
        },
        flops=6.0 * T * D * V,
        num_tokens=T,
    )


def full_logits_cross_entropy(
    head_DV: jax.Array, h_TD: jax.Array, targets_T: jax.Array
) -> jax.Array:
    """Returns the mean negative log-likelihood, computed from float32 logits of all targets."""
    logits_TV = (h_TD @ head_DV.astype(h_TD.dtype)).astype(jnp.float32)
    log_p_TV = jax.nn.log_softmax(logits_TV, axis=-1)
    return -jnp.mean(jnp.take_along_axis(log_p_TV, targets_T[:, None], axis=-1))


def random_arrays(
    config: BenchConfig, size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a random head [D, V], its input [T, D] and targets [T]."""
    T, D, V = size
    rng = np.random.default_rng(config.seed)
    head_DV = rng.standard_normal((D, V), np.float32) * D**-0.5
    return head_DV, rng.standard_normal((T, D), np.float32), rng.integers(0, V, T, np.int32)
