"""The benchmark's suites by name, in the order they are run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.suites import (
    attention,
    cross_entropy,
    ensemble,
    generation,
    matmul,
    scaling,
    startup,
    train_step,
)


@dataclasses.dataclass(frozen=True)
class Suite:
    """A named group of benchmark cases: title, function that yields cases, figure color.

    Attributes:
      title: heading on the page.
      cases: config -> cases.
      color: of its points in the roofline figure (Okabe & Ito 2008); None leaves it out.
    """

    title: str
    cases: Callable[[BenchConfig], Iterator[Case]]
    color: str | None = None


def _decode_cases(config: BenchConfig) -> Iterator[Case]:
    return itertools.chain(attention.cache_cases(config), generation.cases(config))


SUITES = {
    "matmul": Suite("Matrix products", matmul.cases, "#000000"),
    "attention": Suite("Attention", attention.cases, "#0072B2"),
    "train_step": Suite("Train step", train_step.cases, "#D55E00"),
    "cross_entropy": Suite("Cross-entropy", cross_entropy.cases, "#009E73"),
    "startup": Suite("Time to the first step", startup.cases),
    "decode": Suite("Decoding", _decode_cases, "#CC79A7"),
    "input": Suite("Input pipeline", train_step.input_cases),
    "ensemble": Suite("Many runs as one program", ensemble.cases),
    "scaling": Suite("Growth of cost", scaling.cases),
    "remat": Suite("Memory against recomputation", train_step.remat_cases),
}
DEFAULT_SUITES = (
    *("matmul", "attention", "train_step", "cross_entropy", "startup", "decode", "input"),
)
