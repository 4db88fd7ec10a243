"""Commands start anew with huge pages, but only where nothing speaks against it."""

import os
import subprocess
import sys

import pytest

import experiments
from fm.training import runtime


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Returns a function: command line to (arguments, environment) of the new start, or None."""
    for name in [*runtime._MALLOC_VARIABLES, *(n for n in os.environ if n.startswith("MALLOC_"))]:
        monkeypatch.delenv(name, raising=False)
    mode = tmp_path / "enabled"
    mode.write_text("always [madvise] never\n")
    monkeypatch.setattr(experiments, "_HUGE_PAGES_FILE", mode)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))

    def start(*arguments, kernel="always [madvise] never\n"):
        mode.write_text(kernel)
        found = []
        monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
        monkeypatch.setattr(sys, "orig_argv", ["python", *arguments])
        experiments.start_with_huge_pages()
        return found[0][1:] if found else None

    return start


def test_the_same_command_starts_with_huge_pages(started):
    arguments, environment = started("-m", "experiments.compare", "--profile=quick")
    assert arguments == [sys.executable, "-m", "experiments.compare", "--profile=quick"]
    assert environment["GLIBC_TUNABLES"] == runtime.HUGE_PAGES_TUNABLE
    assert environment["PATH"] == os.environ["PATH"]
    assert started("/a/bin/fm", "list")[0] == [sys.executable, "/a/bin/fm", "list"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "pytest", "tests"),
        ("-m", "experiments_of_others"),
        ("-m",),
        (),
        ("-c", "import experiments"),
        ("my_study.py",),
    ],
)
def test_other_programs_go_on_as_they_are(started, arguments):
    assert started(*arguments) is None


def test_a_tuned_allocator_and_a_kernel_without_the_choice_are_left_alone(started, monkeypatch):
    own = ("-m", "experiments.compare")
    for kernel in ("[always] madvise never", "always madvise [never]"):
        assert started(*own, kernel=kernel) is None
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert started(*own) is None
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    assert started(*own) is not None
    monkeypatch.setenv(*next(iter(experiments._HUGE_PAGES.items())))
    assert started(*own) is None, "the second start"


@pytest.mark.slow
def test_a_command_says_that_it_has_huge_pages():
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.doctor"], env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    has_choice = experiments._HUGE_PAGES_FILE.exists() and "[madvise]" in (
        experiments._HUGE_PAGES_FILE.read_text()
    )
    wanted = "for large blocks" if has_choice else "not asked for"
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("huge pages"))
    assert line.endswith(wanted)
