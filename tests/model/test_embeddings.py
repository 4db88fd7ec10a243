"""Likelihoods of tokens and patches against plain formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from fm.errors import UserError
from fm.model import ModelConfig, config_for_size, embeddings
from fm.model.config import ArchConfig
from fm.model.layers import transpose_kernel
from tests.model.helpers_models import IMAGE, images, params


def test_gmm_nll_matches_scipy():
    rng = np.random.default_rng(0)
    h_TD = rng.normal(size=(5, IMAGE.d_model)).astype(np.float32)
    x_TP = rng.uniform(size=(5, IMAGE.patch_dim("image"))).astype(np.float32)
    weights = params(IMAGE)["streams"]
    got = jax.jit(embeddings.gmm_nll, static_argnums=(3, 4))(weights, h_TD, x_TP, IMAGE, "image")

    raw = h_TD @ np.asarray(weights["image_head"]) + np.asarray(weights["image_bias"])
    M, P = IMAGE.num_mixtures, IMAGE.patch_dim("image")
    means = raw[:, M : M + M * P].reshape(5, M, P)
    scales = np.log1p(np.exp(raw[:, M + M * P :])).reshape(5, M, P) + 1 / 256
    log_p = special.log_softmax(raw[:, :M], axis=-1)
    log_p = log_p + stats.norm.logpdf(x_TP[:, None], means, scales).sum(-1)
    np.testing.assert_allclose(got, -special.logsumexp(log_p, axis=-1), rtol=2e-4, atol=2e-4)


def test_scales_have_a_minimum():
    weights = params(IMAGE)["streams"]
    weights["image_bias"] = weights["image_bias"] - 1e3
    one = np.ones((1, IMAGE.d_model), np.float32)
    _, _, scales = jax.jit(embeddings.gmm_params, static_argnums=(2, 3))(
        weights, one, IMAGE, "image"
    )
    assert np.min(scales) >= 1 / 256


def test_bfloat16_products_of_the_heads_are_not_rounded():
    # A bfloat16 between 0.5 and 1 is 1/256 from the next, which is also the least scale.
    rng = np.random.default_rng(0)
    weights = params(IMAGE)["streams"] | {"token_head": rng.normal(size=(IMAGE.d_model, 7))}
    h_TD = jnp.asarray(rng.normal(size=(64, IMAGE.d_model)), jnp.bfloat16)

    def exact(name):
        kernel = jnp.asarray(weights[name], jnp.bfloat16)
        return np.asarray(h_TD, np.float64) @ np.asarray(kernel, np.float64)

    _, means, scales = embeddings.gmm_params(weights, h_TD, IMAGE, "image")
    raw = exact("image_head") + weights["image_bias"]
    M, size = IMAGE.num_mixtures, means.shape[1] * means.shape[2]
    want = raw[:, M : M + size].reshape(means.shape)
    np.testing.assert_allclose(means, want, rtol=0, atol=1e-5)
    want = np.log1p(np.exp(raw[:, M + size :])).reshape(scales.shape) + 1 / 256
    np.testing.assert_allclose(scales, want, rtol=0, atol=1e-5)
    assert means.dtype == scales.dtype == jnp.float32

    logits_TV = embeddings.token_logits(weights, h_TD, IMAGE)
    np.testing.assert_allclose(logits_TV, exact("token_head"), rtol=0, atol=1e-4)
    transposed = weights | {"token_head": transpose_kernel(jnp.asarray(weights["token_head"]))}
    exact_TV = np.asarray(h_TD, np.float64) @ weights["token_head"]
    logits_TV = embeddings.token_logits(transposed, h_TD, IMAGE)
    np.testing.assert_allclose(logits_TV, exact_TV, atol=1e-4)


def test_bytes_are_the_middle_of_their_bin():
    assert embeddings.to_unit_range(jnp.array([0, 255], jnp.uint8)).tolist() == [
        0.5 / 256,
        255.5 / 256,
    ]


def test_the_start_patch_comes_first():
    led = embeddings.prepend_start_patch(images())
    assert led["image"].shape == (2, 10, IMAGE.patch_dim("image"))
    assert led["positions"][0, :2].tolist() == [[-1, -1], [0, 0]]
    np.testing.assert_array_equal(led["segments"], 1)
    np.testing.assert_array_equal(led["image"][:, 1:], embeddings.to_unit_range(images()["image"]))


def test_mixed_modalities_use_their_own_embedding():
    both = ModelConfig(
        num_layers=1,
        d_model=32,
        num_heads=4,
        num_kv_heads=4,
        mlp_dim=48,
        vocab_size=19,
        patch_dims=(("image", 12),),
    )
    weights = params(both)["streams"]
    tokens, patches = jnp.array([[1, 2]]), jnp.full((1, 2, 12), 0.3)
    modality = jnp.array([[0, 1]])
    mixed = embeddings.embed(
        weights, {"tokens": tokens, "image": patches, "modality": modality}, both
    )
    np.testing.assert_array_equal(
        mixed[:, 0], embeddings.embed(weights, {"tokens": tokens}, both)[:, 0]
    )
    np.testing.assert_array_equal(
        mixed[:, 1], embeddings.embed(weights, {"image": patches}, both)[:, 1]
    )


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_kv_heads": 3}, "num_kv_heads=3"),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"num_layers": -1}, "num_layers=-1 must be at least 0"),
        ({"d_model": 28, "position_axes": 2}, "head_dim=7"),
        ({"patch_dims": (("tokens", 4),)}, "tokens.*image, audio, video"),
        ({"patch_dims": (("image", 4), ("image", 4))}, "at most once"),
        ({"dtype": "float16"}, "dtype=float16"),
    ],
)
def test_invalid_config_is_refused(overrides, named):
    sizes = {"num_layers": 1, "d_model": 32, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 64}
    with pytest.raises(UserError, match=named) as caught:
        ModelConfig(**(sizes | overrides))
    assert "\n" not in str(caught.value)


def test_sizes():
    for name in ("nano", "micro", "tiny", "small", "base"):
        config = config_for_size(name, vocab_size=100)
        assert 32 <= config.head_dim <= 64
    assert config_for_size("base").d_model == 768
    assert config_for_size("nano", num_layers=3).num_layers == 3
    with pytest.raises(UserError, match=r"'huge'.*nano"):
        config_for_size("huge")


def test_learned_positions_of_a_raster_of_patches_begin_with_the_start_patch():
    arch = ArchConfig(position_encoding="learned", embedding_norm=False)
    config = dataclasses.replace(IMAGE, position_axes=1, max_seq_len=5, arch=arch)
    weights = params(config)["streams"]
    patches = np.zeros((2, 4, config.patch_dim("image")), np.float32)
    inputs = {
        "image": jnp.asarray(patches),
        "positions": jnp.broadcast_to(jnp.arange(4)[None, :, None], (2, 4, 1)),
        "segments": jnp.ones((2, 4), jnp.int32),
    }
    x_BLD = embeddings.embed(weights, embeddings.prepend_start_patch(inputs), config)
    alone = embeddings.embed(weights, inputs, config)
    np.testing.assert_array_equal(x_BLD[:, 1:], alone)
    own_LD = np.diff(np.asarray(alone[0]), axis=0)
    want_LD = np.diff(np.asarray(weights["position_embedding"])[1:5], axis=0)
    np.testing.assert_allclose(own_LD, want_LD, atol=1e-6)
    first = np.asarray(x_BLD[0, 0] - weights["position_embedding"][0])
    # The start patch is gray, which is 0 once patches are scaled to -1..1.
    np.testing.assert_allclose(first, 0.0, atol=1e-6)
