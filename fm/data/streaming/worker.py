"""A process that runs jobs for `fm.data.streaming.pool`: JSON lines in, JSON lines out.

It is started as a program of its own, not by `multiprocessing`, which would import the main
program with JAX into every process.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from typing import Any

from fm.data.streaming.jobs import JOBS
from fm.errors import UserError


def main() -> None:
    """Runs jobs from stdin until it is closed."""
    # Libraries may print; the replies have a stream of their own.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # whoever gave the jobs is done, or gone: nothing is half-written

    threading.Thread(target=read, daemon=True).start()
    while True:
        job: dict[str, Any] = json.loads(jobs.get())
        try:
            reply: dict[str, Any] = {"result": JOBS[job["name"]](**job["arguments"])}
        except UserError as error:
            reply = {"user_error": str(error)}
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            reply = {"user_error": f"{where}{error.strerror or error}"}
        except MemoryError:
            reply = {"user_error": "out of memory while text was tokenized"}
        except Exception:  # Not hidden: the process that gave the job raises it.
            reply = {"error": traceback.format_exc()}
        try:
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
        except BrokenPipeError:
            os._exit(0)


if __name__ == "__main__":
    main()
