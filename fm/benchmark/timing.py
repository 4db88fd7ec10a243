"""How anything here is timed: warm, in turns, several rounds, medians and quartiles.

A shared machine drifts by tens of percent within a minute, so two figures are compared only if
they were taken side by side. All sides of a case take one turn a round, the order turning round
with every round; a ratio is taken within each round, and the median over rounds is what counts.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

# Threads of another library that spin after their last call need this long to sleep.
_PAUSE_SECONDS = 0.01
# Below this a turn starts with an untimed call, which brings caches and threads back.
_SETTLES_BELOW = 0.2
# Above this one call warms a side up as well as two.
_SLOW = 1.0
_FEWEST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One implementation of a case, compiled and ready.

    Attributes:
      call: does the work once; may return before it is done.
      wait: takes what `call` gave and returns once it is there.
      chained: every call needs the result of the one before (steps of training), so that calls
        sent ahead still run one after another.
      compile_seconds: from shapes to a program; None where nothing is compiled apart.
      peak_memory_bytes: arguments, results and what is held between; None if unknown.
      min_bytes: what must move at least: arguments in, results out; None if unknown.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    chained: bool = False
    compile_seconds: float | None = None
    peak_memory_bytes: int | None = None
    min_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class TimingConfig:
    """How long and how often to measure.

    Attributes:
      num_rounds: rounds.
      seconds_per_turn: a turn makes as many calls as last about this long, one at least.
      async_dispatch: whether calls may be sent before earlier ones are done. Right on an accelerator,
        whose queue runs them in order and hides the host; on a CPU two calls that do not need
        each other could run at the same time.
      max_seconds: after so long no further round begins, once there are three.
    """

    num_rounds: int
    seconds_per_turn: float
    async_dispatch: bool
    max_seconds: float = math.inf


def interleave(sides: Mapping[str, Candidate], pace: TimingConfig) -> dict[str, list[float]]:
    """Seconds per call of every side: one figure a round, taken in turns."""
    calls = {name: _calls(side, pace) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    began = time.perf_counter()
    for turn in range(pace.num_rounds):
        if turn >= _FEWEST_ROUNDS and time.perf_counter() - began > pace.max_seconds:
            break
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            number, one_call = calls[name]
            time.sleep(_PAUSE_SECONDS)
            if one_call < _SETTLES_BELOW:
                sides[name].wait(sides[name].call())
            seconds[name].append(_timed(sides[name], number, pace.async_dispatch))
    return seconds


def _calls(side: Candidate, pace: TimingConfig) -> tuple[int, float]:
    """How many calls make a turn, and how long one takes; those before warm up."""
    _timed(side, 1, ahead=False)
    one_call = _timed(side, 1, ahead=False)
    if one_call > _SLOW:
        return 1, one_call
    one_call = _timed(side, 1, ahead=False)
    return max(1, min(1000, math.ceil(pace.seconds_per_turn / max(one_call, 1e-9)))), one_call


def _timed(side: Candidate, calls: int, ahead: bool) -> float:
    """Seconds per call of `calls` in a row."""
    collects = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        result = None
        for _ in range(calls):
            result = side.call()
            if not (ahead or side.chained):
                side.wait(result)
        side.wait(result)
        return (time.perf_counter() - began) / calls
    finally:
        if collects:
            gc.enable()


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """25%, 50% and 75% of the figures, interpolated between neighbours."""
    ordered = sorted(figures)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.5), at(0.75)


def jax_candidate(function: Callable[..., Any], *arguments: Any, **options: Any) -> Candidate:
    """A function of arrays, compiled for these arguments and called with them every time."""
    jitted = jax.jit(function, **options)
    seconds, compiled = timed_compile(jitted, *arguments)
    return Candidate(
        call=lambda: jitted(*arguments),
        wait=jax.block_until_ready,
        compile_seconds=seconds,
        peak_memory_bytes=peak_memory(compiled),
        min_bytes=min_bytes(jitted, *arguments),
    )


def timed_compile(jitted: Any, *arguments: Any) -> tuple[float, Any]:
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


def min_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of all arrays that go in and all that come out."""
    results = jax.eval_shape(function, *arguments)
    leaves = jax.tree.leaves((arguments, results))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if hasattr(leaf, "dtype"))
