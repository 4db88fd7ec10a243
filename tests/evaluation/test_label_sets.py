"""Label sets: F1 and thresholds."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fm.evaluation.label_sets import best_threshold, f1_terms, macro_f1, micro_f1, multi_hot
from fm.evaluation.statistics import linearized_ratio


def drawn(seed=0, count=40, classes=4):
    draws = np.random.default_rng(seed)
    gold = draws.random((count, classes)) < [0.5, 0.3, 0.1, 0.2]
    probability = np.clip(0.25 * gold + draws.random((count, classes)) * 0.4, 0, 1)
    return probability, gold


def test_f1_is_that_of_sklearn_and_the_mean_of_its_linearized_scores():
    probability, gold = drawn()
    predicted = probability >= 0.3
    assert micro_f1(predicted, gold) == pytest.approx(f1_score(gold, predicted, average="micro"))
    assert macro_f1(predicted, gold) == pytest.approx(
        f1_score(gold, predicted, average="macro", zero_division=0)
    )
    numerator, denominator = f1_terms(np.stack([predicted, ~predicted]), gold)
    scores = linearized_ratio(numerator, denominator).mean(axis=1)
    assert scores[0] == pytest.approx(micro_f1(predicted, gold))
    assert scores[1] == pytest.approx(micro_f1(~predicted, gold))


def test_the_threshold_is_the_one_with_the_highest_f1():
    probability, gold = drawn()
    threshold, score = best_threshold(probability, gold)
    assert threshold < 0.5
    assert score == micro_f1(probability >= threshold, gold) > micro_f1(probability >= 0.5, gold)
    assert best_threshold(np.where(gold, 1.0, 0.0), gold) == (0.5, 1.0)
    empty = np.zeros((3, 2), bool)
    assert best_threshold(np.full((3, 2), 0.02), empty) == (0.5, 1.0)


def test_multi_hot_has_a_column_for_each_class():
    assert multi_hot([(0, 2), (), None], 3).tolist() == [
        [True, False, True],
        [False] * 3,
        [False] * 3,
    ]
