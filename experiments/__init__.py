"""Experiments: one file per question, each `python -m experiments.NAME --help`."""

import os
import signal
import sys


def _stop(*_: object) -> None:
    # Not an exception: library code that runs during imports may catch it.
    os.write(2, b"error: interrupted; the same command resumes\n")
    os._exit(130)


# Python imports this package before the experiment itself, with sys.argv[0] still "-m". Importing
# the libraries then takes seconds, until `cli.call` handles signals itself.
if sys.argv[:1] == ["-m"]:
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _stop)
