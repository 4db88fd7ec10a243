"""The vocabulary loss and its gradients: ours against all logits at once.

FLOPs: 2 T D V for the logits and twice that for the gradients of the head and of what it reads,
however they are computed; what a chunked loss computes twice is not counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.gemm import DTYPES
from fm.benchmark.timing import Candidate, jax_candidate
from fm.model.cross_entropy import fused_linear_cross_entropy


def cases(setting: BenchConfig) -> Iterator[Case]:
    """Predictions T, width D and vocabulary V."""
    sizes = [(8192, 128, 4096), (4096, 384, 8192), (2048, 384, 50304)]
    if setting.on_accelerator:
        sizes = [(16384, 768, 50304)]
    for size in [(16, 8, 32)] if setting.quick else sizes:
        for dtype in DTYPES[:1] if setting.quick else DTYPES:
            yield _case(setting, size, dtype)


def _case(setting: BenchConfig, size: tuple[int, int, int], dtype: str) -> Case:
    T, D, V = size

    def ours() -> Candidate:
        def mean(head_DV, h_TD, targets_T):
            weights_T = jnp.full(len(h_TD), 1.0 / len(h_TD))
            return fused_linear_cross_entropy(head_DV, h_TD, targets_T, weights_T)

        return _with_gradients(mean, setting, size, dtype)

    def torch_loss() -> Candidate:
        from fm.benchmark.peers import pytorch

        return pytorch.vocabulary_loss(*arrays(setting, size), dtype)

    return Case(
        suite="loss",
        name=f"T{T} D{D} V{V}, value and gradients",
        dtype=dtype,
        candidates={"chunked": ours},
        peers={
            "jax": {"all logits": lambda: _with_gradients(all_logits, setting, size, dtype)},
            "torch": {"cross_entropy": torch_loss},
        },
        flops=6.0 * T * D * V,
        num_tokens=T,
    )


def all_logits(head_DV: jax.Array, h_TD: jax.Array, targets_T: jax.Array) -> jax.Array:
    """Mean nats of the targets, every logit held in float32."""
    logits_TV = (h_TD @ head_DV.astype(h_TD.dtype)).astype(jnp.float32)
    log_p_TV = jax.nn.log_softmax(logits_TV, axis=-1)
    return -jnp.mean(jnp.take_along_axis(log_p_TV, targets_T[:, None], axis=-1))


def arrays(
    setting: BenchConfig, size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head [D, V], what it reads [T, D], and targets [T]."""
    T, D, V = size
    rng = np.random.default_rng(setting.seed)
    head_DV = rng.standard_normal((D, V), np.float32) * D**-0.5
    return head_DV, rng.standard_normal((T, D), np.float32), rng.integers(0, V, T, np.int32)


def _with_gradients(
    mean: Any, setting: BenchConfig, size: tuple[int, int, int], dtype: str
) -> Candidate:
    head_DV, h_TD, targets_T = arrays(setting, size)
    arguments = (jnp.asarray(head_DV), jnp.asarray(h_TD, dtype), jnp.asarray(targets_T))
    return jax_candidate(jax.value_and_grad(mean, argnums=(0, 1)), *arguments)
