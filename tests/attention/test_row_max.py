"""The row maximum is that of NumPy, for every width, and passes NaN on."""

import jax
import numpy as np
import pytest

from fm.attention import row_max as module
from fm.attention.row_max import row_max


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 48, 100, 256, 512, 1000, 4096, 49152])
def test_it_is_the_maximum_to_the_bit(width):
    x = np.random.default_rng(width).standard_normal((3, 2, width), np.float32)
    np.testing.assert_array_equal(jax.jit(row_max)(x), x.max(axis=-1, keepdims=True))
    # At every place in turn, the only one above the others.
    for place in {0, width // 2, width - 1}:
        x[1, 0, place] = 99.0
        assert row_max(x)[1, 0, 0] == 99.0
        x[1, 0, place] = -99.0


@pytest.mark.parametrize("width", [3, 64, 1024])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_pass(width, value):
    x = np.full((2, width), value, np.float32)
    np.testing.assert_array_equal(jax.jit(row_max)(x), np.full((2, 1), value, np.float32))
    x[1, :-1] = 0.0
    assert np.isnan(row_max(x)[1, 0]) == np.isnan(value)


def test_on_an_accelerator_it_stays_one_reduction(monkeypatch):
    class Device:
        platform = "gpu"

    x = np.ones((4, 1024), np.float32)
    operations = [str(each.primitive) for each in jax.make_jaxpr(row_max)(x).eqns]
    assert operations.count("reduce_max") == 2
    monkeypatch.setattr(module, "default_device", lambda: Device)
    operations = [str(each.primitive) for each in jax.make_jaxpr(lambda x: row_max(x))(x).eqns]
    assert operations.count("reduce_max") == 1 and "max" not in operations
