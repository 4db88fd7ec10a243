"""Allocator settings and the measured matrix-product rate."""

import os
import platform
import subprocess
import sys

import pytest

from fm.training import runtime

# The allocator's settings are the process's, so each case is a process.
PROGRAM = """
import resource
from fm.training import runtime
if {keep}:
    runtime.keep_freed_memory()
def touch():
    b"x" * (48 << 20)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(runtime.keep_freed_memory_succeeded(), faults)
"""


def run(keep, **environment):
    variables = runtime._MALLOC_VARIABLES
    clean = {name: value for name, value in os.environ.items() if name not in variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    keeps, faults = done.stdout.split()
    return keeps == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_a_large_block_is_faulted_in_once():
    keeps, faults = run(keep=True)
    assert keeps and faults < 1000
    keeps, faults = run(keep=False)
    assert not keeps and faults > 1000


def test_a_user_who_tuned_the_allocator_is_left_alone():
    keeps, _ = run(keep=True, MALLOC_TRIM_THRESHOLD_="1000000")
    assert not keeps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matrix_product_rate_is_that_of_a_computer(dtype):
    assert 1e8 < runtime.gemm_flops_per_second(dtype, size=128, repeats=2) < 1e16
