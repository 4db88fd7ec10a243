"""Published claims, each with its protocol, criterion and measurement; see `registry`."""

from fm.study.claims import scratch_catches_up, self_training
from fm.study.claims.registry import CLAIMS, Claim, find_claim, register_claim

__all__ = ["CLAIMS", "Claim", "find_claim", "register_claim"]

for _claim in (scratch_catches_up.CLAIM, self_training.CLAIM):
    register_claim(_claim)
