import numpy as np
import pytest

from fm.adaptation.interpolation import barrier, interpolate, scores_on_line


def test_the_ends_of_a_line_are_the_networks():
    first, second = {"w": np.float32([1, 2])}, {"w": np.float32([3, -2])}
    np.testing.assert_array_equal(interpolate(first, second, 0.0)["w"], first["w"])
    np.testing.assert_array_equal(interpolate(first, second, 1.0)["w"], second["w"])
    np.testing.assert_allclose(interpolate(first, second, 0.25)["w"], [1.5, 1.0])


def test_a_valley_between_two_hills_is_a_barrier():
    # The score falls with the distance from -1 and 1.
    def score(params):
        return -min((params["x"] - 1.0) ** 2, (params["x"] + 1.0) ** 2)

    scores_P = scores_on_line({"x": -1.0}, {"x": 1.0}, score, num_points=21)
    assert scores_P[0] == scores_P[-1] == 0.0
    assert barrier(scores_P) == pytest.approx(1.0)
    flat_P = scores_on_line({"x": -1.0}, {"x": -1.0}, score)
    assert barrier(flat_P) == 0.0


def test_a_hill_or_a_slope_is_no_barrier():
    assert barrier([0.5, 0.9, 0.7]) == 0.0
    assert barrier([0.2, 0.4, 0.6]) == pytest.approx(0.0)
    assert barrier([0.2, 0.1, 0.6]) == pytest.approx(0.3)


def test_scores_may_be_one_per_item():
    scores_PN = scores_on_line(np.zeros(3), np.ones(3), lambda x: x, num_points=3)
    np.testing.assert_allclose(scores_PN, [[0] * 3, [0.5] * 3, [1] * 3])
