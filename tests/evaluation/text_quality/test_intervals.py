import numpy as np
import pytest

from fm.errors import UserError
from fm.evaluation.text_quality import intervals
from fm.evaluation.text_quality.diversity import distinct_n
from fm.evaluation.text_quality.words import ngram_counts


def test_ratio_and_mean_by_hand():
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    bits = intervals.ratio_statistic(np.array([2.0, 3.0, 5.0]), np.array([1.0, 4.0, 5.0]))
    np.testing.assert_allclose(bits(weights), [1.0, 7 / 6])
    np.testing.assert_allclose(
        intervals.mean_statistic(np.array([1.0, 2.0, 6.0]))(weights), [3.0, 3.5]
    )
    assert intervals.ratio_statistic(np.zeros(2), np.zeros(2))(np.ones((1, 2))) == [0.0]


@pytest.mark.parametrize("texts", [40, 41])
def test_the_width_for_a_mean_is_that_of_the_normal_interval(texts):
    values = np.random.default_rng(1).standard_normal(texts)
    found = intervals.half_sample_interval(intervals.mean_statistic(values), texts)
    expected = 2 * 1.96 * values.std(ddof=1) / np.sqrt(texts)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(expected, rel=0.2)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("figure", ["mean", "distinct"])
def test_coverage_by_simulation(figure):
    """Of the figure's own expectation at this number of texts."""
    draws = np.random.default_rng(0)
    chances = np.arange(1, 201) ** -1.0
    chances /= chances.sum()
    found = []
    for _ in range(150):
        if figure == "mean":
            statistic = intervals.mean_statistic(draws.exponential(size=48))
        else:
            texts = draws.choice(200, (48, 20), p=chances).astype(str).tolist()
            statistic = distinct_n(ngram_counts(texts, 1))
        found.append(intervals.half_sample_interval(statistic, 48))
    truth = 1.0 if figure == "mean" else np.mean([each.mean for each in found])
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert covered >= 0.9
    widths = [(each.high - each.low) / (2 * 1.96) for each in found]
    wide = np.mean(widths) / np.std([each.mean for each in found])
    assert 0.85 <= wide <= (1.15 if figure == "mean" else 2.0)


def test_an_interval_stays_where_the_figure_can_lie():
    statistic = intervals.mean_statistic(np.linspace(0.0, 1.0, 20))
    free = intervals.half_sample_interval(statistic, 20)
    assert free.low < 0.45 < free.mean < 0.55 < free.high
    found = intervals.half_sample_interval(statistic, 20, bounds=(0.45, 0.55))
    assert (found.low, found.mean, found.high) == (0.45, free.mean, 0.55)


def test_a_share_has_an_interval_when_none_or_all_are_hit():
    none, every = intervals.wilson_interval(0, 128), intervals.wilson_interval(128, 128)
    assert none.mean == 0 and none.low == pytest.approx(0) and 0.02 < none.high < 0.04
    assert every.mean == 1 and every.high == pytest.approx(1) and 0.96 < every.low < 0.98


def test_too_few_texts_are_refused():
    with pytest.raises(UserError, match="at least 4 texts, got 3"):
        intervals.half_sample_interval(intervals.mean_statistic(np.zeros(3)), 3)
