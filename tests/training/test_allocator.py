"""What the allocator does is the process's own affair, so each case is a process."""

import os
import platform
import subprocess
import sys

import pytest

from fm.training import runtime

PROGRAM = """
import resource
from fm.training import allocator
if {keep}:
    allocator.keep_freed_memory()
def touch():
    b"x" * (48 << 20)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(allocator.kept(), faults)
"""


def run(keep, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in runtime._OWN}
    program = PROGRAM.format(keep=keep)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_a_large_block_is_faulted_in_once():
    assert run(keep=True)[1] < 1000 < run(keep=False)[1]
    assert run(keep=True)[0]


def test_a_user_who_tuned_the_allocator_is_left_alone():
    kept, _ = run(keep=True, MALLOC_TRIM_THRESHOLD_="1000000")
    assert not kept


def test_nothing_is_said_to_be_kept_before_it_is():
    assert not run(keep=False)[0]
