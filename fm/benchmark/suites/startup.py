"""Time to the first step, from starting the interpreter to the metrics, in fresh processes.

"cold" finds no compiled program, "cached" those of the process before it; both include imports.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator

from fm.benchmark.core import BenchConfig, Candidate, Case
from fm.benchmark.suites.train_step import StepShape, step_shape


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields the case of starting a process and taking the first step of a small model."""
    shape = step_shape(1, 32, 16, 2, 64) if config.quick else step_shape(4, 128, 64, 12, 256)
    yield Case(
        suite="startup",
        name=f"first step, {shape.name}",
        dtype="float32",
        candidates={
            "cold": lambda: _candidate(shape, cold=True),
            "cached": lambda: _candidate(shape, cold=False),
        },
    )


def _candidate(shape: StepShape, *, cold: bool) -> Candidate:
    cache = pathlib.Path(tempfile.mkdtemp(prefix="fm-startup-"))

    def call() -> None:
        if cold:
            shutil.rmtree(cache, ignore_errors=True)
        run_first_step(shape, cache)

    candidate = Candidate(call=call, wait=lambda _: None)
    weakref.finalize(candidate, shutil.rmtree, cache, ignore_errors=True)
    return candidate


def run_first_step(shape: StepShape, cache: pathlib.Path) -> str:
    """Runs `fm.benchmark.first_step` in a new process; returns its standard output."""
    model = shape.model
    sizes = (model.num_layers, model.d_model, shape.seq_len, shape.batch_size, model.vocab_size)
    command = [sys.executable, "-m", "fm.benchmark.first_step", str(cache), *map(str, sizes)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
