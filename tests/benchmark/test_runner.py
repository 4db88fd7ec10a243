import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fm.benchmark import runner
from fm.benchmark.core import BenchConfig, Candidate, Case
from fm.benchmark.runner import measure_case
from fm.benchmark.timing import jax_candidate
from tests.benchmark.helpers_candidates import fake

QUICK = BenchConfig(scale="quick", repeats=3)


def case(ours=0.001, theirs=0.02, **fields):
    return Case(
        suite="fake",
        name="sleep",
        dtype="float32",
        candidates={"short": lambda: fake("ours", [], ours, peak_memory_bytes=7, min_bytes=3)},
        peers={"jax": {"long": lambda: fake("theirs", [], theirs, peak_memory_bytes=9)}},
        **fields,
    )


def test_a_slow_peer_gives_a_ratio_above_one():
    (row,) = measure_case(case(), ("jax",), QUICK, None)
    assert (row.peer, row.peer_implementation, row.implementation) == ("jax", "long", "short")
    assert row.ratio > 1 and row.ratio_spread[0] > 1
    assert row.peer_seconds > row.median_seconds
    assert (row.peak_memory_bytes, row.peer_peak_memory_bytes, row.min_bytes) == (7, 9, 3)
    (row,) = measure_case(case(ours=0.02, theirs=0.001), ("jax",), QUICK, None)
    assert row.ratio < 1


def test_a_row_without_a_peer_has_no_ratio():
    alone, against = measure_case(case(flops=1e6, num_tokens=50), ("jax", "none"), QUICK, None)
    assert (alone.peer, alone.ratio, alone.peer_seconds) == ("none", None, None)
    assert alone.median_seconds == against.median_seconds
    assert alone.spread[0] <= alone.median_seconds <= alone.spread[1]
    assert alone.repeats == 3
    assert alone.flops_per_s == pytest.approx(1e6 / alone.median_seconds)
    assert alone.tokens_per_s == pytest.approx(50 / alone.median_seconds)


def test_a_case_without_the_requested_peer_has_a_row():
    lonely = dataclasses.replace(case(), peers={})
    (row,) = measure_case(lonely, ("jax",), QUICK, None)
    assert (row.peer, row.ratio) == ("none", None) and row.median_seconds > 0


def test_gemm_utilization_is_against_the_product_of_the_same_rounds():
    gemm = (fake("gemm", [], 0.01), 4e6)
    (row,) = measure_case(case(ours=0.01, flops=2e6), ("none",), QUICK, gemm)
    assert 0.2 < row.gemm_utilization < 0.9  # half, were sleeping exact


def test_read_utilization_is_against_a_read_of_the_same_rounds(monkeypatch):
    monkeypatch.setattr(runner.matmul, "read_candidate", lambda _: (fake("read", [], 0.01), 6))
    (row,) = measure_case(case(ours=0.01, memory_bound=True), ("none",), QUICK, None)
    assert 0.2 < row.read_utilization < 0.9  # 3 of 6 bytes in the same time, were sleeping exact
    (row,) = measure_case(case(), ("none",), QUICK, None)
    assert row.read_utilization is None


@pytest.mark.slow
def test_input_wait_fraction_is_the_time_saved_by_the_ablated_candidate():
    with_input = case(ours=0.03, ablated=lambda: fake("without", [], 0.003))
    (row,) = measure_case(with_input, ("none",), QUICK, None)
    assert 0.5 < row.input_wait_fraction < 1
    free = case(ours=0.003, ablated=lambda: fake("without", [], 0.03))
    assert measure_case(free, ("none",), QUICK, None)[0].input_wait_fraction == 0


def test_a_peer_that_is_not_installed_is_named_in_the_note(monkeypatch):
    note = "not installed: pip install -e .[torch]"
    monkeypatch.setattr(
        runner.peer_packages, "unavailable_reason", lambda peer: note if peer == "torch" else None
    )
    built = []
    absent = dataclasses.replace(case(), peers={"torch": {"eager": lambda: built.append(1)}})
    (row,) = measure_case(absent, ("torch",), QUICK, None)
    assert (row.peer, row.ratio, row.note) == ("torch", None, note)
    assert row.median_seconds > 0 and built == []


def test_a_candidate_that_cannot_run_does_not_stop_the_others():
    def cannot():
        raise NotImplementedError("needs a\nHopper")

    broken = dataclasses.replace(
        case(), candidates={"bad": cannot, **case().candidates}, peers={"jax": {"worse": cannot}}
    )
    bad, good = measure_case(broken, ("jax",), QUICK, None)
    assert bad.note == "cannot run here: needs a Hopper" and bad.median_seconds is None
    assert good.note == "cannot run here: needs a Hopper" and good.ratio is None
    assert good.peer == "jax" and good.peer_implementation == "worse" and good.median_seconds > 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_running_out_of_memory_does_not_stop_the_others(error):
    def greedy():
        raise error

    hungry = Candidate(call=greedy, wait=lambda _: None)
    large = dataclasses.replace(
        case(),
        candidates={"large": lambda: hungry, **case().candidates},
        peers={"jax": {"long": lambda: hungry}},
    )
    bad, good = measure_case(large, ("jax",), QUICK, None)
    assert bad.note.startswith("out of memory: ") and bad.median_seconds is None
    assert good.note == bad.note and good.ratio is None and good.median_seconds > 0


def test_other_errors_are_raised():
    def wrong():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        measure_case(
            dataclasses.replace(case(), candidates={"wrong": wrong}), ("jax",), QUICK, None
        )


def test_result_row_fields():
    (row,) = measure_case(case(), ("jax",), QUICK, None)
    fields = dataclasses.asdict(row)
    for name in ("suite", "case", "dtype", "implementation", "peer", "ratio", "median_seconds"):
        assert fields[name] is not None
    assert {
        "spread",
        "repeats",
        "flops",
        "min_bytes",
        "flops_per_s",
        "gemm_utilization",
        "read_utilization",
    } <= fields.keys()
    assert {"peak_memory_bytes", "compile_seconds"} <= fields.keys()


def test_memory_and_min_bytes_of_jax_candidate():
    side = jax_candidate(lambda x: (x @ x).sum(), jnp.ones((64, 64)))
    assert side.min_bytes == 64 * 64 * 4 + 4
    assert side.peak_memory_bytes >= side.min_bytes
    assert side.compile_seconds > 0
    assert float(jax.block_until_ready(side.call())) == 64.0**3
