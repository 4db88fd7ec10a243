import itertools

import numpy as np
import pytest
from scipy.special import rel_entr

from fm.evaluation.text_quality.mauve import MAUVE_SCALE, frontier_area, mauve


def test_the_same_histogram_gives_one():
    assert frontier_area(np.array([0.2, 0.8]), np.array([0.2, 0.8])) == pytest.approx(1.0)


def test_nothing_in_common_gives_what_the_mixtures_alone_give():
    # KL(Q|R) = -log(1 - w) and KL(P|R) = -log w: the curve is x = (1 - w)^c, y = w^c.
    w = np.linspace(0, 1, 100_001)
    exact = -np.trapezoid(w**MAUVE_SCALE, (1 - w) ** MAUVE_SCALE)
    found = frontier_area(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert found == pytest.approx(exact, abs=0.01)
    assert found < 0.01


def test_against_the_frontier_written_out():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.1, 0.6, 0.3])
    ends = [(1.0, 0.0)]
    for n in range(1, 26):
        r = n / 26 * p + (1 - n / 26) * q
        ends.append((np.exp(-5 * rel_entr(q, r).sum()), np.exp(-5 * rel_entr(p, r).sum())))
    ends.append((0.0, 1.0))
    area = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(ends))
    assert frontier_area(p, q) == pytest.approx(area, rel=1e-12)


def test_it_falls_as_a_sample_moves_away_and_as_it_collapses():
    draws = np.random.default_rng(0)
    real = draws.standard_normal((100, 4))
    every = np.ones((1, 100))
    same, near, far = (
        mauve(real, draws.standard_normal((100, 4)) + shift)(every)[0] for shift in (0, 0.7, 3)
    )
    collapsed = mauve(real, np.tile(real[:1], (100, 1)))(every)[0]
    assert same > near > far
    assert same > 0.8 > 0.2 > far
    assert collapsed < 0.2


def test_copies_of_one_text_have_as_many_clusters_as_there_are_points():
    assert mauve(np.ones((20, 2)), np.ones((20, 2)))(np.ones((1, 20)))[0] == pytest.approx(1.0)
