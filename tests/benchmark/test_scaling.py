import dataclasses

import numpy as np
import pytest

from fm.benchmark.core import BenchConfig, ResultRow
from fm.benchmark.scaling import cases, fit_exponent, fit_exponents


def row(axis, at, seconds, flops=None):
    return ResultRow(
        "scaling", f"{axis} {at}", "float32", "fm", axis=axis, at=at,
        median_seconds=seconds, flops=flops, peak_memory_bytes=None,
    )  # fmt: skip


def test_the_exponent_of_a_power_law_is_found_exactly():
    values = [64, 128, 256, 512]
    exponent, error = fit_exponent(values, [3e-4 * value**1.7 for value in values])
    assert exponent == pytest.approx(1.7)
    assert error == pytest.approx(0.0, abs=1e-9)


def test_the_fit_is_that_of_numpy():
    rng = np.random.default_rng(0)
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    costs = values**0.8 * np.exp(0.2 * rng.normal(size=5))
    exponent, error = fit_exponent(values.tolist(), costs.tolist())
    (slope, _), covariance = np.polyfit(np.log(values), np.log(costs), 1, cov=True)
    assert exponent == pytest.approx(slope)
    assert error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_two_points_have_no_error_and_one_has_no_exponent():
    assert fit_exponent([1, 2], [1, 4]) == (pytest.approx(2.0), None)
    for values, costs in (([2], [1]), ([2, 2], [1, 2]), ([1, 2], [1, 0])):
        with pytest.raises(ValueError, match="two values above 0"):
            fit_exponent(values, costs)


def test_each_axis_is_fitted_apart():
    rows = [row("length", float(v), 1e-3 * v**2, v) for v in (8, 16, 32)]
    rows += [row("depth", float(v), 1e-3 * v, 2.0 * v) for v in (1, 2, 4)]
    rows += [row("batch", 1.0, 1e-3), dataclasses.replace(row("x", 1.0, 1.0), axis=None)]
    length, depth = fit_exponents(rows)
    assert (length["axis"], depth["axis"]) == ("length", "depth")
    assert length["exponent"] == pytest.approx(2.0) and depth["exponent"] == pytest.approx(1.0)
    assert length["flops_exponent"] == pytest.approx(1.0)
    assert length["memory_exponent"] is None
    assert length["values"] == [8.0, 16.0, 32.0]


def test_every_size_is_varied_and_nothing_else():
    varied = {}
    for case in cases(BenchConfig()):
        varied.setdefault(case.axis, []).append(case.flops)
    assert set(varied) == {"length", "width", "depth", "batch", "vocab"}
    assert all(np.all(np.diff(costs) > 0) for costs in varied.values())
