"""Candidates made of Python, whose calls are recorded."""

import time

from fm.benchmark.core import Candidate


def fake(name, calls, seconds=0.0, **facts):
    """A candidate that sleeps, and notes its name in `calls` every time."""

    def call():
        calls.append(name)
        time.sleep(seconds)

    return Candidate(call=call, wait=lambda _: None, **facts)
