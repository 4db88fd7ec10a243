"""A candidate of another library, in a process of its own.

So neither library has the other's threads or memory around it. Turns are still taken one after
another, in the rounds of the case; a process times its own. It is asked on its standard input and
answers on its standard output, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any, TextIO

from fm.benchmark.core import BenchConfig, Build, Candidate, Case
from fm.benchmark.suites import SUITES
from fm.benchmark.timing import seconds_per_call
from fm.training.failures import first_line, is_out_of_memory


class PeerProcesses:
    """The processes of one case's peers, to be closed once they are timed."""

    def __init__(self, case: Case, config: BenchConfig):
        """Starts none yet."""
        self._case = case
        self._config = config
        self._running: list[subprocess.Popen[str]] = []

    def build(self, peer: str, implementation: str) -> Candidate:
        """Starts a process that builds a peer's implementation; returns it as a candidate.

        Raises:
          NotImplementedError: it cannot run here.
          MemoryError: it ran out of memory, or was ended by the system.
          RuntimeError: it failed otherwise; what it wrote is on standard error.
        """
        request = {
            "suite": self._case.suite,
            "key": self._case.key,
            "peer": peer,
            "implementation": implementation,
            "config": dataclasses.asdict(self._config),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fm.benchmark.peer_process", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # JAX only draws the peer's weights; it would take most of an accelerator's memory.
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        self._running.append(process)
        built = _answer(process)

        def turn(calls: int) -> float:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended: `_answer` says how
                process.stdin.write(f"{calls}\n")
                process.stdin.flush()
            return _answer(process)["seconds"]

        return Candidate(call=lambda: turn(1), wait=lambda _: None, turn=turn, **built)

    def close(self) -> None:
        """Ends all processes and waits for them."""
        for process in self._running:
            process.terminate()
            process.communicate()


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns a process's next answer; raises what it says went wrong."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        if code < 0:
            raise MemoryError(f"its process was ended by signal {-code}")
        raise RuntimeError(f"its process ended with exit code {code}, see above")
    answer = json.loads(line)
    if "cannot_run" in answer:
        raise NotImplementedError(answer["cannot_run"])
    if "out_of_memory" in answer:
        raise MemoryError(answer["out_of_memory"])
    return answer


# --- In the process ---


def _find_build(request: dict[str, Any], config: BenchConfig) -> Build:
    for case in SUITES[request["suite"]].cases(config):
        if case.key == request["key"]:
            return case.peers[request["peer"]][request["implementation"]]
    raise LookupError(f"no case is called {request['key']}")


def _serve(request: dict[str, Any], questions: TextIO, answers: TextIO) -> None:
    """Builds a candidate and says so; then times as many calls as each line asks for."""

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    fields = request["config"]
    attention = tuple(fields["attention_implementations"])
    config = BenchConfig(**fields | {"attention_implementations": attention})
    try:
        candidate = _find_build(request, config)()
        answer(
            compile_seconds=candidate.compile_seconds,
            peak_memory_bytes=candidate.peak_memory_bytes,
            min_bytes=candidate.min_bytes,
        )
        for line in questions:
            answer(seconds=seconds_per_call(candidate, int(line), config.timing.async_dispatch))
    except NotImplementedError as reason:
        answer(cannot_run=str(reason))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        answer(out_of_memory=first_line(error))


if __name__ == "__main__":
    # What a library prints must not be read as an answer.
    own_output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _serve(json.loads(sys.argv[1]), sys.stdin, own_output)
