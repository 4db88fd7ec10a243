"""The benchmark: what our kernels, step and pipeline cost, next to others in the same run."""

from fm.benchmark.core import SCALES
from fm.benchmark.kinds import PEERS, SUITES
from fm.benchmark.runner import BenchRequest, run

__all__ = ["SUITES", "PEERS", "SCALES", "BenchRequest", "run"]
