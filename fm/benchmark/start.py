"""Time to the first step: from starting the interpreter to the metrics, in fresh processes.

"cold" finds no compiled program, "cached" those of the process before it. Importing is part of
both.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.step import StepShape, step_shape
from fm.benchmark.timing import Candidate


def cases(setting: BenchConfig) -> Iterator[Case]:
    """The smaller of nanoGPT's two small sizes."""
    each = step_shape(1, 32, 16, 2, 64) if setting.quick else step_shape(4, 128, 64, 12, 256)
    yield Case(
        suite="start",
        name=f"first step, {each.name}",
        dtype="float32",
        candidates={
            "cold": lambda: _side(each, cold=True),
            "cached": lambda: _side(each, cold=False),
        },
    )


def _side(each: StepShape, *, cold: bool) -> Candidate:
    cache = pathlib.Path(tempfile.mkdtemp(prefix="fm-start-"))

    def start() -> None:
        if cold:
            shutil.rmtree(cache, ignore_errors=True)
        first_step(each, cache)

    side = Candidate(call=start, wait=lambda _: None)
    weakref.finalize(side, shutil.rmtree, cache, ignore_errors=True)
    return side


def first_step(each: StepShape, cache: pathlib.Path) -> str:
    """Runs `fm.benchmark.first_step` and returns what it printed."""
    model = each.model
    sizes = (model.num_layers, model.d_model, each.length, each.batch, model.vocab_size)
    command = [sys.executable, "-m", "fm.benchmark.first_step", str(cache), *map(str, sizes)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
