"""The benchmark's data types: a case, its candidates, the configuration and a row of results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

SCALES = ("quick", "default", "full")


@dataclasses.dataclass(frozen=True)
class TimingConfig:
    """How a benchmark case is timed: rounds, seconds per turn and asynchronous dispatch.

    Attributes:
      num_rounds: rounds per case.
      seconds_per_turn: a turn makes as many calls as take about this long, at least one.
      async_dispatch: whether a call may be dispatched before the previous one is done. Right on an
        accelerator, whose queue runs them in order and hides the host; on a CPU two independent
        calls could run at the same time.
      max_seconds: no further round starts after this, once there are three.
    """

    num_rounds: int
    seconds_per_turn: float
    async_dispatch: bool
    max_seconds: float = math.inf


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Configuration of a benchmark run: scale, platform, repetitions and seed.

    Attributes:
      scale: "quick" has tiny shapes, for tests; "default" is the published set; "full" adds what
        takes long.
      platform: of JAX: "cpu", "gpu" or "tpu".
      repeats: rounds per case, or None for the scale's; a slow case gets fewer.
      attention_implementations: measured beside the selected one.
      seed: of all data.
    """

    scale: str = "default"
    platform: str = "cpu"
    repeats: int | None = None
    attention_implementations: tuple[str, ...] = ()
    seed: int = 0

    @property
    def quick(self) -> bool:
        """Returns whether the scale has tiny shapes."""
        return self.scale == "quick"

    @property
    def on_accelerator(self) -> bool:
        """Returns whether the platform is not the CPU."""
        return self.platform != "cpu"

    @property
    def timing(self) -> TimingConfig:
        """Returns the timing configuration of every case."""
        rounds = {"quick": 3, "default": 7, "full": 11}[self.scale]
        return TimingConfig(
            num_rounds=self.repeats or rounds,
            seconds_per_turn=0.002 if self.quick else 0.1,
            async_dispatch=self.on_accelerator,
            max_seconds=90.0,
        )

    @property
    def gemm_size(self) -> int:
        """Returns the side of the square matrix products that measure the peak rate."""
        return 256 if self.quick else 8192 if self.on_accelerator else 2048


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A compiled, timeable implementation of a case, from fm or a compared library (peer).

    Attributes:
      call: does the work once; may return before it is done.
      wait: takes the result of `call` and returns once it is ready.
      chained: each call needs the result of the previous one (training steps), so that calls
        dispatched ahead still run one after another.
      compile_seconds: from shapes to a program; None where nothing is compiled separately.
      peak_memory_bytes: arguments, results and temporaries; None if unknown.
      min_bytes: the least that must move, arguments in and results out; None if unknown.
      turn: makes so many calls in another process and returns its seconds per call; None where
        calls are made and timed here.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    chained: bool = False
    compile_seconds: float | None = None
    peak_memory_bytes: int | None = None
    min_bytes: int | None = None
    turn: Callable[[int], float] | None = None


# Compiles one candidate. Raises NotImplementedError, with the reason, if it cannot run here.
Build = Callable[[], Candidate]


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload to measure, with functions that compile it in fm and in the compared libraries.

    Attributes:
      suite: as in `--suite`.
      name: shapes, in words; unique together with `suite` and `dtype`.
      dtype: of the arithmetic.
      candidates: our implementations by name.
      peers: by peer ("torch", "jax"), its implementations by name.
      flops: of one call.
      num_tokens: tokens processed by one call.
      attention: the attention implementation that runs inside.
      ablated: the same work without what the case is about; what it saves is the row's
        `input_wait_fraction`.
      memory_bound: whether reading memory is the limit, so that `min_bytes` over the time is held
        against the rate at which this machine reads.
      axis: in a scaling case, the size that is varied.
      at: in a scaling case, the value of that size.
    """

    suite: str
    name: str
    dtype: str
    candidates: Mapping[str, Build]
    peers: Mapping[str, Mapping[str, Build]] = dataclasses.field(default_factory=dict)
    flops: float | None = None
    num_tokens: int | None = None
    attention: str | None = None
    ablated: Build | None = None
    memory_bound: bool = False
    axis: str | None = None
    at: float | None = None

    @property
    def key(self) -> str:
        """Returns the string that identifies the case; `--filter` searches it."""
        return f"{self.suite} {self.name} {self.dtype}"


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """Benchmark result of an fm implementation on one case, optionally compared with a peer.

    Attributes:
      suite: as in `Case`.
      case: name of the case.
      dtype: of the arithmetic, "float32" or "bfloat16".
      implementation: our implementation.
      peer: "torch", "jax", "transformers", or "none" for a row without a comparison.
      ratio: our throughput over the peer's, median over rounds; above 1 we are faster.
      ratio_spread: 25% and 75% quantiles of the same.
      peer_implementation: which implementation of the peer.
      peer_seconds: median seconds per call of the peer.
      peer_peak_memory_bytes: as `peak_memory_bytes`, of the peer.
      attention: the attention implementation that ran.
      median_seconds: per call.
      spread: 25% and 75% quantiles of the seconds per call.
      repeats: rounds measured.
      tokens_per_s: where the case has tokens.
      flops: of one call, counted by hand as the page explains.
      min_bytes: as in `Candidate`.
      flops_per_s: flops / median_seconds.
      gemm_utilization: flops_per_s over the rate of a matrix product of the same dtype, timed in
        the same rounds.
      read_utilization: min_bytes / median_seconds over the rate at which a product with one vector
        reads a matrix too large for caches, timed in the same rounds; of memory-bound cases.
      peak_memory_bytes: arguments, results and temporaries, as the compiler reports them.
      compile_seconds: from shapes to a program, without a compilation cache.
      input_wait_fraction: fraction of training time spent on the input pipeline.
      axis: as in `Case`.
      at: as in `Case`.
      note: what a reader must know, such as why a figure is missing.
    """

    suite: str
    case: str
    dtype: str
    implementation: str
    peer: str = "none"
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    peer_implementation: str | None = None
    peer_seconds: float | None = None
    peer_peak_memory_bytes: int | None = None
    attention: str | None = None
    median_seconds: float | None = None
    spread: tuple[float, float] | None = None
    repeats: int | None = None
    tokens_per_s: float | None = None
    flops: float | None = None
    min_bytes: int | None = None
    flops_per_s: float | None = None
    gemm_utilization: float | None = None
    read_utilization: float | None = None
    peak_memory_bytes: int | None = None
    compile_seconds: float | None = None
    input_wait_fraction: float | None = None
    axis: str | None = None
    at: float | None = None
    note: str | None = None
