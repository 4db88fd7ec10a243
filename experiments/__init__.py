"""Experiments: one file per question, each `python -m experiments.NAME --help`."""

import os
import signal
import sys


def _stop(*_: object) -> None:
    # Not an exception: of one raised in the middle of an import anything may become.
    os.write(2, b"error: interrupted; the same command goes on where it was\n")
    os._exit(130)


# `python -m`, of which "-m" is the name until it has found its module, reads this before anything
# else. Libraries take seconds after it, until `command.call` listens for signals itself.
if sys.argv[:1] == ["-m"]:
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _stop)
