"""The chunked loss against all logits at once, in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fm.model import cross_entropy
from fm.model.cross_entropy import fused_linear_cross_entropy
from tests.model.helpers_models import TEXT

D, V = 8, 24
value_and_gradients = jax.value_and_grad(fused_linear_cross_entropy, argnums=(0, 1))


def problem(T, seed=0):
    rng = np.random.default_rng(seed)
    head_DV, h_TD = rng.normal(size=(D, V)), rng.normal(size=(T, D))
    weights_T = np.where(rng.random(T) < 0.3, 0.0, rng.random(T))
    return head_DV, h_TD, rng.integers(0, V, T), weights_T


def textbook(head_DV, h_TD, targets_T, weights_T, softcap=0.0):
    """Sum and gradients; the slope of a softmax's nats is its probabilities less the target."""
    raw_TV = h_TD @ head_DV
    logits_TV = softcap * np.tanh(raw_TV / softcap) if softcap else raw_TV
    rows = np.arange(len(h_TD))
    nats_T = -special.log_softmax(logits_TV, axis=-1)[rows, targets_T]
    slope_TV = special.softmax(logits_TV, axis=-1)
    slope_TV[rows, targets_T] -= 1.0
    slope_TV *= weights_T[:, None]
    if softcap:
        slope_TV /= np.cosh(raw_TV / softcap) ** 2
    return nats_T @ weights_T, h_TD.T @ slope_TV, slope_TV @ head_DV.T


@pytest.mark.parametrize(
    ("T", "rows"), [(1, 4), (4, 4), (7, 4), (8, 4), (5, 100)], ids=lambda value: str(value)
)
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_loss_and_gradients_match_unchunked_float64(T, rows, dtype, rtol, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_CPU_LOGITS", rows * V)
    head_DV, h_TD, targets_T, weights_T = problem(T)
    h_TD = np.asarray(jnp.asarray(h_TD, dtype), np.float64)
    want, dhead_DV, dh_TD = textbook(head_DV, h_TD, targets_T, weights_T)
    arrays = jnp.asarray(head_DV, jnp.float32), jnp.asarray(h_TD, dtype), targets_T
    weights_T = jnp.asarray(weights_T, jnp.float32)
    alone = jax.jit(lambda *a: fused_linear_cross_entropy(*a))(*arrays, weights_T)
    got, gradients = jax.jit(lambda *a: value_and_gradients(*a))(*arrays, weights_T)
    np.testing.assert_allclose([alone, got], want, rtol=rtol)
    for one, other in zip(gradients, (dhead_DV, dh_TD), strict=True):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(np.asarray(one, np.float64), other, atol=rtol * scale)
    assert gradients[0].dtype == jnp.float32 and gradients[1].dtype == dtype


@pytest.mark.parametrize("softcap", [0.7, 3.0])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_soft_capped_logits_match_float64(softcap, dtype, rtol, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_CPU_LOGITS", 4 * V)
    head_DV, h_TD, targets_T, weights_T = problem(7)
    h_TD = np.asarray(jnp.asarray(h_TD, dtype), np.float64)
    want, *wanted = textbook(head_DV, h_TD, targets_T, weights_T, softcap)
    arrays = jnp.asarray(head_DV, jnp.float32), jnp.asarray(h_TD, dtype), targets_T
    weights_T = jnp.asarray(weights_T, jnp.float32)
    alone = fused_linear_cross_entropy(*arrays, weights_T, softcap)
    got, gradients = jax.jit(lambda *a: value_and_gradients(*a, softcap))(*arrays, weights_T)
    np.testing.assert_allclose([alone, got], want, rtol=rtol)
    for one, other in zip(gradients, wanted, strict=True):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(np.asarray(one, np.float64), other, atol=rtol * scale)


@pytest.mark.parametrize(("T", "rows"), [(7, 4), (8, 4), (5, 100)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_accelerator_chunks_and_dtype(T, rows, dtype, rtol, monkeypatch):
    """Larger chunks, and logits in float32 in training as in validation."""
    monkeypatch.setattr(cross_entropy, "default_platform", lambda: "gpu")
    monkeypatch.setattr(cross_entropy, "_ACCELERATOR_LOGITS", rows * V)
    head_DV, h_TD, targets_T, weights_T = problem(T)
    want, dhead_DV, dh_TD = textbook(
        head_DV, np.asarray(jnp.asarray(h_TD, dtype), np.float64), targets_T, weights_T
    )
    arrays = jnp.asarray(head_DV, jnp.float32), jnp.asarray(h_TD, dtype), targets_T
    weights_T = jnp.asarray(weights_T, jnp.float32)
    got, gradients = value_and_gradients(*arrays, weights_T)
    alone = fused_linear_cross_entropy(*arrays, weights_T)
    np.testing.assert_allclose([got, alone], [want, want], rtol=rtol)
    np.testing.assert_allclose(got, alone, rtol=1e-6)
    # A CPU leaves the rounding out, so it is looked for in what is asked.
    for function in (value_and_gradients, fused_linear_cross_entropy):
        asked = str(jax.make_jaxpr(function)(*arrays, weights_T))
        assert re.search(rf"(f32|bf16)\[\d+,{V}\] = dot_general", asked)[1] == "f32"
    for one, other in zip(gradients, (dhead_DV, dh_TD), strict=True):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(np.asarray(one, np.float64), other, atol=rtol * scale)


def test_the_gradient_is_multiplied_by_what_follows():
    arrays = problem(6)
    plain = jax.grad(fused_linear_cross_entropy)(*map(jnp.asarray, arrays))
    tripled = jax.grad(lambda *a: 3.0 * fused_linear_cross_entropy(*a))(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(tripled, 3.0 * plain, rtol=1e-6)


def test_huge_logits_stay_finite():
    head_DV, h_TD, targets_T, weights_T = problem(6)
    nats, gradients = value_and_gradients(1e4 * head_DV, 1e4 * h_TD, targets_T, weights_T)
    assert np.isfinite(nats) and all(np.isfinite(each).all() for each in gradients)


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    def bytes_of(T):
        like = jax.ShapeDtypeStruct
        shapes = like((16, 4096), "float32"), like((T, 16), "float32"), like((T,), "int32")
        program = jax.jit(lambda *a: value_and_gradients(*a))
        compiled = program.lower(*shapes, like((T,), "float32")).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = bytes_of(1024), bytes_of(16384)
    assert many - few < 0.05 * (16384 - 1024) * 4096 * 4


def test_a_fresh_model_knows_nothing_about_tokens():
    head_DV = jnp.zeros((TEXT.d_model, TEXT.vocab_size))
    nats = fused_linear_cross_entropy(
        head_DV, jnp.ones((1, TEXT.d_model)), jnp.array([2]), jnp.ones(1)
    )
    np.testing.assert_allclose(nats, np.log(TEXT.vocab_size), rtol=1e-6)


def test_a_head_of_bfloat16_has_gradients_of_its_own_dtype():
    head_DV, h_TD, targets_T, weights_T = problem(6)
    half_DV = jnp.asarray(head_DV, jnp.bfloat16)
    arrays = jnp.asarray(h_TD, jnp.float32), targets_T, jnp.asarray(weights_T, jnp.float32)
    got, gradients = value_and_gradients(half_DV, *arrays)
    want, expected = value_and_gradients(half_DV.astype(jnp.float32), *arrays)
    assert got == want and gradients[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(gradients[0].astype(jnp.float32), expected[0], rtol=1e-2)
    np.testing.assert_array_equal(gradients[1], expected[1])
