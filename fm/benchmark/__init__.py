"""The benchmark: what our kernels, step and pipeline cost, next to others in the same run."""

from fm.benchmark.kinds import KINDS, PEERS
from fm.benchmark.runner import Request, run
from fm.benchmark.settings import SCALES

__all__ = ["KINDS", "PEERS", "SCALES", "Request", "run"]
