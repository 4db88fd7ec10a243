"""Seeing inside a run: profile, parameters, timings, and no implicit transfer in the loop."""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.model.sizes import with_arch
from fm.training import (
    BitsPerByte,
    OptimizerConfig,
    PretrainingObjective,
    TrainConfig,
    params_digest,
    train_loop,
    train_step,
)
from fm.training.metric_writer import read_records
from fm.training.parameter_overview import parameter_overview, parameter_summary
from fm.training.profiling import how_to_open
from fm.training.progress import TIMINGS, ProgressCounters, ProgressTracker, StepCost
from fm.training.train_state import init_train_state
from tests.training.helpers_models import ADAM, NEXT, TEXT, VOCAB, batches, params
from tests.training.helpers_runs import MASKED, RUN, log_records, run_toy

RUN_UNIT = BitsPerByte(1.0)
METRICS = {"loss": 1.0, "learning_rate": 0.1}
BAG = PretrainingObjective(causal_lm=0.0, masked_lm=0.0, bag_of_words=1.0)
OBJECTIVES = {"causal_lm": NEXT, "masked_lm": MASKED, "bag_of_words": BAG}.values()


def test_a_profile_is_written_and_changes_no_number(tmp_path, uninterrupted, capsys):

    out = tmp_path / "run"
    run = dataclasses.replace(RUN, profile_steps=(6, 9))
    done = run_toy(out, run=run)
    assert params_digest(done.params) == params_digest(uninterrupted[0].params)
    assert done.curve == uninterrupted[0].curve and log_records(out) == uninterrupted[1]
    (trace,) = (out / "profile").glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(trace) as opened:
        events = json.load(opened)["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if "step_num" in event.get("args", {})}
    assert steps == {"6", "7", "8", "9"}
    assert f"toy: profile of steps 6 to 9 written to {out / 'profile'}" in capsys.readouterr().err
    assert f"xprof --logdir={out / 'profile'}" in how_to_open(out)
    assert how_to_open(tmp_path) is None


def test_a_profile_that_outlasts_the_run_is_written_too(tmp_path):
    run_toy(tmp_path, run=TrainConfig(steps=4, profile_steps=(3, 90)))
    assert how_to_open(tmp_path)
    with pytest.raises(RuntimeError):  # none is being taken any more
        jax.profiler.stop_trace()


@pytest.mark.parametrize("objective", [NEXT, MASKED])
def test_the_loop_transfers_nothing_implicitly(tmp_path, objective):
    with jax.transfer_guard("disallow"):
        run_toy(tmp_path, objective=objective)
        run_toy(tmp_path, objective=objective)  # reads the checkpoint


def test_nor_does_one_that_ends_when_it_is_flat(tmp_path):
    run = TrainConfig(steps=12, validate_every=3, early_stopping_patience=1, warmup_steps=2)
    with jax.transfer_guard("disallow"):
        run_toy(tmp_path, run=run)


def test_the_overview_of_the_parameters(tmp_path, capsys):
    run_toy(tmp_path, run=TrainConfig(steps=2))
    text = (tmp_path / "parameters.txt").read_text()
    first, *rows, last = text.splitlines()
    assert first.split() == ["name", "shape", "dtype", "count"]
    model = params(TEXT)
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert len(rows) == len(jax.tree.leaves(model)) and last.split() == ["sum", f"{count:,}"]
    query = model["layers"]["query"]
    shape = "x".join(map(str, query.shape))
    line = next(row for row in rows if row.startswith("layers/query "))
    assert line.split() == ["layers/query", shape, "float32", f"{query.size:,}"]
    said = f"toy: {parameter_summary(model)}, listed in {tmp_path / 'parameters.txt'}"
    assert said in capsys.readouterr().err


def test_the_overview_under_a_mesh_says_how_arrays_are_split():
    mesh = jax.make_mesh((1,), ("fsdp",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", None))
    text = parameter_overview({"a": {"b": jax.device_put(jnp.ones((4, 2)), split)}})
    assert text.splitlines()[0].split() == ["name", "shape", "dtype", "count", "sharding"]
    assert "a/b   4x2" in text and "('fsdp', None)" in text


def test_records_say_where_the_time_and_the_memory_go(tmp_path, monkeypatch):
    run_toy(tmp_path, gemm_flops_per_second=1e9)
    first, *records = [each for each in read_records(tmp_path / "metrics.jsonl")
                       if each["kind"] == "train"]  # fmt: skip
    for record in records:
        assert record.keys() >= set(TIMINGS)
        assert record["step_seconds"] > 0 and 0 <= record["data_wait"] <= 1
        assert record["gemm_utilization"] > 0 and record["process_memory_bytes"] > 1e7
        assert record["mfu"] is record["hfu"] is record["device_memory_bytes"] is None
    assert first["step_seconds"] > 0  # of the steps after the compiled one


def test_utilization_is_of_the_model_and_of_the_program(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    counted = ProgressTracker(
        TrainConfig(steps=10, log_every=2), RUN_UNIT, progress=ProgressCounters(),
        gemm_flops_per_second=None, out_dir=None, peak_flops=1000.0,
    )  # fmt: skip
    for program, expected in ((300.0, 0.15), (0.0, 0.1)):  # a custom kernel is not counted
        counted.program_flops = program
        counted.add_step(METRICS, StepCost(50, 200.0))
        counted.record_wait(1.0)
        clock[0] += 4
        got = counted.add_step(METRICS, StepCost(50, 200.0))
        assert got["mfu"] == pytest.approx(0.1) and got["hfu"] == pytest.approx(expected)
        assert got["step_seconds"] == 2 and got["data_wait"] == 0.25


def test_the_optimized_program_is_counted_and_compiled_once(tmp_path, monkeypatch):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if "backend_compile" in name else None
    )
    optimizer = OptimizerConfig("adamw", learning_rate=0.0567)
    seen = []
    count = train_loop.program_flops
    monkeypatch.setattr(
        train_loop, "program_flops", lambda program: seen.append(count(program)) or seen[-1]
    )
    done = run_toy(tmp_path, run=TrainConfig(steps=6, log_every=3), optimizer=optimizer,
                   peak_flops=1e12, validation=None)  # fmt: skip
    (flops,) = seen
    # Without a scan over layers XLA counts more than matrix products.
    assert 0.5 < flops / (done.flops / 6) < 3
    records = read_records(tmp_path / "metrics.jsonl")
    assert all(each["hfu"] >= each["mfu"] > 0 for each in records if each["mfu"] is not None)
    assert any(each["mfu"] is not None for each in records)
    step = train_step.make_train_step(TEXT, MASKED, optimizer, 6, 1)
    assert step._cache_size() == 1  # pyright: ignore


def bfloat16_step(objective, arch="fm"):
    config = with_arch(dataclasses.replace(TEXT, dtype="bfloat16"), arch)
    update = train_loop.optimizer.build(ADAM, 10)
    state = init_train_state(params(config), update)
    step = train_step.make_train_step(config, objective, ADAM, 10, 1)
    return step, (state, next(batches()), np.uint32(0), jnp.ones(VOCAB))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_bfloat16_step_keeps_state_and_metrics_in_float32(objective):
    step, inputs = bfloat16_step(objective)
    state, metrics = jax.eval_shape(step, *inputs)
    for leaf in jax.tree.leaves((state.params, state.opt_state, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32), leaf
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def equations(jaxpr):
    """All equations of a program, those of its parts too."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.core.jaxprs_in_params(equation.params):
            yield from equations(part)


@pytest.mark.parametrize("arch", ["fm", "llama"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_bfloat16_step_multiplies_in_bfloat16_and_reduces_in_float32(objective, arch):
    step, inputs = bfloat16_step(objective, arch)
    program = list(equations(jax.make_jaxpr(step)(*inputs).jaxpr))
    products = [each for each in program if each.primitive.name == "dot_general"]
    low = [each for each in products if all(v.aval.dtype == jnp.bfloat16 for v in each.invars)]
    assert len(low) >= 10
    exact = {"exp", "log", "rsqrt", "reduce_sum", "reduce_max", "cumsum", "scatter-add"}
    for each in program:
        # Masked tokens, each gathered once, are put back to their places: nothing is summed.
        is_placement = each.primitive.name == "scatter-add" and each.invars[0].aval.ndim == 3
        if each.primitive.name in exact and not is_placement:
            assert all(v.aval.dtype != jnp.bfloat16 for v in each.invars), each
