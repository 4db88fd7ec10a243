"""PyTorch functions as candidates, and the single operations it is compared on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from fm.benchmark.core import Candidate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> str:
    """Returns "cuda" if PyTorch has a GPU, else "cpu".

    On a GPU float32 products may use TensorFloat-32, as JAX's do by default.
    """
    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    return "cuda"


def candidate(function: Callable[..., Any], *arguments: Any, chained: bool = False) -> Candidate:
    """Calls a PyTorch function once, timing its compilation, and returns it as a `Candidate`.

    Raises:
      NotImplementedError: PyTorch cannot run it here; the reason is its own first line.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        synchronize(function(*arguments))
    except RuntimeError as error:
        # Raised for a missing compiler, a missing kernel and exhausted memory alike.
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        raise NotImplementedError(f"{type(error).__name__}: {first_line[:200]}") from error
    return Candidate(
        call=lambda: function(*arguments),
        wait=synchronize,
        chained=chained,
        compile_seconds=time.perf_counter() - start,
        peak_memory_bytes=(
            torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        ),
    )


def synchronize(_: Any) -> None:
    """Blocks until the GPU is done; returns at once on a CPU, where calls are synchronous."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def tensor(array: np.ndarray, dtype: str, *, requires_grad: bool = False) -> Any:
    """Returns a copy of an array as a PyTorch tensor of `dtype`, on the GPU if there is one."""
    x = torch.tensor(np.asarray(array), device=device()).to(DTYPES[dtype])
    return x.requires_grad_(requires_grad)


def gemm(x: np.ndarray, y: np.ndarray, dtype: str) -> Candidate:
    """Returns a candidate that computes the matrix product x @ y."""
    return candidate(torch.mm, tensor(x, dtype), tensor(y, dtype))


def attention(
    q_BLHC: np.ndarray,
    k_BSKC: np.ndarray,
    v_BSKC: np.ndarray,
    do_BLHC: np.ndarray,
    dtype: str,
    *,
    causal: bool,
    backward: bool,
    kv_length: np.ndarray | None = None,
) -> Candidate:
    """Returns a candidate for `scaled_dot_product_attention`, with gradients if `backward`."""

    def heads_first(x: np.ndarray, requires_grad: bool) -> Any:
        x = np.ascontiguousarray(np.swapaxes(x, 1, 2))
        return tensor(x, dtype, requires_grad=requires_grad)

    q, k, v = (heads_first(x, backward) for x in (q_BLHC, k_BSKC, v_BSKC))
    do = heads_first(do_BLHC, False)
    options: dict[str, Any] = {"is_causal": causal, "enable_gqa": q.shape[1] != k.shape[1]}
    if kv_length is not None:
        valid = np.arange(k.shape[2]) < kv_length[:, None]
        options["attn_mask"] = torch.tensor(valid[:, None, None], device=device())

    def forward():
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, **options)

    def forward_backward():
        o = F.scaled_dot_product_attention(q, k, v, **options)
        return o, *torch.autograd.grad(o, (q, k, v), do)

    return candidate(forward_backward if backward else forward)


def cross_entropy(
    head_DV: np.ndarray, h_TD: np.ndarray, targets_T: np.ndarray, dtype: str
) -> Candidate:
    """Returns a candidate for mean cross-entropy over full logits, with its gradients."""
    head = tensor(head_DV, "float32", requires_grad=True)
    h = tensor(h_TD, dtype, requires_grad=True)
    targets = torch.tensor(targets_T, device=device()).long()

    def loss_and_gradients():
        logits = (h @ head.to(DTYPES[dtype])).float()
        loss = F.cross_entropy(logits, targets)
        return loss, *torch.autograd.grad(loss, (head, h))

    return candidate(loss_and_gradients)
