"""JAX functions as sides of a case."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from fm.benchmark.timing import Side


def program(function: Callable[..., Any], *arguments: Any, **options: Any) -> Side:
    """A function of arrays, compiled for these arguments and called with them every time."""
    jitted = jax.jit(function, **options)
    seconds, compiled = compiled_in(jitted, *arguments)
    return Side(
        call=lambda: jitted(*arguments),
        wait=jax.block_until_ready,
        compile_seconds=seconds,
        peak_memory_bytes=peak_memory(compiled),
        least_bytes=least_bytes(jitted, *arguments),
    )


def compiled_in(jitted: Any, *arguments: Any) -> tuple[float, Any]:
    """Seconds from shapes to a program, and the program. The jitted function then has it too."""
    began = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    return time.perf_counter() - began, compiled


def peak_memory(compiled: Any) -> int | None:
    """Bytes of arguments, results and scratch; donated arguments count once."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def least_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of all arrays that go in and all that come out."""
    results = jax.eval_shape(function, *arguments)
    leaves = jax.tree.leaves((arguments, results))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))
