"""A benchmark run: measures case after case, saves the results after each, then writes the page."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from fm import lock
from fm.benchmark import peers as peer_packages
from fm.benchmark import report
from fm.benchmark.core import BenchConfig, Build, Candidate, Case, ResultRow
from fm.benchmark.peer_process import PeerProcesses
from fm.benchmark.suites import SUITES, matmul, scaling
from fm.benchmark.timing import quartiles, time_interleaved
from fm.errors import UserError
from fm.files import atomic_write, read_json
from fm.progress_lines import phase, say
from fm.study import run_dir
from fm.training.config import config_differences
from fm.training.failures import first_line, is_out_of_memory
from fm.training.signals import Interrupted

SCHEMA = 2
# A run resumes only where these are the same: its rows could not be compared otherwise.
_FIXED = ("config", "device", "versions", "xla_flags")
_GEMM, _READ, _ABLATED = "gemm", "read", "ablated"


@dataclasses.dataclass(frozen=True)
class BenchRequest:
    """What a benchmark run measures (suites, peers, configuration), and its results file.

    Attributes:
      suites: names in `SUITES`.
      peers: names in `PEERS`.
      config: sizes and timing.
      path: FILE.json; FILE.html and the figures lie beside it.
      filter: text that the key of a case must contain, such as "bfloat16" or "L4096".
      command: the command line, for the page.
    """

    suites: tuple[str, ...]
    peers: tuple[str, ...]
    config: BenchConfig
    path: pathlib.Path
    filter: str = ""
    command: str = ""


def run(request: BenchRequest) -> dict[str, Any]:
    """Measures cases missing from the results file, writes an HTML report, returns all results.

    Raises:
      UserError: no case matches; the file cannot be used, or belongs to another run.
      Interrupted: on Ctrl-C; the cases measured so far are in the file.
    """
    cases = [case for suite in request.suites for case in SUITES[suite].cases(request.config)]
    cases = [case for case in cases if request.filter in case.key]
    if not cases:
        suites = ", ".join(request.suites)
        raise UserError(f"--filter={request.filter}: no case of {suites} contains this text")
    results = _load_or_create(_empty_results(request), request.path)
    if results["finished"]:
        say(f"{request.path} is finished; another --out measures again")
        return results
    _save(results, request.path)
    left = [case for case in cases if case.key not in _measured_keys(results)]
    try:
        with _no_compilation_cache():
            _measure_all(left, request, results)
    except KeyboardInterrupt:
        report.write_report(results, request.path)
        raise Interrupted(
            f"stopped; {len(_measured_keys(results))} of {len(cases)} cases are in "
            f"{request.path}; the same command resumes"
        ) from None
    results["finished"] = True
    _save(results, request.path)
    report.write_report(results, request.path)
    return results


def _measured_keys(results: dict[str, Any]) -> set[str]:
    return {f"{row['suite']} {row['case']} {row['dtype']}" for row in results["rows"]}


def _measure_all(cases: list[Case], request: BenchRequest, results: dict[str, Any]) -> None:
    config = request.config
    gemms = {dtype: matmul.gemm_candidate(config, dtype) for dtype in matmul.DTYPES}
    if not results["roofline"]:
        results["roofline"] = _measure_roofline(gemms, config)
    with phase("benchmark", len(cases), "cases") as measured:
        for case in cases:
            measured.note(case.key)
            rows = measure_case(case, request.peers, config, gemms.get(case.dtype))
            results["rows"] += [dataclasses.asdict(row) for row in rows]
            results["scaling"] = scaling.fit_exponents(results["rows"])
            _save(results, request.path)
            measured.update()


def _measure_roofline(
    gemms: dict[str, tuple[Candidate, float]], config: BenchConfig
) -> dict[str, Any]:
    """Peak rates of this machine: matrix products of each dtype, and bytes moved."""
    copy, num_bytes = matmul.bandwidth_candidate(config)
    candidates = {dtype: gemm for dtype, (gemm, _) in gemms.items()} | {"bytes": copy}
    times = time_interleaved(candidates, config.timing)
    seconds = {name: quartiles(each)[1] for name, each in times.items()}
    return {
        "flops_per_s": {dtype: flops / seconds[dtype] for dtype, (_, flops) in gemms.items()},
        "bytes_per_s": num_bytes / seconds["bytes"],
    }


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Compiles everything inside anew, so that compile times are meaningful."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


# --- One case ---


def measure_case(
    case: Case, peers: Sequence[str], config: BenchConfig, gemm: tuple[Candidate, float] | None
) -> list[ResultRow]:
    """Compiles and times a case's candidates; returns a row per pair of own and peer candidates.

    Args:
      case: what to measure.
      peers: whom to compare with; "none" asks for a row without a comparison.
      config: sizes and timing.
      gemm: a matrix product of the case's dtype and its FLOPs, timed in the same rounds.

    Returns:
      A row for each of our implementations and each implementation of each peer asked for. A peer
      that is not installed, or a candidate that cannot run or runs out of memory, gives a row
      without a ratio whose note says why.
    """
    candidates: dict[str, Candidate] = {}
    failures: dict[str, str] = {}
    builds = {f"our {name}": build for name, build in case.candidates.items()}
    with contextlib.closing(PeerProcesses(case, config)) as others:
        for peer in peers:
            if peer_packages.unavailable_reason(peer) is not None:
                continue
            for name, build in case.peers.get(peer, {}).items():
                if peer_packages.is_other_library(peer):
                    build = functools.partial(others.build, peer, name)
                builds[f"{peer} {name}"] = build
        if case.ablated is not None:
            builds[_ABLATED] = case.ablated
        for name, build in builds.items():
            _build(name, build, candidates, failures)
        # The utilization of a matrix product by itself would say nothing.
        if gemm is not None and case.flops is not None and case.suite != "matmul":
            candidates[_GEMM] = gemm[0]
        read_bytes = None
        if case.memory_bound:
            candidates[_READ], read_bytes = matmul.read_candidate(config)
        seconds = time_interleaved(candidates, config.timing)

    def against(alone: ResultRow, peer: str, implementation: str | None) -> ResultRow:
        if implementation is None:
            return dataclasses.replace(
                alone, peer=peer, note=peer_packages.unavailable_reason(peer)
            )
        alone = dataclasses.replace(alone, peer=peer, peer_implementation=implementation)
        name = f"{peer} {implementation}"
        if name in failures:
            return dataclasses.replace(alone, note=failures[name])
        own = seconds[f"our {alone.implementation}"]
        ratios = [theirs / ours for ours, theirs in zip(own, seconds[name], strict=True)]
        low, median, high = quartiles(ratios)
        return dataclasses.replace(
            alone,
            ratio=median,
            ratio_spread=(low, high),
            peer_seconds=quartiles(seconds[name])[1],
            peer_peak_memory_bytes=candidates[name].peak_memory_bytes,
        )

    rows = []
    for implementation in case.candidates:
        name = f"our {implementation}"
        if name in failures:
            note = failures[name]
            rows.append(ResultRow(case.suite, case.name, case.dtype, implementation, note=note))
            continue
        alone = _row_alone(
            case, implementation, candidates[name], seconds, gemm and gemm[1], read_bytes
        )
        pairs = [
            against(alone, peer, each)
            for peer in peers
            if peer in case.peers
            for each in (
                case.peers[peer] if peer_packages.unavailable_reason(peer) is None else [None]
            )
        ]
        rows += ([alone] if "none" in peers or not pairs else []) + pairs
    return rows


def _build(
    name: str, build: Build, candidates: dict[str, Candidate], failures: dict[str, str]
) -> None:
    """Compiles a candidate; one that cannot run, or runs out of memory, does not end the others."""
    try:
        candidate = build()
        candidate.wait(candidate.call())
        candidates[name] = candidate
    except NotImplementedError as reason:
        failures[name] = f"cannot run here: {' '.join(str(reason).split())}"
    # PyTorch and JAX raise RuntimeErrors of their own.
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failures[name] = f"out of memory: {first_line(error)}"


def _row_alone(
    case: Case,
    implementation: str,
    candidate: Candidate,
    seconds: dict[str, list[float]],
    gemm_flops: float | None,
    read_bytes: int | None,
) -> ResultRow:
    """The row without a comparison."""
    own = seconds[f"our {implementation}"]
    low, median, high = quartiles(own)
    utilization = read_utilization = input_wait = None
    if case.flops is not None and gemm_flops and _GEMM in seconds:
        utilization = quartiles(
            [
                (case.flops / taken) / (gemm_flops / gemm_taken)
                for taken, gemm_taken in zip(own, seconds[_GEMM], strict=True)
            ]
        )[1]
    if candidate.min_bytes is not None and read_bytes and _READ in seconds:
        read_utilization = quartiles(
            [
                (candidate.min_bytes / taken) / (read_bytes / read_taken)
                for taken, read_taken in zip(own, seconds[_READ], strict=True)
            ]
        )[1]
    if _ABLATED in seconds:
        saved = [1.0 - b / a for a, b in zip(own, seconds[_ABLATED], strict=True)]
        input_wait = max(0.0, quartiles(saved)[1])
    return ResultRow(
        suite=case.suite,
        case=case.name,
        dtype=case.dtype,
        implementation=implementation,
        attention=case.attention,
        median_seconds=median,
        spread=(low, high),
        repeats=len(own),
        tokens_per_s=case.num_tokens / median if case.num_tokens else None,
        flops=case.flops,
        min_bytes=candidate.min_bytes,
        flops_per_s=case.flops / median if case.flops else None,
        gemm_utilization=utilization,
        read_utilization=read_utilization,
        peak_memory_bytes=candidate.peak_memory_bytes,
        compile_seconds=candidate.compile_seconds,
        input_wait_fraction=input_wait,
        axis=case.axis,
        at=case.at,
    )


# --- The results file ---


def _empty_results(request: BenchRequest) -> dict[str, Any]:
    config = request.config
    return {
        "schema": SCHEMA,
        "finished": False,
        "command": request.command,
        "config": {
            "suite": list(request.suites),
            "baseline": list(request.peers),
            "filter": request.filter,
            **dataclasses.asdict(config),
            "repeats": config.timing.num_rounds,
            "attention_implementations": list(config.attention_implementations),
        },
        "device": run_dir.machine_info() | peer_packages.torch_device_info(),
        "versions": run_dir.package_versions() | peer_packages.package_versions(),
        "xla_flags": run_dir.xla_flags(),
        # Other work on the machine makes every figure worse, and some more than others.
        "load_before": os.getloadavg()[0],
        "missing": {
            peer: why for peer in request.peers if (why := peer_packages.unavailable_reason(peer))
        },
        "roofline": {},
        "rows": [],
        "scaling": [],
    }


def _load_or_create(empty: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Returns the results in the file if they are of the same run, or `empty` if there is none.

    Raises:
      UserError: the file cannot be written, is locked by another process, or holds something else.
    """
    if path.suffix != ".json":
        raise UserError(f"--out={path}: takes a file name that ends in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK) or path.is_dir():
            raise PermissionError(None, "a folder" if path.is_dir() else "not writable")
        lock.acquire(path.parent, f".{path.name}.lock")
        if not path.exists():
            return empty
        found = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--out={path} cannot be used ({reason}); it takes a file that can be written"
        ) from error
    if not isinstance(found, dict) or "rows" not in found:
        raise UserError(f"--out={path} exists and holds no benchmark; choose another name")
    if found.get("schema") != SCHEMA:
        raise UserError(f"--out={path} holds a benchmark of another version; choose another name")
    changed = {}
    for part in _FIXED:
        wanted = json.loads(json.dumps(empty[part]))
        changed |= config_differences({part: found.get(part)}, {part: wanted})
    if changed:
        shown = [f"{name}: {was} -> {now}" for name, (was, now) in changed.items()]
        raise UserError(
            f"--out={path} holds another benchmark ({'; '.join(shown[:4])}); choose another name"
        )
    return found


def _save(results: dict[str, Any], path: pathlib.Path) -> None:
    atomic_write(path, json.dumps(results, indent=1, allow_nan=False).encode())
