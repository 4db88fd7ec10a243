import dataclasses
import io
import json
from contextlib import closing

import pytest

from fm.benchmark import peer_process
from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.runner import measure_case
from fm.benchmark.suites import SUITES, Suite
from tests.benchmark.helpers_candidates import fake

QUICK = BenchConfig(scale="quick", repeats=3)


def quick_case(suite, peer):
    return next(case for case in SUITES[suite].cases(QUICK) if peer in case.peers)


def test_a_case_is_found_by_its_suite_and_key():
    for config in (BenchConfig(), BenchConfig(platform="gpu"), QUICK):
        for name, suite in SUITES.items():
            assert {case.suite for case in suite.cases(config)} == {name}


def test_a_candidate_in_its_own_process_takes_turns_and_ends(monkeypatch):
    case = quick_case("attention", "jax")
    (implementation,) = case.peers["jax"]
    started = []
    popen = peer_process.subprocess.Popen
    monkeypatch.setattr(
        peer_process.subprocess,
        "Popen",
        lambda *a, **k: started.append(popen(*a, **k)) or started[-1],
    )
    monkeypatch.setattr(
        "fm.benchmark.runner.peer_packages.is_other_library", lambda peer: peer == "jax"
    )
    (row,) = measure_case(case, ("jax",), QUICK, None)
    assert row.peer_implementation == implementation and row.note is None
    assert row.ratio > 0 and row.peer_seconds > 0 and row.peer_peak_memory_bytes > 0
    (process,) = started
    assert process.poll() is not None


def test_a_process_that_fails_is_an_error():
    case = quick_case("attention", "jax")
    with (
        closing(peer_process.PeerProcesses(case, QUICK)) as others,
        pytest.raises(RuntimeError, match="code 1"),
    ):
        others.build("jax", "no such implementation")


def test_a_process_that_the_system_ends_ran_out_of_memory():
    case = quick_case("attention", "jax")
    with closing(peer_process.PeerProcesses(case, QUICK)) as others:
        candidate = others.build("jax", *case.peers["jax"])
        assert candidate.turn(2) > 0
        others._running[0].kill()
        with pytest.raises(MemoryError, match="signal 9"):
            candidate.turn(1)


@pytest.fixture
def served(monkeypatch):
    """What a process answers to two turns, as it builds a candidate with a given call."""

    def serve(call):
        def build():
            candidate = fake("peer", calls, peak_memory_bytes=9)
            return dataclasses.replace(candidate, call=call or candidate.call)

        calls, answers = [], io.StringIO()
        case = Case("attention", "shape", "float32", {}, peers={"torch": {"sdpa": build}})
        monkeypatch.setitem(SUITES, "attention", Suite("Attention", lambda _: iter([case])))
        request = {
            "suite": "attention",
            "key": case.key,
            "peer": "torch",
            "implementation": "sdpa",
            "config": dataclasses.asdict(QUICK),
        }
        request = json.loads(json.dumps(request))
        peer_process._serve(request, io.StringIO("2\n5\n"), answers)
        return calls, [json.loads(line) for line in answers.getvalue().splitlines()]

    return serve


def test_a_turn_makes_as_many_calls_as_asked(served):
    calls, (built, first, second) = served(None)
    assert built == {"compile_seconds": None, "peak_memory_bytes": 9, "min_bytes": None}
    assert len(calls) == 7 and first["seconds"] > 0 and second["seconds"] > 0


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (NotImplementedError("needs a Hopper"), {"cannot_run": "needs a Hopper"}),
        (RuntimeError("CUDA out of memory."), {"out_of_memory": "CUDA out of memory."}),
    ],
)
def test_what_cannot_run_is_answered(served, error, answer):
    def fails():
        raise error

    _, answers = served(fails)
    assert answers[-1] == answer


def test_other_errors_end_the_process(served):
    def fails():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        served(fails)
