"""One row of results: one implementation on one case, alone or against one peer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fm.benchmark.timing import Candidate, TimingConfig


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A row; every figure is None where it is unknown or does not apply.

    Attributes:
      suite: kind of case.
      case: its name: shapes, in words.
      dtype: of the arithmetic, "float32" or "bfloat16".
      implementation: ours.
      peer: "torch", "jax", or "none" for a row that compares nothing.
      ratio: our throughput over the peer's, the median over rounds; above 1 we are faster.
      ratio_spread: 25% and 75% of the same.
      peer_implementation: which of the peer's ways.
      peer_seconds: median per call, of the peer.
      peer_peak_memory_bytes: as `peak_memory_bytes`, of the peer.
      attention: name of the attention implementation that ran.
      median_seconds: per call.
      spread: 25% and 75% of the seconds per call.
      repeats: rounds measured.
      tokens_per_s: pieces of text, where the case has any.
      flops: of one call, counted by hand; how is on the page.
      min_bytes: that must move at least: arguments in, results out.
      flops_per_s: flops / median_seconds.
      gemm_utilization: of the matrix-product rate of the dtype, measured in the same rounds.
      peak_memory_bytes: arguments, results and what is held between, as the compiler says.
      compile_seconds: from shapes to a program, nothing cached.
      input_wait_fraction: of the time of training, spent on the input pipeline.
      axis: in a scaling row, what is varied.
      at: in a scaling row, to what.
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
    peak_memory_bytes: int | None = None
    compile_seconds: float | None = None
    input_wait_fraction: float | None = None
    axis: str | None = None
    at: float | None = None
    note: str | None = None


def as_json(row: ResultRow) -> dict[str, Any]:
    """The row as results hold it."""
    return dataclasses.asdict(row)


def case_key(suite: str, case: str, dtype: str) -> str:
    """What names a case; what `--only` searches."""
    return f"{suite} {case} {dtype}"


SCALES = ("quick", "default", "full")


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Sizes and pace of a run.

    Attributes:
      scale: "quick" has tiny shapes and is for tests; "default" is the published set; "full"
        adds to it what takes long.
      platform: of JAX: "cpu", "gpu" or "tpu".
      repeats: rounds per case, or None for the scale's; a slow case gets fewer.
      attention_implementations: names of attention implementations measured beside the one `choose` picks.
      seed: of all data.
    """

    scale: str = "default"
    platform: str = "cpu"
    repeats: int | None = None
    attention_implementations: tuple[str, ...] = ()
    seed: int = 0

    @property
    def quick(self) -> bool:
        """Whether shapes are tiny."""
        return self.scale == "quick"

    @property
    def on_accelerator(self) -> bool:
        """Whether the work runs elsewhere than on the host."""
        return self.platform != "cpu"

    @property
    def timing(self) -> TimingConfig:
        """How long and how often to measure."""
        rounds = {"quick": 3, "default": 7, "full": 11}[self.scale]
        return TimingConfig(
            num_rounds=self.repeats or rounds,
            seconds_per_turn=0.002 if self.quick else 0.1,
            async_dispatch=self.on_accelerator,
            max_seconds=90.0,
        )

    @property
    def gemm_size(self) -> int:
        """Side of the square matrix products that stand for the peak rate."""
        return 256 if self.quick else 8192 if self.on_accelerator else 2048


# Compiles one implementation. Raises NotImplementedError, with the reason, if it cannot run here.
Build = Callable[[], Candidate]


@dataclasses.dataclass(frozen=True)
class Case:
    """The same work, done by us and by others; built only when its turn comes.

    Attributes:
      suite: kind, as in `--what`.
      name: shapes, in words; with `suite` and `dtype` it names the case.
      dtype: of the arithmetic.
      candidates: our implementations by name.
      peers: by peer ("torch", "jax"), its ways of doing it by name.
      flops: of one call.
      num_tokens: pieces of text in one call.
      attention: name of the attention implementation that runs inside.
      ablated: the same work less what the case is about; what that saves is `input_wait_fraction`.
      axis: in a scaling case, what is varied.
      at: in a scaling case, to what.
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
    axis: str | None = None
    at: float | None = None

    @property
    def key(self) -> str:
        """What names the case."""
        return case_key(self.suite, self.name, self.dtype)
