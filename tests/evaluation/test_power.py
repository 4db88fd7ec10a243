import dataclasses

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from fm.evaluation.power import detectable_difference, items_to_decide, seeds_to_decide
from fm.evaluation.statistics import paired_difference


def difference(mean=0.02, seeds=8, items=200, run=0.0, item=0.0, error=0.0):
    """Tables whose variance components are exactly these, and whose mean is `mean`."""
    random = np.random.default_rng(0)

    def standardized(shape):
        values = random.normal(size=shape)
        for axis in (0, 1):
            if shape[axis] > 1:
                values -= values.mean(axis=axis, keepdims=True)
        return values

    rows, columns = standardized((seeds, 1)), standardized((1, items))
    rest = standardized((seeds, items))
    table = (
        mean
        + run * rows / rows.std(ddof=1)
        + item * columns / columns.std(ddof=1)
        + error * rest / np.sqrt((rest**2).sum() / ((seeds - 1) * (items - 1)))
    )
    return paired_difference(table, np.zeros_like(table))


@pytest.mark.parametrize("df", [7, 20, 500])
def test_detectable_difference_is_seen_four_times_of_five(df):
    size = detectable_difference(1.0, df)
    noncentral = stats.nct.sf(stats.t.isf(0.025, df), df, size)
    assert noncentral == pytest.approx(0.8, abs=0.015)
    by_library = TTestPower().solve_power(nobs=df + 1, alpha=0.05, power=0.8)
    assert size == pytest.approx(by_library * np.sqrt(df + 1), rel=0.03)


def test_a_stricter_level_sees_less():
    assert detectable_difference(1, 7, level=0.01) > detectable_difference(1, 7)


def test_more_seeds_decide_what_runs_leave_open():
    found = difference(run=0.04)
    more = seeds_to_decide(found)
    # (0.04 / 0.02)^2 (1.96 + 0.84)^2 = 31.4 seeds, two or three more for Student's t.
    assert more in range(24, 28)
    assert items_to_decide(found) is None
    larger = difference(seeds=8 + more, run=0.04)
    assert detectable_difference(larger.standard_error, larger.df) <= 0.02


def test_more_seeds_come_with_whole_checkpoints():
    found = difference(run=0.04)
    as_checkpoints = dataclasses.replace(found, checkpoints=8, seeds=24)
    more = seeds_to_decide(found)
    assert more is not None and seeds_to_decide(as_checkpoints) == 3 * more


def test_more_items_decide_what_items_leave_open():
    found = difference(item=0.3)
    more = items_to_decide(found)
    assert more == pytest.approx((0.3 / 0.02) ** 2 * (1.96 + 0.842) ** 2 - 200, rel=0.01)
    assert seeds_to_decide(found) is None


def test_either_decides_what_the_error_leaves_open():
    # Mean squares of rows and columns as large as that of the error.
    found = difference(error=0.6, run=0.6 / np.sqrt(200), item=0.6 / np.sqrt(8))
    assert found.variance == pytest.approx({"run": 0, "item": 0}, abs=1e-12)
    assert seeds_to_decide(found) == pytest.approx((0.6 / 0.02) ** 2 * 7.85 / 200 - 8, abs=3)
    assert items_to_decide(found) is not None


def test_nothing_more_where_it_is_large_enough_and_nothing_helps_without_a_difference():
    assert seeds_to_decide(difference(mean=1.0, run=0.01)) == 0
    assert seeds_to_decide(difference(mean=0.0, run=0.01)) is None
    assert items_to_decide(difference(mean=1e-9, item=1.0)) is None
