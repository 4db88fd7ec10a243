"""The verdict's rules, on hand-made intervals."""

import pytest

from fm.errors import UserError
from fm.study.claims import registry
from fm.study.claims.registry import Condition, check_profile, find_claim, is_above, is_within
from tests.study.claims.helpers_claims import claim


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        ((True, True), registry.REPRODUCED),
        ((True, None), registry.UNDECIDED),
        ((None, False), registry.NOT_REPRODUCED),
        ((True, False), registry.NOT_REPRODUCED),
    ],
)
def test_a_broken_condition_decides_before_an_undecided_one(held, verdict):
    conditions = [Condition(f"condition {n}", each, "") for n, each in enumerate(held)]
    assert registry.verdict_of(conditions, "+1.0 points").verdict == verdict


def test_an_interval_that_holds_the_bound_decides_nothing():
    assert is_above(0.1, 0.3) is True
    assert is_above(-0.3, -0.1) is False
    assert is_above(-0.1, 0.1) is None
    assert is_above(0.1, 0.3, bound=0.2) is None


@pytest.mark.parametrize(
    ("low", "high", "p", "holds"),
    [
        (-0.002, 0.008, 0.01, True),
        (-0.002, 0.018, 0.2, None),
        (0.012, 0.03, 0.9, False),
        (-0.05, -0.011, 0.9, False),
    ],
)
def test_equivalence_by_two_one_sided_tests(low, high, p, holds):
    row = {"low": low, "high": high, "p_equivalence": p, "margin": 0.01}
    assert is_within(row, 0.01) is holds


def test_a_test_of_another_margin_is_refused():
    with pytest.raises(ValueError, match=r"within 0.02, not 0.01"):
        is_within({"low": 0.0, "high": 0.0, "p_equivalence": 0.0, "margin": 0.02}, 0.01)


def test_unknown_claims_and_profiles_are_refused_in_one_line():
    with pytest.raises(UserError, match="--claim=phlogiston: must be one of "):
        find_claim("phlogiston")
    with pytest.raises(UserError, match="--profile=pilot: made_up has only quick, full"):
        check_profile(claim(minutes={"quick": 0.1, "full": 1.0}), "pilot")
