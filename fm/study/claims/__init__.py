"""Published claims, each with its protocol, criterion and measurement; see `registry`."""

from fm.study.claims.registry import CLAIMS, Claim, find_claim, register_claim

__all__ = ["CLAIMS", "Claim", "find_claim", "register_claim"]
