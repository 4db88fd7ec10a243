"""PyTorch functions as sides of a case, and the single operations it is compared on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from fm.benchmark.timing import Candidate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> str:
    """Where PyTorch computes: on the GPU if it has one.

    There float32 products may use TensorFloat-32, as JAX's do by default.
    """
    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    return "cuda"


def threads() -> int:
    """Threads of one operation: the physical cores, unless the user set another number."""
    return torch.get_num_threads()


def side(function: Callable[..., Any], *arguments: Any, chained: bool = False) -> Candidate:
    """A function called with the same arguments every time, its first call made."""
    seconds, peak = first_call(lambda: function(*arguments))
    return Candidate(
        call=lambda: function(*arguments),
        wait=wait,
        chained=chained,
        compile_seconds=seconds,
        peak_memory_bytes=peak,
    )


def first_call(call: Callable[[], Any]) -> tuple[float, int | None]:
    """Seconds of the first call, which compiles what is compiled, and its peak memory (GPU).

    Raises:
      NotImplementedError: PyTorch cannot do it here; the reason is its own first line.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        wait(call())
    except RuntimeError as error:
        # Of this class are a compiler that is missing, a kernel that is, and memory run out.
        kind = type(error).__name__
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise NotImplementedError(f"{kind}: {first[:200]}") from error
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return seconds, peak


def wait(_: Any) -> None:
    """Returns once the GPU is done; on a CPU every call is done when it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def tensor(array: np.ndarray, dtype: str, *, gradient: bool = False) -> Any:
    """A float array as a tensor where PyTorch computes."""
    made = torch.tensor(np.asarray(array), device=device()).to(DTYPES[dtype])
    return made.requires_grad_(gradient)


def gemm(x: np.ndarray, y: np.ndarray, dtype: str) -> Candidate:
    """x y."""
    return side(torch.mm, tensor(x, dtype), tensor(y, dtype))


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
    """`scaled_dot_product_attention`, on tensors laid out as it likes them, heads before length.

    With `backward`, the gradients of q, k and v too.
    """

    def ahead(x: np.ndarray, gradient: bool) -> Any:
        return tensor(np.ascontiguousarray(np.swapaxes(x, 1, 2)), dtype, gradient=gradient)

    q, k, v = (ahead(x, backward) for x in (q_BLHC, k_BSKC, v_BSKC))
    do = ahead(do_BLHC, False)
    options: dict[str, Any] = {"is_causal": causal, "enable_gqa": q.shape[1] != k.shape[1]}
    if kv_length is not None:
        valid = np.arange(k.shape[2]) < kv_length[:, None]
        options["attn_mask"] = torch.tensor(valid[:, None, None], device=device())

    def forward():
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, **options)

    def both():
        o = F.scaled_dot_product_attention(q, k, v, **options)
        return o, *torch.autograd.grad(o, (q, k, v), do)

    return side(both if backward else forward)


def vocabulary_loss(
    head_DV: np.ndarray, h_TD: np.ndarray, targets_T: np.ndarray, dtype: str
) -> Candidate:
    """Mean cross-entropy over full logits, and its gradients to the head and what it reads."""
    head = tensor(head_DV, "float32", gradient=True)
    h = tensor(h_TD, dtype, gradient=True)
    targets = torch.tensor(targets_T, device=device()).long()

    def both():
        logits = (h @ head.to(DTYPES[dtype])).float()
        loss = F.cross_entropy(logits, targets)
        return loss, *torch.autograd.grad(loss, (head, h))

    return side(both)
