"""What the forward pass promises, whatever the parameters are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.model import Transformer, layers
from fm.model.layers import apply_rope, rope_pairs_per_axis, rotary_cos_sin
from fm.model.transformer import forward
from tests.model.helpers_models import IMAGE, TEXT, images, params, run, text

CAUSAL = Mask(causal=True)


def final(config, inputs, mask, weights=None):
    return np.asarray(run(weights or params(config), inputs, config, mask=mask)["final"])


def test_no_gradient_from_a_token_to_later_ones():
    inputs, place = text(B=1), 4
    weights = params(TEXT)

    def output(residual):
        turns = rotary_cos_sin(inputs["positions"][..., None], TEXT.head_dim, TEXT.rope_theta)
        for n in range(TEXT.num_layers):
            layer = {name: leaf[n] for name, leaf in weights["layers"].items()}
            residual = layers.apply_layer(layer, residual, turns, CAUSAL, TEXT)
        return jnp.sum(residual[0, place])

    x_BLD = np.random.default_rng(0).normal(size=(1, 8, TEXT.d_model)).astype(np.float32)
    gradient = np.asarray(jax.jit(jax.grad(output))(x_BLD))[0]
    assert not np.any(gradient[place + 1 :])
    assert np.all(np.any(gradient[: place + 1] != 0, axis=1))


@pytest.mark.parametrize(("config", "inputs"), [(TEXT, text()), (IMAGE, images())])
def test_no_output_depends_on_a_later_token(config, inputs):
    before = final(config, inputs, CAUSAL)
    name, place = ("tokens" if "tokens" in inputs else "image"), 5
    changed = inputs | {name: inputs[name].copy()}
    changed[name][:, place] = (changed[name][:, place] + 1) % TEXT.vocab_size
    after = final(config, changed, CAUSAL)
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert np.all(np.any((before != after)[:, place:], axis=-1))


def test_packed_documents_are_those_by_themselves():
    one, two = text(B=1, L=5, seed=1), text(B=1, L=3, seed=2)
    packed = {key: np.concatenate([one[key], two[key]], axis=1) for key in one}
    packed["segments"] = np.array([[1] * 5 + [2] * 3])
    mask = dataclasses.replace(
        CAUSAL, q_segments=packed["segments"], kv_segments=packed["segments"]
    )
    together = final(TEXT, packed, mask)
    np.testing.assert_allclose(together[:, :5], final(TEXT, one, CAUSAL), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together[:, 5:], final(TEXT, two, CAUSAL), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "inputs"), [(TEXT, text()), (IMAGE, images())])
def test_scanned_layers_match_unrolled_ones(config, inputs):
    def value(weights, scan):
        out = forward(weights, inputs, dataclasses.replace(config, scan_layers=scan), mask=CAUSAL)
        return jnp.sum(jnp.sin(out["final"])), out["layers"]

    grad = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)
    left, right = (grad(params(config), scan) for scan in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), left, right)


def test_bfloat16_is_close_to_float32():
    half = dataclasses.replace(TEXT, dtype="bfloat16")
    low, full = final(half, text(), CAUSAL), final(TEXT, text(), CAUSAL)
    assert low.dtype == jnp.bfloat16
    error = np.sqrt(np.mean((np.asarray(low, np.float32) - full) ** 2))
    assert 0 < error < 0.05  # outputs have a mean square of 1


def test_a_masked_token_is_not_seen():
    inputs, hidden = text(), np.arange(8) == np.full((2, 1), 3)
    changed = inputs | {"tokens": (inputs["tokens"] + hidden) % TEXT.vocab_size}
    left, right = (
        run(params(TEXT), each, TEXT, mask=Mask(), masked_BL=hidden)["final"]
        for each in (inputs, changed)
    )
    np.testing.assert_array_equal(left, right)
    assert np.any(final(TEXT, inputs, Mask()) != final(TEXT, changed, Mask()))


def test_the_linen_module_matches_forward():
    inputs = text()
    model = Transformer(TEXT)
    variables = jax.jit(model.init)(jax.random.key(0), inputs, mask=CAUSAL)
    got = jax.jit(model.apply)(variables, inputs, mask=CAUSAL)
    want = run(variables["params"], inputs, TEXT, mask=CAUSAL)
    np.testing.assert_array_equal(got["final"], want["final"])
    assert want["layers"].shape == (TEXT.num_layers + 1, 2, 8, TEXT.d_model)


@functools.partial(jax.jit, static_argnames="base")
def turned(x_BLHC, positions_BLA, base=100.0):
    return apply_rope(x_BLHC, *rotary_cos_sin(positions_BLA, x_BLHC.shape[-1], base))


class TestRotary:
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_scores_know_only_the_distance(self, axes):
        q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

        def score(at_q, at_k):
            left, right = (turned(x, np.full((1, 1, axes), at)) for x, at in ((q, at_q), (k, at_k)))
            return np.sum(np.asarray(left) * np.asarray(right))

        assert score(5, 2) == pytest.approx(score(13, 10), abs=1e-4)
        assert abs(score(5, 2) - score(5, 3)) > 1e-3

    @pytest.mark.parametrize(("position", "moved"), [([3, 0], slice(0, 4)), ([0, 3], slice(4, 8))])
    def test_each_axis_turns_its_own_pairs(self, position, moved):
        x = np.ones((1, 1, 1, 16), np.float32)
        differs = np.asarray(turned(x, np.array([[position]])) != x)[0, 0, 0]
        want = np.zeros(8, bool)
        want[moved] = True
        np.testing.assert_array_equal(differs.reshape(2, 8), [want, want])

    def test_pairs_that_do_not_divide_are_shared_out(self):
        assert rope_pairs_per_axis(16, 3) == (6, 5, 5) and rope_pairs_per_axis(8, 2) == (4, 4)
        differs = np.asarray(turned(np.ones((1, 1, 1, 16)), np.array([[[0, 3, 0]]])) != 1)
        np.testing.assert_array_equal(differs[0, 0, 0, :8], [False] * 3 + [True] * 3 + [False] * 2)

    def test_lengths_stay(self):
        x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
        got = np.asarray(turned(x, np.tile(np.arange(5)[:, None], (2, 1, 1))))
        np.testing.assert_allclose(
            np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
        )
        np.testing.assert_array_equal(got[:, 0], x[:, 0])
