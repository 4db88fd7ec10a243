import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from fm.evaluation.learning_curves import LearningCurves

BUDGETS = np.array([20, 50, 150, 400])


def scores(*errors, noise=0.0, run=0.0, seed=0, seeds=8, items=100):
    """[A, B, S, N] scores with these mean errors [A, B] and noise that leaves them as they are."""
    random = np.random.default_rng(seed)
    error_AB = np.asarray(errors, float)
    spread = noise * random.normal(size=(*error_AB.shape, seeds, items)) + run * random.normal(
        size=(*error_AB.shape, seeds, 1)
    )
    spread -= spread.mean(axis=(2, 3), keepdims=True)
    return 1 - error_AB[..., None, None] + spread


def power(asymptote, scale, exponent, budgets=BUDGETS):
    return asymptote + scale * budgets**-exponent


def test_finds_the_power_laws_that_made_the_scores():
    fitted = LearningCurves(BUDGETS, scores(power(0.1, 1, 0.5), power(0.1, 0.4, 0.2)), draws=5)
    first, second = fitted.curves
    assert (first.asymptote, first.scale, first.exponent) == pytest.approx((0.1, 1, 0.5), rel=1e-2)
    assert (second.asymptote, second.scale, second.exponent) == pytest.approx(
        (0.1, 0.4, 0.2), rel=1e-2
    )
    assert first.largest_residual < 1e-4
    np.testing.assert_allclose(first.error(BUDGETS), power(0.1, 1, 0.5), atol=1e-4)


def test_with_few_budgets_the_asymptote_is_zero_as_in_a_fit_by_scipy():
    budgets = BUDGETS[:3]
    error = np.array([0.4, 0.33, 0.21])
    (curve,) = LearningCurves(budgets, scores(error), draws=5).curves
    expected, _ = curve_fit(lambda n, s, a: s * n**-a, budgets, error, p0=(1, 0.3))
    assert curve.asymptote == 0
    assert (curve.scale, curve.exponent) == pytest.approx(tuple(expected), rel=1e-4)


def test_a_curve_that_never_falls_is_flat():
    (curve,) = LearningCurves(BUDGETS, scores([0.2, 0.21, 0.22, 0.23]), draws=5).curves
    assert curve.exponent == pytest.approx(0, abs=1e-3)
    assert curve.error(np.array([100])) == pytest.approx(0.215, abs=0.005)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_crossing_is_where_the_power_laws_meet(noise):
    arm, rival = (0.05, 0.5, 0.2), (0.05, 1.2, 0.4)
    expected = (1.2 / 0.5) ** (1 / 0.2)
    fitted = LearningCurves(BUDGETS, scores(power(*arm), power(*rival), noise=noise))
    found = fitted.crossing(0, [1])
    assert found.status == "crosses"
    assert found.labels == pytest.approx(expected, rel=0.02)
    assert found.low is not None and found.high is not None
    assert found.low <= found.labels <= found.high
    if noise:
        assert found.low < 0.99 * expected < 1.01 * expected < found.high


def test_ahead_to_the_end_and_never_ahead():
    fitted = LearningCurves(BUDGETS, scores(power(0, 0.5, 0.3), power(0, 0.9, 0.3), noise=0.05))
    ahead, behind = fitted.crossing(0, [1]), fitted.crossing(1, [0])
    assert (ahead.status, ahead.labels, ahead.high) == ("ahead to the end", None, None)
    assert (behind.status, behind.labels, behind.low) == ("never ahead", None, None)


def test_equal_curves_are_unclear():
    fitted = LearningCurves(BUDGETS, scores(power(0, 0.5, 0.3), power(0, 0.505, 0.3), run=0.05))
    found = fitted.crossing(0, [1])
    assert (found.status, found.low, found.high) == ("unclear", None, None)


def test_against_several_rivals_the_best_counts_at_each_number_of_labels():
    arm, early, late = (0, 0.6, 0.25), (0, 1.4, 0.45), (0, 0.63, 0.255)
    fitted = LearningCurves(
        BUDGETS, scores(power(*arm), power(*early), power(*late), noise=0.01), draws=200
    )
    singly = [fitted.crossing(0, [rival]).labels for rival in (1, 2)]
    both = fitted.crossing(0, [1, 2]).labels
    assert singly[1] is None
    assert both == pytest.approx(singly[0], rel=1e-6)
    worse = fitted.crossing(1, [0, 2])
    assert worse.labels is None and worse.status == "ahead to the end"


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_survives_any_scores_and_repeats_exactly(seed):
    random = np.random.default_rng(seed)
    means = random.uniform(0, 1, (2, 4))
    made = np.clip(scores(*means, noise=0.3, run=0.1, seed=seed, items=12), 0, 1)
    first, again = (LearningCurves(BUDGETS, made, draws=50) for _ in range(2))
    assert first.curves == again.curves
    assert first.crossing(0, [1]) == again.crossing(0, [1])
    assert all(np.isfinite(curve.error(BUDGETS)).all() for curve in first.curves)


def test_bad_input():
    with pytest.raises(ValueError, match="positive and rising"):
        LearningCurves([50, 20], scores([0.4, 0.3]))
    with pytest.raises(ValueError, match="3 budgets, but scores at 2"):
        LearningCurves(BUDGETS[:3], scores([0.4, 0.3]))
