"""Experiments: one file per question, each `python -m experiments.NAME --help`."""

import os
import pathlib
import platform
import signal
import sys

# Tells glibc (2.35 on) to ask for huge pages for its large blocks; it reads this only as a process
# starts. The same as `fm.training.runtime.HUGE_PAGES_TUNABLE`, which is not imported here: that
# takes seconds.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_HUGE_PAGES_FILE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _stop(*_: object) -> None:
    # Not an exception: library code that runs during imports may catch it.
    os.write(2, b"error: interrupted; the same command resumes\n")
    os._exit(130)


def exit_on_signals() -> None:
    """Lets SIGINT and SIGTERM end the process in one line, until `cli.call` handles them.

    Importing the libraries takes seconds.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def start_with_huge_pages() -> None:
    """Starts this command anew, as the same process, with large blocks of memory in huge pages.

    A training step with over 64 MiB of scratch memory is 1.1 to 1.4 times as fast on a CPU as the
    training loop dispatches it: its memory, which glibc maps anew for every step of another thread
    than the first, is then faulted in by 2 MiB instead of 4 KiB (BUILD_NOTES.md, 2026-11-30). Does
    nothing where the kernel does not leave the choice to processes, under another C library, if
    the user has tuned the allocator, or where the command is run by another program (a debugger,
    a test).
    """
    tuned = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc" or not _is_own_command(sys.orig_argv):
        return
    try:
        if "[madvise]" not in _HUGE_PAGES_FILE.read_text():
            return
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | _HUGE_PAGES)
    except OSError:  # It goes on with pages of the usual size.
        return


def _is_own_command(arguments: list[str]) -> bool:
    """Returns whether a command line is `python -m experiments.NAME ...` or `fm ...`."""
    first, *others = arguments[1:] or [""]
    if first == "-m":
        return bool(others) and others[0].startswith("experiments.")
    return pathlib.Path(first).name == "fm"


# Python imports this package before the experiment itself, with sys.argv[0] still "-m".
if sys.argv[:1] == ["-m"]:
    exit_on_signals()
    start_with_huge_pages()
