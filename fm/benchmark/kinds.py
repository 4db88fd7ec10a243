"""The kinds of case there are, in the order they are run. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fm.benchmark import attention, decode, gemm, grid, input, loss, remat, scaling, start, step
from fm.benchmark.core import BenchConfig, Case

SUITES: dict[str, Callable[[BenchConfig], Iterator[Case]]] = {
    "gemm": gemm.cases,
    "attention": attention.cases,
    "step": step.cases,
    "loss": loss.cases,
    "start": start.cases,
    "decode": decode.cases,
    "input": input.cases,
    "grid": grid.cases,
    "scaling": scaling.cases,
    "remat": remat.cases,
}
PEERS = ("torch", "jax", "transformers", "none")
