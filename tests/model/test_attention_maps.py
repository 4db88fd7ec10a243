"""The weights shown are those of the kernel that ran, for text and pictures, both ways."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.attention import Mask
from fm.attention.api import IMPLEMENTATIONS
from fm.model import embeddings, layers
from fm.model.attention_maps import attention_weights, kernel_error
from fm.model.layers import rotary_cos_sin
from tests.model.helpers_models import IMAGE, TEXT, images, params, run, text

MASKS = {"causal": Mask(causal=True), "bidirectional": Mask()}
INPUTS = {"text": (TEXT, text()), "image": (IMAGE, images())}

looked = jax.jit(attention_weights, static_argnames="config")
error = jax.jit(kernel_error, static_argnames="config")


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("config", "inputs"), INPUTS.values(), ids=INPUTS)
class TestWeights:
    def test_shape_and_row_sums(self, config, inputs, mask):
        w = np.asarray(looked(params(config), inputs, config, mask=mask))
        B, L = inputs["segments"].shape
        assert w.shape == (config.num_layers, B, config.num_heads, L, L) and w.dtype == np.float32
        np.testing.assert_allclose(w.sum(-1), 1.0, atol=2e-6)
        assert np.any(w[..., 0, 1:]) != mask.causal  # the first sees others, or only itself
        assert w.std() > 0.01

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=() if name == "xla_tiled" else pytest.mark.slow)
            for name in IMPLEMENTATIONS
        ],
    )
    def test_weights_times_values_give_the_next_residual(self, config, inputs, mask, name):
        """From a layer's weights and values by hand to the next layer's residual in `forward`."""
        config, p = dataclasses.replace(config, attention=name), params(config)
        try:
            x_NBLD = np.asarray(run(p, inputs, config, mask=mask)["layers"], np.float64)
        except NotImplementedError as refusal:
            pytest.skip(str(refusal))
        w_NBHLS = np.asarray(looked(p, inputs, config, mask=mask), np.float64)
        rms = lambda x: x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.norm_eps)  # noqa: E731
        for n in range(config.num_layers):
            layer = {key: np.asarray(leaf[n], np.float64) for key, leaf in p["layers"].items()}
            v_BLKC = np.einsum("bld,dkc->blkc", rms(x_NBLD[n]), layer["value"])
            v_BLHC = np.repeat(v_BLKC, config.num_heads // config.num_kv_heads, axis=2)
            o_BLHC = np.einsum("bhls,bshc->blhc", w_NBHLS[n], v_BLHC)
            x = x_NBLD[n] + np.einsum("blhc,hcd->bld", o_BLHC, layer["attention_out"])
            x += np.maximum(rms(x) @ layer["up"], 0) ** 2 @ layer["down"]
            np.testing.assert_allclose(x, x_NBLD[n + 1], rtol=1e-4, atol=1e-4)

    def test_the_kernel_agrees_to_rounding(self, config, inputs, mask):
        assert error(params(config), inputs, config, mask=mask) < 2e-6
        half = dataclasses.replace(config, dtype="bfloat16")
        assert 0 < error(params(config), inputs, half, mask=mask) < 2e-2


def test_a_kernel_that_ran_otherwise_is_noticed(monkeypatch):
    def swapped(q, k, v, *, mask, implementation, scale, softcap):
        return v[:, ::-1]

    config = dataclasses.replace(IMAGE, norm_eps=2e-6)  # not traced before
    monkeypatch.setattr("fm.model.layers.attention", swapped)
    assert kernel_error(params(config), images(), config, mask=Mask()) > 0.1


def test_rows_that_see_nothing_are_zero():
    inputs = text() | {"segments": np.array([[1] * 5 + [0] * 3, [1] * 8])}
    keys = np.where(inputs["segments"] > 0, 1, -1)
    mask = Mask(q_segments=inputs["segments"], kv_segments=keys)
    w = np.asarray(looked(params(TEXT), inputs, TEXT, mask=mask))
    assert not np.any(w[:, 0, :, 5:]) and not np.any(w[:, 0, :, :, 5:])
    np.testing.assert_allclose(w[:, 1].sum(-1), 1.0, atol=2e-6)


def test_scanned_layers_have_the_same_weights():
    scanned = dataclasses.replace(TEXT, scan_layers=True)
    left, right = (looked(params(TEXT), text(), c, mask=MASKS["causal"]) for c in (TEXT, scanned))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_the_start_patch_is_attended_to():
    inputs = embeddings.prepend_start_patch(images())
    w = looked(params(IMAGE), inputs, IMAGE, mask=MASKS["causal"])
    assert w.shape[-1] == images()["segments"].shape[1] + 1
    assert np.all(np.asarray(w)[..., 1:, 0] > 0)


def test_the_scores_are_those_of_queries_and_keys():
    """Softmax by hand over the queries and keys `apply` reads, the first layer's."""
    p, inputs = params(TEXT), text(B=1, L=4)
    residual = run(p, inputs, TEXT, mask=Mask())["layers"][0]
    positions = inputs["positions"][..., None]
    turns = rotary_cos_sin(positions, TEXT.head_dim, TEXT.rope_theta)
    layer = {name: leaf[0] for name, leaf in p["layers"].items()}
    q, k, _ = layers.project_qkv(layer, residual, turns, TEXT)
    q, k = np.asarray(q, np.float64), np.repeat(np.asarray(k, np.float64), 2, axis=2)
    scores = np.exp(np.einsum("blhc,bshc->bhls", q, k) / np.sqrt(TEXT.head_dim))
    want = scores / scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(looked(p, inputs, TEXT, mask=Mask())[0], want, rtol=1e-5, atol=1e-6)
