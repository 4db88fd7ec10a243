"""Features of images and sounds by published encoders."""

import numpy as np
import pytest

from fm.adaptation.encoder_features import (
    encoder_features,
    feature_parts,
    probe_readings,
    select_reading,
)
from fm.attention import Mask
from fm.hf.encoders import CLASS_TOKEN, PATCH, load_encoder
from fm.model.layers import layer_norm
from fm.model.transformer import forward
from tests.hf.encoders.helpers_encoders import noises, pictures, write_folder


@pytest.fixture
def dino(tmp_path):
    folder = write_folder(tmp_path / "dino", "dinov2_with_registers")
    return load_encoder(folder, (20, 26, 3))


def test_class_tokens_and_patches_of_normalized_layers(dino):
    images = pictures(3)
    found = encoder_features(dino.params, dino.config, dino.inputs, images)
    assert found.shape == (3, 2, 2, 16) and found.dtype == np.float32
    states = np.asarray(
        forward(dino.params, dino.inputs(images), dino.config, mask=Mask())["layers"]
    )
    streams = dino.params["streams"]
    normed = layer_norm(states[1:], dino.config.norm_eps) * streams["final_norm"]
    normed = np.asarray(normed + streams["final_norm_shift"])
    for n, kind in enumerate((CLASS_TOKEN, PATCH)):
        means = normed[:, :, dino.segments == kind].mean(axis=2)
        np.testing.assert_allclose(found[:, :, n], means.swapaxes(0, 1), atol=1e-5)


def test_an_example_does_not_depend_on_the_others(dino, monkeypatch):
    images = pictures(5)
    whole = encoder_features(dino.params, dino.config, dino.inputs, images)
    monkeypatch.setattr("fm.adaptation.encoder_features._CHUNK", 2)
    np.testing.assert_array_equal(
        whole, encoder_features(dino.params, dino.config, dino.inputs, images)
    )
    alone = encoder_features(dino.params, dino.config, dino.inputs, images[3:4])
    np.testing.assert_array_equal(whole[3:4], alone)


def test_padding_of_sounds_is_left_out(tmp_path):
    folder = write_folder(tmp_path / "whisper", "whisper")
    encoder = load_encoder(folder, (4000,), 16_000)
    found = encoder_features(encoder.params, encoder.config, encoder.inputs, noises(2))
    states = forward(encoder.params, encoder.inputs(noises(2)), encoder.config, mask=Mask())
    expected = np.asarray(states["final"])[:, :13].mean(axis=1)  # 4,000 samples are 25 frames
    np.testing.assert_allclose(found[:, -1, 0], expected, atol=1e-5)
    assert feature_parts(encoder.config) == ("patches",)


def test_what_a_probe_may_read(dino):
    readings = probe_readings(dino.config)
    assert [each.name for each in readings] == [
        "class and patches of the last layer",
        "class and patches of the last 2 layers",
        "class of the last layer",
        "patches of the last layer",
    ]
    features = np.random.default_rng(0).normal(size=(3, 2, 2, 16))
    read = [select_reading(features, feature_parts(dino.config), each) for each in readings]
    assert [each.shape[1] for each in read] == [32, 64, 16, 16]
    np.testing.assert_allclose(np.linalg.norm(read[2], axis=1), 1.0)
    np.testing.assert_allclose(read[0], np.concatenate(read[2:], axis=1))
