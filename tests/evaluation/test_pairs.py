import numpy as np
import pytest

from fm.errors import UserError
from fm.evaluation.pairs import mean_over_pairs


def test_the_mean_is_over_pairs_and_the_diagonal_is_not_read():
    values_RR = np.full((4, 4), 2.0)
    np.fill_diagonal(values_RR, np.nan)
    found = mean_over_pairs(values_RR)
    assert (found.mean, found.low, found.high) == (2.0, 2.0, 2.0)


def test_a_run_that_is_far_from_all_others_widens_the_interval():
    values_RR = np.ones((5, 5))
    values_RR[0], values_RR[:, 0] = 6.0, 6.0
    found = mean_over_pairs(values_RR)
    assert found.mean == pytest.approx(3.0)
    # Leaving run 0 out leaves 1.0, any other 3.5: variance 4/5 * (2**2 + 4 * .5**2) = 4.
    assert found.high - found.mean == pytest.approx(2.776445 * 2.0, rel=1e-5)


@pytest.mark.parametrize("runs", [4, 8])
def test_the_interval_holds_the_truth_as_often_as_it_says(runs):
    # The squared distance of two runs in 5 dimensions has mean 10.
    random, held = np.random.default_rng(0), 0
    for _ in range(2000):
        points_RD = random.normal(size=(runs, 5))
        values_RR = ((points_RD[:, None] - points_RD) ** 2).sum(axis=-1)
        found = mean_over_pairs(values_RR)
        held += found.low <= 10.0 <= found.high
    assert held / 2000 > 0.925


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="at least 3 runs, got 2"):
        mean_over_pairs(np.ones((2, 2)))
    with pytest.raises(ValueError, match="square"):
        mean_over_pairs(np.ones((3, 4)))
    with pytest.raises(ValueError, match="finite"):
        mean_over_pairs(np.full((3, 3), np.nan))
