"""Candidates and peers of a case agree, and the suites have the expected cases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.benchmark.core import BenchConfig, ResultRow
from fm.benchmark.suites import (
    SUITES,
    attention,
    cross_entropy,
    ensemble,
    generation,
    matmul,
    scaling,
    train_step,
)
from fm.benchmark.suites.scaling import fit_exponent, fit_exponents
from fm.model import kv_cache
from fm.model.flops import forward_flops

QUICK = BenchConfig(scale="quick")


@pytest.mark.parametrize("name", ["attention", "decode", "cross_entropy"])
def test_candidate_and_jax_peer_agree(name):
    for case in (case for case in SUITES[name].cases(QUICK) if "jax" in case.peers):
        ours = jax.tree.leaves(next(iter(case.candidates.values()))().call())
        theirs = jax.tree.leaves(next(iter(case.peers["jax"].values()))().call())
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)


def test_case_keys_are_unique():
    for config in (BenchConfig(), BenchConfig(scale="full"), BenchConfig(platform="gpu"), QUICK):
        keys = [case.key for suite in SUITES.values() for case in suite.cases(config)]
        assert len(keys) == len(set(keys)) > len(SUITES)


def test_quick_suites_are_small():
    for name, suite in SUITES.items():
        assert 1 <= len(list(suite.cases(QUICK))) <= 6, name


def test_full_scale_has_every_case_of_the_published_goals():
    cases = list(attention.cases(BenchConfig(scale="full")))
    assert len(cases) == 4 * 3 * 2 * 2 * 2
    names = {case.name for case in train_step.cases(BenchConfig())}
    for size in ("4x128 T64 B12", "6x384 T256 B16", "1x128 T256 B32 V4096"):
        assert any(size in name for name in names)
    assert any("as compare trains it" in name for name in names)


def test_attention_flops():
    shape = (2, 8, 3, 5)
    full = attention.attention_flops(shape, 8, causal=False, backward=False)
    assert full == 4 * 2 * 3 * 8 * 8 * 5
    assert attention.attention_flops(shape, 8, causal=True, backward=True) == full * 0.5 * 3.5


def test_train_step_candidate_updates_the_parameters():
    (case,) = train_step.cases(QUICK)
    candidate = case.candidates["fm"]()
    first = candidate.call()
    for _ in range(20):
        later = candidate.call()
    assert float(later["loss"]) < float(first["loss"]) + 1e-3
    assert float(later["learning_rate"]) > float(first["learning_rate"])
    assert candidate.chained and candidate.peak_memory_bytes > 0


def test_packed_batches_fill_their_rows():
    batches = train_step.packed_batches(train_step.step_shape(1, 32, 16, 2, 64), QUICK)
    batch = next(batches)
    assert batch["tokens"].shape == (2, 16) and batch["tokens"].max() < 64
    filled = np.mean([np.mean(next(batches)["segments"] > 0) for _ in range(50)])
    assert filled > 0.8


def test_gemm_and_bandwidth_candidates():
    candidate, flops = matmul.gemm_candidate(QUICK, "float32")
    n = QUICK.gemm_size
    assert candidate.call().shape == (n, n) and flops == 2 * n**3
    copy, num_bytes = matmul.bandwidth_candidate(QUICK)
    assert num_bytes == 2 * copy.call().nbytes


def test_full_logits_cross_entropy_is_the_log_likelihood():
    head, h, targets = cross_entropy.random_arrays(QUICK, (16, 8, 32))
    logits = h.astype(np.float64) @ head
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), targets]
    found = cross_entropy.full_logits_cross_entropy(
        jnp.asarray(head), jnp.asarray(h), jnp.asarray(targets)
    )
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-6)


@pytest.mark.slow
def test_an_ensemble_takes_the_steps_of_its_members():
    (problem,) = ensemble.problems(QUICK)
    rates = {each.learning_rate for each in problem.optimizer_configs}
    assert len(rates) == len(problem.batches) == 3
    theirs = ensemble.run_separately(problem, 4)
    assert len(set(theirs["loss"].tolist())) == 3
    ours = ensemble.run_sweep(problem, 4)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@pytest.mark.slow
def test_ensemble_candidates_update_every_member():
    steps, whole = ensemble.cases(QUICK)
    assert set(steps.candidates) == {"vmap"} and "3 rates" in whole.name
    for build in (*steps.candidates.values(), steps.peers["jax"]["one after another"]):
        candidate = build()
        before, *_, after = jax.device_get([candidate.call() for _ in range(30)])
        before, after = (
            np.ravel([each["loss"] for each in found]) if isinstance(found, list) else found["loss"]
            for found in (before, after)
        )
        assert len(before) == 3 and np.all(after < before + 1e-3) and np.any(after != before)


class TestGeneration:
    def test_size_is_that_of_smollm2_135m(self):
        kernels = 576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536
        per_token = 2 * (30 * kernels + 576 * 49152)
        # Attention's own products come on top: scores and values, of all keys of the length.
        flops = forward_flops(generation.SMOLLM2, 1, num_predictions=1)
        assert 0 <= flops - per_token <= 30 * 4 * 9 * 64

    def test_generates_the_tokens_of_transformers(self):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        (case,) = generation.cases(QUICK)
        ours = case.candidates["generate"]().call()
        theirs = case.peers["transformers"]["generate"]().call().numpy()
        assert theirs.shape == (2, 9) and len({tuple(row) for row in theirs.tolist()}) == 2
        np.testing.assert_array_equal(np.stack(ours), theirs[:, 5:])

    def test_a_token_reads_all_weights_but_the_embedding_table_once(self):
        (case,) = generation.cases(QUICK)
        layers = 2 * (48 * (48 + 2 * 16) + 48 * 48 + 3 * 48 * 64 + 2 * 48)
        head = 48 * 96
        candidate = case.candidates["generate"]()
        assert case.memory_bound and candidate.min_bytes == 4 * 4 * (layers + head)
        untied = dataclasses.replace(
            generation.SMOLLM2,
            **{"num_layers": 1, "d_model": 48, "num_heads": 3, "num_kv_heads": 1, "mlp_dim": 64},
            vocab_size=96,
            arch=dataclasses.replace(generation.LLAMA, tie_embeddings=False),
        )
        prepared = kv_cache.prepare_params(generation.random_params(untied, 0), untied)
        assert generation._bytes_read(prepared) == 4 * (layers // 2 + head)

    def test_default_cases(self):
        keys = [case.key for case in generation.cases(BenchConfig())]
        for dtype in ("float32", "bfloat16"):
            for part in ("B1 L16 + 64", "B8 L16 + 64", "B1 L512 + 1"):
                assert f"decode generate, SmolLM2-135M {part} {dtype}" in keys


class TestScaling:
    @staticmethod
    def row(axis, at, seconds, flops=None):
        return dataclasses.asdict(
            ResultRow(
                "scaling", f"{axis} {at}", "float32", "fm", axis=axis, at=at,
                median_seconds=seconds, flops=flops, peak_memory_bytes=None,
            )
        )  # fmt: skip

    def test_exponent_of_a_power_law_is_exact(self):
        values = [64, 128, 256, 512]
        exponent, error = fit_exponent(values, [3e-4 * value**1.7 for value in values])
        assert exponent == pytest.approx(1.7)
        assert error == pytest.approx(0.0, abs=1e-7)

    def test_fit_is_that_of_polyfit(self):
        rng = np.random.default_rng(0)
        values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
        costs = values**0.8 * np.exp(0.2 * rng.normal(size=5))
        exponent, error = fit_exponent(values.tolist(), costs.tolist())
        (slope, _), covariance = np.polyfit(np.log(values), np.log(costs), 1, cov=True)
        assert exponent == pytest.approx(slope)
        assert error == pytest.approx(np.sqrt(covariance[0, 0]))

    def test_two_points_have_no_error_and_one_has_no_exponent(self):
        assert fit_exponent([1, 2], [1, 4]) == (pytest.approx(2.0), None)
        for values, costs in (([2], [1]), ([2, 2], [1, 2]), ([1, 2], [1, 0])):
            with pytest.raises(ValueError, match="two values above 0"):
                fit_exponent(values, costs)

    def test_each_axis_is_fitted_separately(self):
        rows = [self.row("seq_len", float(v), 1e-3 * v**2, v) for v in (8, 16, 32)]
        rows += [self.row("num_layers", float(v), 1e-3 * v, 2.0 * v) for v in (1, 2, 4)]
        rows += [self.row("batch_size", 1.0, 1e-3), self.row(None, 1.0, 1.0)]
        length, layers = fit_exponents(rows)
        assert (length["axis"], layers["axis"]) == ("seq_len", "num_layers")
        assert length["exponent"] == pytest.approx(2.0)
        assert layers["exponent"] == pytest.approx(1.0)
        assert length["flops_exponent"] == pytest.approx(1.0)
        assert length["memory_exponent"] is None
        assert length["values"] == [8.0, 16.0, 32.0]

    def test_every_size_is_varied_alone(self):
        varied = {}
        for case in scaling.cases(BenchConfig()):
            varied.setdefault(case.axis, []).append(case.flops)
        assert set(varied) == {"seq_len", "d_model", "num_layers", "batch_size", "vocab_size"}
        assert all(np.all(np.diff(costs) > 0) for costs in varied.values())
