"""A run of the benchmark: case after case, results on disk after each, then the page."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from tqdm import tqdm

from fm.benchmark import gemm, report, results, scaling
from fm.benchmark import peers as others
from fm.benchmark.core import BenchConfig, Case, as_json
from fm.benchmark.kinds import SUITES
from fm.benchmark.measure import measure_case
from fm.benchmark.timing import Candidate, interleave, quartiles
from fm.errors import UserError
from fm.study import run_dir
from fm.training.signals import Interrupted


@dataclasses.dataclass(frozen=True)
class BenchRequest:
    """What is measured and where it goes.

    Attributes:
      suites: kinds of case.
      peers: whom to compare with.
      config: sizes and pace.
      out: FILE.json; FILE.html and pictures lie beside it.
      filter: a text that the name of a case must hold, such as "bfloat16" or "L4096".
      command: as the user gave it, for the page.
    """

    suites: tuple[str, ...]
    peers: tuple[str, ...]
    config: BenchConfig
    out: pathlib.Path
    filter: str = ""
    command: str = ""


def run(request: BenchRequest) -> dict[str, Any]:
    """Measures every case that is not in the file yet, and writes the page.

    Raises:
      UserError: no case is asked for; or the file cannot be used, or is another run's.
      Interrupted: by Ctrl-C; cases measured so far are in the file.
    """
    cases = [case for what in request.suites for case in SUITES[what](request.config)]
    cases = [case for case in cases if request.filter in case.key]
    if not cases:
        raise UserError(f"--only={request.filter}: no case of {', '.join(request.suites)} has it")
    found = results.begin(_fresh(request), request.out)
    if found["finished"]:
        print(f"{request.out} is finished; another --out measures again", file=sys.stderr)
        return found
    results.write(found, request.out)
    done = {f"{row['what']} {row['case']} {row['dtype']}" for row in found["rows"]}
    left = [case for case in cases if case.key not in done]
    try:
        with _uncached():
            _measure_all(left, request, found)
    except KeyboardInterrupt:
        report.write_report(found, request.out)
        raise Interrupted(
            f"stopped; {_count(found)} of {len(cases)} cases are in {request.out}; "
            "the same command goes on"
        ) from None
    found["finished"] = True
    results.write(found, request.out)
    report.write_report(found, request.out)
    return found


def _measure_all(left: list[Case], request: BenchRequest, found: dict[str, Any]) -> None:
    """Adds rows to the results, case by case."""
    setting = request.config
    yardsticks = {dtype: gemm.side(setting, dtype) for dtype in gemm.DTYPES}
    if not found["roof"]:
        found["roof"] = _roof(yardsticks, setting)
    bar = tqdm(
        left,
        desc="benchmark",
        unit="case",
        leave=False,
        # A file or a pipe gets a line now and then instead of ten a second.
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )
    for case in bar:
        bar.set_postfix_str(case.key, refresh=True)
        rows = measure_case(case, request.peers, setting, yardsticks.get(case.dtype))
        found["rows"] += [as_json(row) for row in rows]
        found["scaling"] = scaling.fit_exponents(results.rows_of(found))
        results.write(found, request.out)


def _fresh(request: BenchRequest) -> dict[str, Any]:
    setting = request.config
    return {
        "schema": results.SCHEMA,
        "finished": False,
        "command": request.command,
        "config": {
            "what": list(request.suites),
            "peer": list(request.peers),
            "only": request.filter,
            **dataclasses.asdict(setting),
            "repeats": setting.timing.num_rounds,
            "attention": list(setting.attention_implementations),
        },
        "device": run_dir.device_info() | others.device(),
        "versions": run_dir.package_versions() | others.versions(),
        "xla_flags": run_dir.xla_flags(),
        # Others at work make every figure worse, and some sides more than others.
        "load_before": os.getloadavg()[0],
        "missing": {peer: why for peer in request.peers if (why := others.missing(peer))},
        "roof": {},
        "rows": [],
        "scaling": [],
    }


def _roof(yardsticks: dict[str, tuple[Candidate, float]], setting: BenchConfig) -> dict[str, Any]:
    """What the machine gives at most: products of each dtype, and bytes moved."""
    mover, moved = gemm.bandwidth(setting)
    sides = {dtype: side for dtype, (side, _) in yardsticks.items()} | {"bytes": mover}
    seconds = {name: quartiles(each)[1] for name, each in interleave(sides, setting.timing).items()}
    return {
        "flops_per_s": {dtype: each[1] / seconds[dtype] for dtype, each in yardsticks.items()},
        "bytes_per_s": moved / seconds["bytes"],
    }


def _count(found: dict[str, Any]) -> int:
    return len({(row["what"], row["case"], row["dtype"]) for row in found["rows"]})


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Compiles everything inside anew, so that the seconds of compiling mean something."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
