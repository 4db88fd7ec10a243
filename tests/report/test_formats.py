import pytest
from scipy import stats

from fm.report import formats
from fm.report.schema import parse
from fm.report.tables import seed_means, t95


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.123, "+12.3"), (-0.031, "−3.1"), (-0.0001, "0.0"), (0.0, "0.0"), (None, "–")],
)
def test_points(value, expected):
    assert formats.points(value) == expected


def test_units_keep_numbers_short():
    assert formats.flops(4.1e14) == "410 TFLOP"
    assert formats.flops(0) == "0"
    assert formats.seconds(0.8) == "0.8 s"
    assert formats.seconds(141) == "2.4 min"
    assert formats.seconds(9000) == "2.5 h"
    assert formats.num_bytes(12_600_000) == "12.6 MB" and formats.num_bytes(140) == "140 B"
    assert formats.num_bytes(None) == formats.MISSING
    assert formats.multiplier(3.3) == "×3.3"
    assert formats.p_value(0.0001) == "<0.001"
    assert formats.count(25_000) == "25,000"
    assert formats.interval(0.091, 0.152) == "9.1 to 15.2"
    assert formats.std_points(0.0004) == "2.00"


@pytest.mark.parametrize("degrees", [1, 2, 7, 30, 31, 60, 500])
def test_t_quantile(degrees):
    assert t95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3)


def test_mean_and_t_interval_over_seeds():
    values = [0.5, 0.6, 0.7]
    cells = [
        {"task": "x", "arm": "in_domain", "labels": 64, "seed": seed, "value": value}
        for seed, value in enumerate(values)
    ]
    (point,) = seed_means(parse({"schema": 1, "cells": cells}), "x")["in_domain"]
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem(values))
    assert (point.mean, point.low, point.high) == pytest.approx((0.6, low, high), abs=1e-3)
    assert point.seeds == 3
