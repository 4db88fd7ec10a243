"""Timing: warm, interleaved, several rounds, medians and quartiles.

A shared machine drifts by tens of percent within a minute, so two figures are compared only if
they were taken side by side. Every candidate of a case takes one turn per round, the order
reversing from round to round; a ratio is taken within each round and its median is reported.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fm.benchmark.core import Candidate, TimingConfig

# Spinning threads of another library need this long to sleep after its last call.
_PAUSE_SECONDS = 0.01
# Calls shorter than this begin a turn with an untimed one, which brings back caches and threads.
_UNTIMED_CALL_BELOW = 0.2
# Above this one call warms up as well as two.
_SLOW_CALL = 1.0
_MIN_ROUNDS = 3


def time_interleaved(
    candidates: Mapping[str, Candidate], timing: TimingConfig
) -> dict[str, list[float]]:
    """Times candidates in turn, round by round; returns seconds per call of each by round."""
    calls = {name: _calls_per_turn(each, timing) for name, each in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    start = time.perf_counter()
    for turn in range(timing.num_rounds):
        if turn >= _MIN_ROUNDS and time.perf_counter() - start > timing.max_seconds:
            break
        for name in list(candidates)[:: -1 if turn % 2 else 1]:
            number, one_call = calls[name]
            time.sleep(_PAUSE_SECONDS)
            if one_call < _UNTIMED_CALL_BELOW:
                seconds_per_call(candidates[name], 1, timing.async_dispatch)
            seconds[name].append(seconds_per_call(candidates[name], number, timing.async_dispatch))
    return seconds


def _calls_per_turn(candidate: Candidate, timing: TimingConfig) -> tuple[int, float]:
    """Warms up; returns the calls that make a turn and the seconds of one."""
    seconds_per_call(candidate, 1, async_dispatch=False)
    one_call = seconds_per_call(candidate, 1, async_dispatch=False)
    if one_call > _SLOW_CALL:
        return 1, one_call
    one_call = seconds_per_call(candidate, 1, async_dispatch=False)
    return max(1, min(1000, math.ceil(timing.seconds_per_turn / max(one_call, 1e-9)))), one_call


def seconds_per_call(candidate: Candidate, calls: int, async_dispatch: bool) -> float:
    """Returns the mean seconds of `calls` calls in a row."""
    if candidate.turn is not None:
        return candidate.turn(calls)
    gc_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = candidate.call()
            if not (async_dispatch or candidate.chained):
                candidate.wait(result)
        candidate.wait(result)
        return (time.perf_counter() - start) / calls
    finally:
        if gc_enabled:
            gc.enable()


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """Returns the 25%, 50% and 75% quantiles."""
    low, median, high = np.quantile(figures, (0.25, 0.5, 0.75)).tolist()
    return low, median, high


def jax_candidate(function: Callable[..., Any], *arguments: Any) -> Candidate:
    """Compiles a function of arrays; returns a candidate that calls it with `arguments`."""
    jitted = jax.jit(function)
    seconds, compiled = timed_compile(jitted, *arguments)
    return Candidate(
        call=lambda: jitted(*arguments),
        wait=jax.block_until_ready,
        compile_seconds=seconds,
        peak_memory_bytes=peak_memory(compiled),
        min_bytes=min_bytes(jitted, *arguments),
    )


def timed_compile(jitted: Any, *arguments: Any) -> tuple[float, Any]:
    """Compiles a jitted function ahead of time; returns seconds and the compiled program."""
    start = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    return time.perf_counter() - start, compiled


def peak_memory(compiled: Any) -> int | None:
    """Returns a compiled function's argument, output and temporary bytes; None if unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def min_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the total bytes of a function's argument and result arrays."""
    results = jax.eval_shape(function, *arguments)
    leaves = jax.tree.leaves((arguments, results))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))
