"""A train step on long sequences under each policy of `ModelConfig.remat`.

FLOPs are those of the mathematics: what is computed twice counts once. The memory is the compiled
program's: parameters, the optimiser's memory, the batch and all that is held between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.step import (
    ADAMW,
    CAUSAL_LM,
    attention_name,
    step_flops,
    step_shape,
    tokens,
    train_step_candidate,
)
from fm.model.config import REMAT_POLICIES


def cases(setting: BenchConfig) -> Iterator[Case]:
    """One size, two lengths on a CPU; on an accelerator GPT-2's at 16k."""
    sizes = [step_shape(8, 256, length, 1, 1024) for length in (2048, 8192)]
    if setting.on_accelerator:
        sizes = [step_shape(12, 768, 16384, 1, 50304)]
    for each in [step_shape(2, 32, 32, 1, 64)] if setting.quick else sizes:
        dtype = "bfloat16" if setting.on_accelerator else "float32"
        model = dataclasses.replace(each.model, dtype=dtype, scan_layers=True)
        ways = {name: dataclasses.replace(model, remat_policy=name) for name in REMAT_POLICIES}
        if not setting.on_accelerator:
            ways = {"none, unrolled": dataclasses.replace(model, scan_layers=False), **ways}
        batch = tokens(each, setting)
        yield Case(
            suite="remat",
            name=each.name,
            dtype=dtype,
            candidates={
                name: lambda way=way, batch=batch: train_step_candidate(
                    way, CAUSAL_LM, ADAMW, batch
                )
                for name, way in ways.items()
            },
            flops=step_flops(model, CAUSAL_LM, each),
            num_tokens=each.length * each.batch,
            attention=attention_name(model, each),
        )
