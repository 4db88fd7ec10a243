"""Calibration of class probabilities, by hand."""

import numpy as np
import pytest

from fm.evaluation.calibration import expected_calibration_error, negative_log_likelihood
from fm.evaluation.metrics import balanced_accuracy


def test_nll_by_hand_and_bounded():
    assert negative_log_likelihood(np.array([1.0, 0.5])) == pytest.approx(np.log(2) / 2)
    assert negative_log_likelihood(np.array([0.0])) == pytest.approx(6 * np.log(10))


def test_calibration_error_is_the_gap_in_each_bin():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([1, 1, 1, 0])
    expected = 0.5 * abs(1 - 0.95) + 0.5 * abs(0.5 - 0.55)
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(expected)
    assert expected_calibration_error(np.ones(3), np.ones(3)) == 0
    draws = np.random.default_rng(0)
    stated = draws.uniform(0.3, 1.0, 100_000)
    assert expected_calibration_error(stated, draws.random(100_000) < stated) < 0.01


def test_balanced_accuracy_does_not_reward_the_majority():
    labels = np.array([0] * 9 + [1])
    assert balanced_accuracy(np.zeros(10, int), labels) == 0.5
    assert balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])) == 0.75
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted, truth = np.random.default_rng(1).integers(0, 4, (2, 50))
    assert balanced_accuracy(predicted, truth) == pytest.approx(
        sklearn.balanced_accuracy_score(truth, predicted)
    )
