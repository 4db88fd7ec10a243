"""The input pipeline: what a batch costs, and how much of the time of training is spent on it.

The loop takes the next batch while the last step runs. Its pace is measured as it is, and again
with one batch used over and over: the difference is what the pipeline costs.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from fm.benchmark.case import Case
from fm.benchmark.settings import Setting
from fm.benchmark.step import ADAMW, NEXT, Size, compare_size, side, size, steps, tokens
from fm.benchmark.timing import Side
from fm.data.batches import Batches, text_batches


def cases(setting: Setting) -> Iterator[Case]:
    """A batch alone, and the training loop with and without it."""
    sizes = (
        (size(1, 32, 16, 2, 64),) if setting.quick else (size(4, 128, 64, 12, 256), compare_size())
    )
    for each in sizes:
        yield Case(
            what="input",
            name=f"next batch, T{each.length} B{each.batch}",
            dtype="int32",
            ours={"text_batches": lambda each=each: _alone(each, setting)},
            tokens=each.length * each.batch,
        )
        yield Case(
            what="input",
            name=f"training, {each.name}",
            dtype="float32",
            ours={"text_batches": lambda each=each: _training(each, setting)},
            tokens=each.length * each.batch,
            without=lambda each=each: side(each.model, NEXT, ADAMW, tokens(each, setting)),
        )


def _alone(each: Size, setting: Setting) -> Side:
    batches = pipeline(each, setting)
    return Side(call=lambda: next(batches), wait=lambda batch: batch)


def _training(each: Size, setting: Setting) -> Side:
    batches = pipeline(each, setting)
    advance, seconds, memory, least = steps(each.model, NEXT, ADAMW, tokens(each, setting))
    return Side(
        call=lambda: advance(next(batches)),
        wait=jax.block_until_ready,
        chained=True,
        compile_seconds=seconds,
        peak_memory_bytes=memory,
        least_bytes=least,
    )


def pipeline(each: Size, setting: Setting) -> Batches:
    """Endless batches of packed documents, their lengths spread evenly up to a whole row."""
    rng = np.random.default_rng(setting.seed)
    documents = [
        rng.integers(0, each.model.vocab, length, dtype=np.int32)
        for length in rng.integers(1, each.length + 1, 64 * each.batch)
    ]
    return text_batches([documents], batch_size=each.batch, length=each.length, seed=setting.seed)
