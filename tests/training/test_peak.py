import pytest

from fm.training.runtime import gemm_flops_per_second


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rate_is_that_of_a_computer(dtype):
    assert 1e8 < gemm_flops_per_second(dtype, size=128, repeats=2) < 1e16
