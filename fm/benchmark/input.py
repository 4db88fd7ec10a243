"""The input pipeline: what a batch costs, and how much of the time of training is spent on it.

The loop takes the next batch while the last step runs. Its pace is measured as it is, and again
with one batch used over and over: the difference is what the pipeline costs.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.step import (
    ADAMW,
    CAUSAL_LM,
    StepShape,
    compare_shape,
    make_step_fn,
    step_shape,
    tokens,
    train_step_candidate,
)
from fm.benchmark.timing import Candidate
from fm.data.batches import Batches, text_batches


def cases(setting: BenchConfig) -> Iterator[Case]:
    """A batch alone, and the training loop with and without it."""
    sizes = (
        (step_shape(1, 32, 16, 2, 64),)
        if setting.quick
        else (step_shape(4, 128, 64, 12, 256), compare_shape())
    )
    for each in sizes:
        yield Case(
            suite="input",
            name=f"next batch, T{each.length} B{each.batch}",
            dtype="int32",
            candidates={"text_batches": lambda each=each: _alone(each, setting)},
            num_tokens=each.length * each.batch,
        )
        yield Case(
            suite="input",
            name=f"training, {each.name}",
            dtype="float32",
            candidates={"text_batches": lambda each=each: _training(each, setting)},
            num_tokens=each.length * each.batch,
            ablated=lambda each=each: train_step_candidate(
                each.model, CAUSAL_LM, ADAMW, tokens(each, setting)
            ),
        )


def _alone(each: StepShape, setting: BenchConfig) -> Candidate:
    batches = pipeline(each, setting)
    return Candidate(call=lambda: next(batches), wait=lambda batch: batch)


def _training(each: StepShape, setting: BenchConfig) -> Candidate:
    batches = pipeline(each, setting)
    advance, seconds, memory, least = make_step_fn(
        each.model, CAUSAL_LM, ADAMW, tokens(each, setting)
    )
    return Candidate(
        call=lambda: advance(next(batches)),
        wait=jax.block_until_ready,
        chained=True,
        compile_seconds=seconds,
        peak_memory_bytes=memory,
        min_bytes=least,
    )


def pipeline(each: StepShape, setting: BenchConfig) -> Batches:
    """Endless batches of packed documents, their lengths spread evenly up to a whole row."""
    rng = np.random.default_rng(setting.seed)
    documents = [
        rng.integers(0, each.model.vocab_size, length, dtype=np.int32)
        for length in rng.integers(1, each.length + 1, 64 * each.batch)
    ]
    return text_batches([documents], batch_size=each.batch, length=each.length, seed=setting.seed)
