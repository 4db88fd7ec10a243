"""Runs jobs on parts of a corpus in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from fm.data.streaming.jobs import JOBS
from fm.errors import UserError

_ONE_THREAD = {
    name: "1" for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
} | {"TOKENIZERS_PARALLELISM": "false"}


def num_workers() -> int:
    """Returns the number of processes that tokenize: one for each core this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    name: str, jobs: Sequence[dict[str, Any]], workers: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Yields (index, result) of each job as it is done.

    Args:
        name: of a function of `fm.data.streaming.jobs.JOBS`.
        jobs: keyword arguments of each call, as JSON.
        workers: number of processes, by default `num_workers`; 0, or a single job, runs them here.

    Raises:
        UserError: a job raised one, or its process was killed.
    """
    count = min(num_workers() if workers is None else workers, len(jobs))
    if count <= 1 and (workers == 0 or len(jobs) <= 1):
        for index, arguments in enumerate(jobs):
            yield index, JOBS[name](**arguments)
        return
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    done: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_worker()) for _ in range(count)]
        for process in processes:
            threading.Thread(
                target=_feed, args=(process, name, jobs, waiting, done), daemon=True
            ).start()
        for _ in jobs:
            index, reply = done.get()
            if "user_error" in reply:
                raise UserError(reply["user_error"])
            if "error" in reply:
                raise RuntimeError(f"a process that tokenizes failed:\n{reply['error']}")
            yield index, reply["result"]


def _feed(
    process: subprocess.Popen,
    name: str,
    jobs: Sequence[dict[str, Any]],
    waiting: queue.SimpleQueue[int],
    done: queue.SimpleQueue[tuple[int, dict[str, Any]]],
) -> None:
    """Gives a process one job after another, in a thread of its own."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            index = waiting.get_nowait()
        except queue.Empty:
            return
        line = ""
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps({"name": name, "arguments": jobs[index]}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            lost = "a process that tokenizes was ended; with little memory the system does that"
            done.put((index, {"user_error": f"{lost}; the same command resumes"}))
            return
        done.put((index, json.loads(line)))


@contextlib.contextmanager
def _worker() -> Iterator[subprocess.Popen]:
    """Starts a process; it ends with the block, and by itself if this process is killed."""
    root = pathlib.Path(__file__).parents[3]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "fm.data.streaming.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | _ONE_THREAD | {"PYTHONPATH": path},
        # Ctrl-C is for the process that gives the jobs.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
