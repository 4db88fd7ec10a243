"""A train step on long sequences under each policy of `ModelConfig.remat`.

FLOPs are those of the mathematics: what is computed twice counts once. The memory is the compiled
program's: parameters, the optimiser's memory, the batch and all that is held between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fm.benchmark.case import Case
from fm.benchmark.settings import Setting
from fm.benchmark.step import ADAMW, NEXT, chosen, flops_of, side, size, tokens
from fm.model.config import REMAT


def cases(setting: Setting) -> Iterator[Case]:
    """One size, two lengths on a CPU; on an accelerator GPT-2's at 16k."""
    sizes = [size(8, 256, length, 1, 1024) for length in (2048, 8192)]
    if setting.accelerator:
        sizes = [size(12, 768, 16384, 1, 50304)]
    for each in [size(2, 32, 32, 1, 64)] if setting.quick else sizes:
        dtype = "bfloat16" if setting.accelerator else "float32"
        model = dataclasses.replace(each.model, dtype=dtype, scan=True)
        ways = {name: dataclasses.replace(model, remat=name) for name in REMAT}
        if not setting.accelerator:
            ways = {"none, unrolled": dataclasses.replace(model, scan=False), **ways}
        batch = tokens(each, setting)
        yield Case(
            what="remat",
            name=each.name,
            dtype=dtype,
            ours={
                name: lambda way=way, batch=batch: side(way, NEXT, ADAMW, batch)
                for name, way in ways.items()
            },
            flops=flops_of(model, NEXT, each),
            tokens=each.length * each.batch,
            attention=chosen(model, each),
        )
