"""Do the intervals hold the truth as often as they say? Simulated at the eight seeds in use."""

import numpy as np
import pytest

from fm.evaluation.label_efficiency import label_multiplier
from fm.evaluation.statistics import linearized_ratio, paired_difference

SEEDS = 8
NORMAL_TABLES = [
    # items, run, item and error standard deviation
    (300, 0.0, 0.0, 1.0),
    (300, 0.0, 1.0, 1.0),
    (300, 0.1, 0.0, 1.0),
    (300, 0.05, 0.3, 1.0),
    (300, 0.3, 1.0, 1.0),
    (1000, 0.02, 0.3, 1.0),
    (1000, 0.1, 1.0, 1.0),
    (1000, 1.0, 0.0, 1.0),
]
BINARY_TABLES = [
    # items; deviation of the logit over runs, items shared by both arms, items of one arm alone
    (300, 0.0, 1.5, 0.5),
    (300, 0.3, 1.5, 0.0),
    (300, 0.3, 1.5, 0.5),
    (1000, 0.1, 2.0, 1.0),
    (1000, 0.5, 1.0, 0.3),
]
RATIO_TABLES = [
    # sentences; deviation of the logit over runs, and over sentences (shared by both arms)
    (300, 0.0, 1.0),
    (300, 0.3, 1.0),
    (1000, 0.1, 0.5),
]
BUDGETS = np.array([20, 50, 100, 200, 400])
LABEL_CURVES = [
    # labels of the arm, its gain in logits, deviations of the logit over runs and items
    (50, 0.3, 0.1, 1.5),
    (50, 0.3, 0.3, 0.5),
    (20, 0.4, 0.3, 1.5),
    (100, 0.6, 0.1, 1.5),
]


def coverage(repeats, draw, truth):
    held = 0
    for _ in range(repeats):
        result = paired_difference(*draw())
        held += result.low <= truth <= result.high
    return held / repeats


@pytest.mark.slow
@pytest.mark.parametrize(("items", "run", "item", "error"), NORMAL_TABLES)
def test_interval_of_normal_scores(items, run, item, error, record_property):
    random = np.random.default_rng(0)

    def draw():
        difference = (
            run * random.normal(size=(SEEDS, 1))
            + item * random.normal(size=items)
            + error * random.normal(size=(SEEDS, items))
        )
        return difference, np.zeros_like(difference)

    found = coverage(3000, draw, truth=0.0)
    record_property("coverage", float(found))
    assert 0.93 <= found <= 0.97, f"covers {found:.1%}"


@pytest.mark.slow
@pytest.mark.parametrize(("items", "run", "shared", "own"), BINARY_TABLES)
def test_interval_of_right_and_wrong_answers(items, run, shared, own, record_property):
    random = np.random.default_rng(1)
    centres = (1.4, 1.0)

    def logits(centre, shared_items, shape):
        seeds, count = shape
        return (
            centre
            + run * random.normal(size=(seeds, 1))
            + shared_items
            + own * random.normal(size=count)
        )

    def draw():
        shared_items = shared * random.normal(size=items)
        return (
            random.random((SEEDS, items)) < chance(logits(centre, shared_items, (SEEDS, items)))
            for centre in centres
        )

    spread = np.hypot(np.hypot(run, shared), own)
    truth = marginal(centres[0], spread) - marginal(centres[1], spread)
    found = coverage(3000, draw, truth)
    record_property("coverage", float(found))
    assert 0.93 <= found <= 0.97, f"covers {found:.1%}"


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "gain", "run", "item"), LABEL_CURVES)
def test_interval_of_the_label_multiplier(labels, gain, run, item, record_property):
    """The last curve is out of range: its interval must be open above."""
    items, error, slope, repeats = 600, 0.5, 0.35, 400
    random = np.random.default_rng(2)
    centres = np.append(slope * np.log(BUDGETS / 20), slope * np.log(labels / 20) + gain)
    spread = np.sqrt(run**2 + item**2 + error**2)
    curve = [marginal(centre, spread) for centre in centres]
    beyond = curve[-1] > curve[-2]
    inside = np.exp(np.interp(curve[-1], curve[:-1], np.log(BUDGETS))) / labels
    true = np.inf if beyond else inside

    held = 0
    for repeat in range(repeats):
        logit = (
            centres[:, None, None]
            + run * random.normal(size=(centres.size, SEEDS, 1))
            + item * random.normal(size=items)
            + error * random.normal(size=(centres.size, SEEDS, items))
        )
        right = random.random(logit.shape) < chance(logit)
        found = label_multiplier(BUDGETS, right[:-1], right[-1], labels, draws=500, seed=repeat)
        below = found.low is None or found.low <= true
        above = found.high is None or found.high >= true
        held += below and above
    record_property("coverage", float(held) / repeats)
    assert held / repeats >= 0.93, f"covers {held / repeats:.1%}"
    # Out of range the upper end cannot miss, so only there may it cover more.
    assert beyond or held / repeats <= 0.98, f"covers {held / repeats:.1%}"


@pytest.mark.slow
@pytest.mark.parametrize(("items", "run", "item"), RATIO_TABLES)
def test_interval_of_a_difference_of_f1(items, run, item, record_property):
    """F1 is a ratio of sums: it enters as `linearised` scores of sentences."""
    random = np.random.default_rng(3)
    centres, entities, spurious = (0.8, 0.3), 0.6, 0.3

    def parts(centre, ease, gold):
        logit = centre + run * random.normal(size=(SEEDS, 1)) + ease
        right = random.binomial(gold, chance(logit))
        return 2 * right, gold + right + random.poisson(spurious, right.shape)

    def draw():
        ease, gold = item * random.normal(size=items), random.poisson(entities, items)
        return (linearized_ratio(*parts(centre, ease, gold)) for centre in centres)

    def f1(centre):
        found = entities * marginal(centre, np.hypot(run, item))
        return 2 * found / (entities + found + spurious)

    found = coverage(2000, draw, f1(centres[0]) - f1(centres[1]))
    record_property("coverage", float(found))
    assert 0.93 <= found <= 0.97, f"covers {found:.1%}"


def chance(logit):
    return 1 / (1 + np.exp(-logit))


def marginal(centre, spread):
    """The population's share of right answers, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ chance(centre + spread * points) / weights.sum())
