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

from fm.benchmark.case import Case
from fm.benchmark.settings import Setting
from fm.benchmark.step import Size, size
from fm.benchmark.timing import Side


def cases(setting: Setting) -> Iterator[Case]:
    """The smaller of nanoGPT's two small sizes."""
    each = size(1, 32, 16, 2, 64) if setting.quick else size(4, 128, 64, 12, 256)
    yield Case(
        what="start",
        name=f"first step, {each.name}",
        dtype="float32",
        ours={"cold": lambda: _side(each, cold=True), "cached": lambda: _side(each, cold=False)},
    )


def _side(each: Size, *, cold: bool) -> Side:
    cache = pathlib.Path(tempfile.mkdtemp(prefix="fm-start-"))

    def start() -> None:
        if cold:
            shutil.rmtree(cache, ignore_errors=True)
        first_step(each, cache)

    side = Side(call=start, wait=lambda _: None)
    weakref.finalize(side, shutil.rmtree, cache, ignore_errors=True)
    return side


def first_step(each: Size, cache: pathlib.Path) -> str:
    """Runs `fm.training.first_step` and returns what it printed."""
    model = each.model
    sizes = (model.depth, model.width, each.length, each.batch, model.vocab)
    command = [sys.executable, "-m", "fm.training.first_step", str(cache), *map(str, sizes)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
