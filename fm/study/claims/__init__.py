"""Published claims, each with its protocol, criterion and measurement; see `registry`."""

from fm.study.claims import (
    effective_data,
    scratch_catches_up,
    self_pretraining,
    self_training,
    shared_basin,
)
from fm.study.claims.registry import CLAIMS, Claim, find_claim, register_claim

__all__ = ["CLAIMS", "Claim", "find_claim", "register_claim"]

for _claim in (
    *(scratch_catches_up.CLAIM, self_pretraining.CLAIM, effective_data.CLAIM),
    *(shared_basin.CLAIM, self_training.CLAIM),
):
    register_claim(_claim)
