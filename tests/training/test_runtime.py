"""Allocator settings and the measured matrix-product rate."""

import os
import platform
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fm.training import runtime

# The allocator's settings are the process's, so each case is a process.
PROGRAM = """
import jax, jax.numpy as jnp, resource
from fm.training import runtime
if {keep}:
    runtime.keep_freed_memory()
x = jnp.ones(20 << 20)
double = jax.jit(lambda x: 2 * x)
def faults(touch):
    # The first calls find where their blocks can stay.
    for _ in range(8):
        touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
of_program = faults(lambda: double(x).block_until_ready())
of_python = faults(lambda: b"x" * (48 << 20))
print(runtime.keep_freed_memory_succeeded(), of_python, of_program)
"""


def run(keep, **environment):
    # Simulated devices run their programs in threads of their own.
    variables = (*runtime._MALLOC_VARIABLES, "XLA_FLAGS")
    clean = {name: value for name, value in os.environ.items() if name not in variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    keeps, of_python, of_program = done.stdout.split()
    return keeps == "True", int(of_python), int(of_program)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
@pytest.mark.slow
def test_large_blocks_of_python_and_of_programs_are_faulted_in_once():
    pages_of_python, pages_of_program = 8 * 48 * 256, 8 * 80 * 256
    keeps, of_python, of_program = run(keep=True)
    # A program's block may find its place late: once more, not every time.
    assert keeps and of_python < 1000 and of_program < pages_of_program / 2
    keeps, of_python, of_program = run(keep=False)
    assert not keeps and of_python >= pages_of_python and of_program >= pages_of_program


def test_a_user_who_tuned_the_allocator_is_left_alone():
    keeps, *_ = run(keep=True, MALLOC_TRIM_THRESHOLD_="1000000")
    assert not keeps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matrix_product_rate_is_that_of_a_computer(dtype):
    assert 1e8 < runtime.gemm_flops_per_second(dtype, size=128, repeats=2) < 1e16


@pytest.mark.parametrize("flops_per_second", [1e11, 1e14, 2e15])
def test_the_rate_of_a_fast_chip_does_not_count_the_call(flops_per_second, monkeypatch):
    """With a call of 0.2 ms, in which such a chip would do 400 billion operations."""
    size, call, now, calls = 128, 2e-4, [0.0], []

    class Clock:
        @staticmethod
        def perf_counter():
            return now[0]

    class Product:
        def __init__(self, a, length):
            self.seconds = call + length * 2.0 * large**3 / flops_per_second
            calls.append((length, self.seconds))

        def block_until_ready(self):
            now[0] += self.seconds

    large = runtime.gemm_size("gpu", "bfloat16")
    monkeypatch.setattr(runtime, "time", Clock)
    monkeypatch.setattr(runtime, "_multiply_chain", Product)
    runtime._measure_gemm.cache_clear()
    found = runtime.gemm_flops_per_second("bfloat16", size=size) * large**3 / size**3
    runtime._measure_gemm.cache_clear()
    assert 0.995 * flops_per_second < found <= flops_per_second
    assert calls[-1][1] > 0.05 and sum(seconds for _, seconds in calls) < 200


def test_a_chain_of_products_is_one_program_and_stays_finite():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64), scale=1 / 8), jnp.bfloat16)
    lowered = runtime._multiply_chain.lower(a, 500)
    assert lowered.as_text().count("dot_general") == 1
    assert np.isfinite(np.asarray(lowered.compile()(a), np.float32)).all()


def test_sizes_by_dtype():
    sizes = [runtime.gemm_size("gpu", dtype) for dtype in ("float32", "bfloat16", "float8_e4m3fn")]
    assert sizes == [4096, 8192, 8192] and runtime.gemm_size("cpu", "float32") == 1024
