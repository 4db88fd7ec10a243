"""The surface fitted to errors over size, tokens and labels: what it recovers from made ones."""

import itertools

import numpy as np
import pytest

from fm.errors import UserError
from fm.evaluation.scaling_surface import bootstrap_exponents, fit_surface

POINTS = np.array(
    list(itertools.product((1e4, 4e4, 1.6e5), (1e5, 4e5, 1.6e6), (20, 50, 150, 400))), float
)
CENTERS = np.exp(np.log(POINTS).mean(axis=0))


def errors(floor, scales, exponents):
    return floor + (np.array(scales) * (POINTS / CENTERS) ** -np.array(exponents)).sum(axis=1)


@pytest.mark.parametrize(
    ("floor", "exponents"),
    [(0.05, (0.3, 0.5, 0.7)), (0.02, (1.0, 0.2, 0.4)), (0.1, (0.6, 1.5, 0.3))],
)
def test_exponents_and_floor_are_recovered(floor, exponents):
    scales = (0.1, 0.08, 0.15)
    found = fit_surface(POINTS, errors(floor, scales, exponents))
    np.testing.assert_allclose(found.exponents, exponents, atol=0.02)
    np.testing.assert_allclose(found.scales, scales, atol=0.01)
    assert found.floor == pytest.approx(floor, abs=0.01) and found.r2 > 0.9999
    np.testing.assert_allclose(found(POINTS), errors(floor, scales, exponents), rtol=1e-3)


def test_an_axis_of_one_value_has_no_term():
    chosen = POINTS[:, 0] == 1e4
    found = fit_surface(POINTS[chosen], errors(0.05, (0.1, 0.1, 0.1), (0.3, 0.5, 0.7))[chosen])
    assert found.exponents[0] == found.scales[0] == 0
    assert found.exponents[1] == pytest.approx(0.5, abs=0.05)


def test_intervals_hold_the_exponents_and_say_so_of_an_axis_that_does_not_matter():
    truth = errors(0.05, (0.0, 0.1, 0.15), (0.3, 0.5, 0.7))
    draws = np.random.default_rng(0).random((len(POINTS), 4, 400))
    found = bootstrap_exponents(POINTS, draws < truth[:, None, None], num_draws=40)
    assert found[1, 0] < 0.5 < found[1, 1] and found[2, 0] < 0.7 < found[2, 1]
    assert found[1, 1] - found[1, 0] < 1
    one = bootstrap_exponents(POINTS[:12], (draws < truth[:, None, None])[:12], num_draws=4)
    assert np.isnan(one[0]).all() and np.isfinite(one[1:]).all()


def test_too_few_points_are_one_line():
    with pytest.raises(UserError, match="over 3 axes needs 8 points or more, got 7"):
        fit_surface(POINTS[[0, 1, 5, 10, 14, 20, 35]], np.full(7, 0.5))
