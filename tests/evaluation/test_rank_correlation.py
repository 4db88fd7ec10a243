"""Rank correlations as means of item scores."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from fm.evaluation.rank_correlation import r_squared, rank_correlation_scores


def correlated(count, rho, seed, levels=0):
    draws = np.random.default_rng(seed)
    x, noise = draws.standard_normal((2, count))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    return (np.round(x * levels), np.round(y * levels)) if levels else (x, y)


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.9])
def test_the_mean_of_the_scores_is_spearmans_correlation(rho, levels):
    rows = [correlated(80, rho, seed, levels) for seed in range(3)]
    truth = rows[0][1]
    scores = rank_correlation_scores(np.stack([x for x, _ in rows]), truth)
    expected = [spearmanr(x, truth).statistic for x, _ in rows]
    np.testing.assert_allclose(scores.mean(axis=1), expected, atol=1e-12)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_the_variance_of_the_scores_is_that_of_the_correlation(rho, levels):
    count, draws = 200, 800
    pairs = [correlated(count, rho, seed, levels) for seed in range(draws)]
    actual = np.std([spearmanr(*each).statistic for each in pairs])
    estimated = [rank_correlation_scores(x[None], y)[0].std() / count**0.5 for x, y in pairs[:100]]
    assert np.mean(estimated) == pytest.approx(actual, rel=0.08)


def test_the_scores_are_the_limit_of_leaving_an_item_out():
    x, y = correlated(400, 0.7, 0)
    scores = rank_correlation_scores(x[None], y)[0]
    whole = spearmanr(x, y).statistic
    for n in (0, 1, 2, int(np.argmax(x))):
        others = np.arange(400) != n
        left_out = spearmanr(x[others], y[others]).statistic
        assert whole + 399 * (whole - left_out) == pytest.approx(scores[n], abs=0.05)


def test_constant_predictions_and_truths_score_zero():
    y = np.arange(5.0)
    assert not rank_correlation_scores(np.ones((2, 5)), y).any()
    assert not rank_correlation_scores(y[None], np.ones(5)).any()
    with pytest.raises(ValueError, match="finite"):
        rank_correlation_scores(np.array([[1.0, np.nan]]), np.arange(2.0))


def test_r_squared():
    y = np.array([0.0, 1.0, 2.0, 3.0])
    assert r_squared(y, y) == 1.0 and r_squared(np.full(4, 1.5), y) == 0.0
    assert r_squared(np.full(4, 3.0), np.full(4, 1.0)) == -4.0
