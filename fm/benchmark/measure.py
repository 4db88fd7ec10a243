"""A case to rows: every side compiled, all of them timed in turns, ratios round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fm.benchmark import peers as others
from fm.benchmark.core import BenchConfig, Build, Case, ResultRow
from fm.benchmark.timing import Candidate, interleave, quartiles
from fm.training.failures import first_line, is_out_of_memory

_GEMM, _WITHOUT = "gemm", "without"


def measure_case(
    case: Case, peers: Sequence[str], setting: BenchConfig, gemm: tuple[Candidate, float] | None
) -> list[ResultRow]:
    """Measures a case.

    Args:
      case: what to do.
      peers: whom to compare with; "none" asks for a row that compares nothing.
      setting: see `Setting`.
      gemm: a matrix product of the case's dtype and its FLOPs, timed in the same rounds.

    Returns:
      A row for each of our implementations and each way of each peer asked for. A peer that is
      not there, or a side that cannot run or has too little memory, gives a row without a ratio
      whose note says why.
    """
    sides: dict[str, Candidate] = {}
    failed: dict[str, str] = {}
    builds = {f"our {name}": build for name, build in case.candidates.items()}
    for peer in peers:
        if others.missing(peer) is None:
            ways = case.peers.get(peer, {})
            builds |= {f"{peer} {way}": build for way, build in ways.items()}
    if case.ablated is not None:
        builds[_WITHOUT] = case.ablated
    for name, build in builds.items():
        _build(name, build, sides, failed)
    # A matrix product's share of itself says nothing.
    if gemm is not None and case.flops is not None and case.suite != _GEMM:
        sides[_GEMM] = gemm[0]
    seconds = interleave(sides, setting.timing)
    rate = gemm[1] if gemm else 0.0

    rows = []
    for ours in case.candidates:
        name = f"our {ours}"
        if name in failed:
            rows.append(ResultRow(case.suite, case.name, case.dtype, ours, note=failed[name]))
            continue
        alone = _alone(case, ours, sides[name], seconds, rate)
        pairs = [
            _against(alone, peer, way, seconds[name], sides, seconds, failed)
            for peer in peers
            for way in (case.peers.get(peer, {}) if others.missing(peer) is None else [None])
            if peer in case.peers
        ]
        rows += ([alone] if "none" in peers or not pairs else []) + pairs
    return rows


def _build(name: str, build: Build, sides: dict[str, Candidate], failed: dict[str, str]) -> None:
    """A side that cannot run, or has no room to, does not end the others."""
    try:
        side = build()
        side.wait(side.call())
        sides[name] = side
    except NotImplementedError as reason:
        failed[name] = f"cannot run here: {' '.join(str(reason).split())}"
    # RuntimeErrors are PyTorch's and JAX's own.
    except (MemoryError, RuntimeError) as error:
        if not (is_out_of_memory(error) or "out of memory" in first_line(error)):
            raise
        failed[name] = f"out of memory: {first_line(error)}"


def _alone(
    case: Case, ours: str, side: Candidate, seconds: dict[str, list[float]], gemm_flops: float
) -> ResultRow:
    """The row that compares nothing."""
    taken = seconds[f"our {ours}"]
    low, median, high = quartiles(taken)
    share = waited = None
    if case.flops is not None and _GEMM in seconds:
        shares = [
            (case.flops / ours_took) / (gemm_flops / gemm_took)
            for ours_took, gemm_took in zip(taken, seconds[_GEMM], strict=True)
        ]
        share = quartiles(shares)[1]
    if _WITHOUT in seconds:
        saved = [1.0 - b / a for a, b in zip(taken, seconds[_WITHOUT], strict=True)]
        waited = max(0.0, quartiles(saved)[1])
    return ResultRow(
        suite=case.suite,
        case=case.name,
        dtype=case.dtype,
        implementation=ours,
        attention=case.attention,
        median_seconds=median,
        spread=(low, high),
        repeats=len(taken),
        tokens_per_s=case.num_tokens / median if case.num_tokens else None,
        flops=case.flops,
        min_bytes=side.min_bytes,
        flops_per_s=case.flops / median if case.flops else None,
        gemm_utilization=share,
        peak_memory_bytes=side.peak_memory_bytes,
        compile_seconds=side.compile_seconds,
        input_wait_fraction=waited,
        axis=case.axis,
        at=case.at,
    )


def _against(
    alone: ResultRow,
    peer: str,
    way: str | None,
    taken: list[float],
    sides: dict[str, Candidate],
    seconds: dict[str, list[float]],
    failed: dict[str, str],
) -> ResultRow:
    """The row against one way of one peer."""
    if way is None:
        return dataclasses.replace(alone, peer=peer, note=others.missing(peer))
    name = f"{peer} {way}"
    if name in failed:
        return dataclasses.replace(alone, peer=peer, peer_implementation=way, note=failed[name])
    ratios = [theirs / ours for ours, theirs in zip(taken, seconds[name], strict=True)]
    low, median, high = quartiles(ratios)
    return dataclasses.replace(
        alone,
        peer=peer,
        ratio=median,
        ratio_spread=(low, high),
        peer_implementation=way,
        peer_seconds=quartiles(seconds[name])[1],
        peer_peak_memory_bytes=sides[name].peak_memory_bytes,
    )
