"""One row of results: one implementation on one case, alone or against one peer."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A row; every figure is None where it is unknown or does not apply.

    Attributes:
      what: kind of case.
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
      bytes: that must move at least: arguments in, results out.
      flops_per_s: flops / median_seconds.
      share_of_peak: of the matrix-product rate of the dtype, measured in the same rounds.
      peak_memory_bytes: arguments, results and what is held between, as the compiler says.
      compile_seconds: from shapes to a program, nothing cached.
      share_waited: of the time of training, spent on the input pipeline.
      axis: in a scaling row, what is varied.
      at: in a scaling row, to what.
      note: what a reader must know, such as why a figure is missing.
    """

    what: str
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
    bytes: int | None = None
    flops_per_s: float | None = None
    share_of_peak: float | None = None
    peak_memory_bytes: int | None = None
    compile_seconds: float | None = None
    share_waited: float | None = None
    axis: str | None = None
    at: float | None = None
    note: str | None = None


def as_json(row: Row) -> dict[str, Any]:
    """The row as results hold it."""
    return dataclasses.asdict(row)


def key(what: str, case: str, dtype: str) -> str:
    """What names a case; what `--only` searches."""
    return f"{what} {case} {dtype}"
