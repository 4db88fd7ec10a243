"""Patches sampled with a KV cache against a full forward pass per patch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.data.packing import Segment, build_row
from fm.model import ModelConfig, embeddings
from fm.model.sample_continuous import continue_patches, sample_patches
from tests.model.helpers_models import IMAGE, images, params, run

FOUR = ModelConfig(
    num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=16, vocab_size=19,
    num_mixtures=2, position_axes=3, patch_dims=(("audio", 5), ("video", 4)), attention="reference",
)  # fmt: skip


def plain(config, stream, inputs, first, rng, temperature):
    """Patches from `first` on, each from a forward pass over the whole row."""
    weights = params(config)
    drawn = np.array(inputs[stream])
    for at in range(first, drawn.shape[1]):
        final = run(weights, inputs | {stream: drawn}, config, mask=Mask(causal=True))["final"]
        log_weights, means, scales = embeddings.gmm_params(
            weights["streams"], final[:, at - 1], config, stream
        )
        which, noise = jax.random.split(jax.random.fold_in(rng, at))
        component = np.asarray(jax.random.categorical(which, log_weights))
        rows = np.arange(len(drawn))
        mean, scale = np.asarray(means)[rows, component], np.asarray(scales)[rows, component]
        value = mean + temperature * scale * np.asarray(jax.random.normal(noise, mean.shape))
        drawn[:, at] = np.clip(value, 0.0, 1.0)
    return drawn[:, first:]


@pytest.mark.parametrize("kept", [0, 4])
def test_images_match_uncached_sampling_and_keep_the_prefix(kept):
    picture, rng = images(B=1), jax.random.key(3)
    positions, given = jnp.asarray(picture["positions"][0]), picture["image"][0, :kept]
    got = sample_patches(
        params(IMAGE), positions, rng, IMAGE, modality="image", num_samples=3, temperature=0.7,
        prefix_KP=given if kept else None,
    )  # fmt: skip
    inputs = {key: np.tile(value, (3,) + (1,) * (value.ndim - 1)) for key, value in picture.items()}
    want = plain(IMAGE, "image", embeddings.prepend_start_patch(inputs), kept + 1, rng, 0.7)
    assert got.shape == (3, 9, IMAGE.patch_dim("image"))
    np.testing.assert_array_equal(
        got[:, :kept], np.tile((given + np.float32(0.5)) / 256, (3, 1, 1))
    )
    np.testing.assert_allclose(got[:, kept:], want, rtol=1e-3, atol=1e-3)
    assert np.std(np.asarray(got), axis=0).max() > 0.05


@pytest.mark.parametrize("stream", ["audio", "video"])
def test_patches_after_text_match_uncached_sampling(stream):
    P = FOUR.patch_dim(stream)
    places = np.arange(5)[:, None] if stream == "audio" else np.array(list(np.ndindex(2, 1, 3)))
    blank = Segment(stream, np.zeros((len(places), P), np.float32), places, with_start=True)
    row = build_row([Segment("tokens", np.array([1, 7, 4])), blank], FOUR.modalities)
    inputs = {key: np.stack([value] * 2) for key, value in row.items()}
    beginning = {key: value[:, :4] for key, value in inputs.items()}
    rng = jax.random.key(5)
    got = continue_patches(
        params(FOUR), beginning, jnp.asarray(row["positions"][4:]), rng, FOUR, modality=stream
    )
    want = plain(FOUR, stream, inputs, 4, rng, 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    other = beginning | {"tokens": beginning["tokens"] + np.array([0, 3, 0, 0])}
    changed = continue_patches(
        params(FOUR), other, jnp.asarray(row["positions"][4:]), rng, FOUR, modality=stream
    )
    assert np.any(np.abs(changed - got) > 1e-3)
