"""That the cases do what they say: the sides of one case agree in what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.benchmark import attention, decode, gemm, grid, loss, step
from fm.benchmark import input as pipeline
from fm.benchmark.core import BenchConfig
from fm.benchmark.kinds import SUITES

QUICK = BenchConfig(scale="quick")


def outputs(case, *, peer):
    """What our first implementation and the peer's first way give."""
    ours = next(iter(case.ours.values()))()
    theirs = next(iter(case.peers[peer].values()))()
    return jax.tree.leaves(ours.call()), jax.tree.leaves(theirs.call())


@pytest.mark.parametrize("kind", [attention, decode, loss], ids=["attention", "decode", "loss"])
def test_we_and_jax_compute_the_same(kind):
    for case in (case for case in kind.cases(QUICK) if "jax" in case.peers):
        ours, theirs = outputs(case, peer="jax")
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)


def test_names_tell_all_cases_apart_and_figures_are_there():
    for setting in (BenchConfig(), BenchConfig(scale="full"), BenchConfig(platform="gpu"), QUICK):
        keys = [case.key for kind in SUITES.values() for case in kind(setting)]
        assert len(keys) == len(set(keys)) > len(SUITES)


def test_the_full_set_has_every_case_the_published_goals_name():
    cases = list(attention.cases(BenchConfig(scale="full")))
    assert len(cases) == 4 * 3 * 2 * 2 * 2
    names = {case.name for case in step.cases(BenchConfig())}
    for size in ("4x128 T64 B12", "6x384 T256 B16", "1x128 T256 B32 V4096"):
        assert any(size in name for name in names)
    assert any("as compare trains it" in name for name in names)


def test_flops_of_attention():
    shape = (2, 8, 3, 5)
    full = attention.flops(shape, 8, causal=False, backward=False)
    assert full == 4 * 2 * 3 * 8 * 8 * 5
    assert attention.flops(shape, 8, causal=True, backward=True) == full * 0.5 * 3.5


def test_a_step_moves_the_parameters_and_does_not_keep_the_batch():
    (case,) = step.cases(QUICK)
    side = case.candidates["fm"]()
    first = side.call()
    for _ in range(20):
        later = side.call()
    assert float(later["loss"]) < float(first["loss"]) + 1e-3
    assert float(later["learning_rate"]) > float(first["learning_rate"])
    assert side.chained and side.peak_memory_bytes > 0


def test_the_pipeline_fills_the_rows_of_the_size_it_stands_for():
    each = step.step_shape(1, 32, 16, 2, 64)
    batches = pipeline.pipeline(each, QUICK)
    batch = next(batches)
    assert batch["tokens"].shape == (2, 16) and batch["tokens"].max() < 64
    filled = np.mean([np.mean(next(batches)["segments"] > 0) for _ in range(50)])
    assert filled > 0.8


def test_the_yardstick_is_a_matrix_product():
    side, flops = gemm.side(QUICK, "float32")
    n = QUICK.gemm_size
    assert side.call().shape == (n, n) and flops == 2 * n**3
    mover, moved = gemm.bandwidth(QUICK)
    assert moved == 2 * mover.call().nbytes


def test_plain_loss_is_the_log_likelihood():
    head, h, targets = loss.arrays(QUICK, (16, 8, 32))
    logits = h.astype(np.float64) @ head
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), targets]
    found = loss.all_logits(jnp.asarray(head), jnp.asarray(h), jnp.asarray(targets))
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-6)


@pytest.mark.slow
def test_a_grid_takes_the_steps_of_its_members_one_after_another():
    (problem,) = grid.problems(QUICK)
    assert len({rule.learning_rate for rule in problem.rules}) == len(problem.batches) == 3
    theirs = grid.run_separately(problem, 4)
    assert len(set(theirs["loss"].tolist())) == 3
    for way in ("vmap", "map", None):
        ours = grid.run_grid(problem, way, 4)
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@pytest.mark.slow
def test_the_sides_of_a_grid_case_move_every_member():
    steps, whole = grid.cases(QUICK)
    assert set(steps.candidates) == {"vmap", "map"} and "3 rates" in whole.name
    for build in (*steps.candidates.values(), steps.peers["jax"]["one after another"]):
        side = build()
        before, *_, after = jax.device_get([side.call() for _ in range(30)])
        before, after = (
            np.ravel([each["loss"] for each in found]) if isinstance(found, list) else found["loss"]
            for found in (before, after)
        )
        assert len(before) == 3 and np.all(after < before + 1e-3) and np.any(after != before)
