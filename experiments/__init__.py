"""Experiments: one file per question, each `python -m experiments.NAME --help`."""

import os
import signal
import sys


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


# Python imports this package before the experiment itself, with sys.argv[0] still "-m".
if sys.argv[:1] == ["-m"]:
    exit_on_signals()
