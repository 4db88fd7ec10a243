"""The published arm of images, sounds and clips: an encoder read by a probe, or fine-tuned."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation import encoder_features
from fm.adaptation.finetune import FinetuneConfig
from fm.errors import UserError
from fm.study import published_encoder_arm
from fm.study.config import PublishedEncoderConfig
from fm.study.presets import image_recipe
from fm.study.published_encoder_arm import (
    build_published_encoder_arm,
    check_modality,
    shrunk_inputs_line,
)
from tests.hf.encoders.helpers_encoders import write_folder

RECIPE = dataclasses.replace(
    image_recipe(),
    finetune=FinetuneConfig(min_steps=4, max_epochs=4, batch_size=8),
    l2_penalties=(0.01, 0.1),
)
TRAIN = np.arange(20)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))


def halves(count, seed=0):
    """Images, bright on the left or on the right, and which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 60, (count, 16, 16, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 8 * label : 8 * label + 8] += 150
    return images, labels


@pytest.fixture
def arm(tmp_path):
    def build(family="dinov2", methods=("probe",), *, trainable=False, inputs=None, rate=None):
        folder = write_folder(tmp_path / family, family)
        images, labels = halves(30)
        made = build_published_encoder_arm(
            PublishedEncoderConfig(str(folder)),
            RECIPE,
            images if inputs is None else inputs,
            rate=rate,
            methods=methods,
            test_from=20,
            num_classes=2,
            pad_to=20,
            trainable=trainable,
        )
        return made, labels

    return build


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_a_probe_chooses_what_it_reads(arm, family):
    made, labels = arm(family)
    trials = made.search(TRAIN, labels[:20], 0)
    readings = [trial["config"]["reading"] for trial in trials]
    assert list(dict.fromkeys(readings)) == list(made.model.readings) and len(set(readings)) == 4
    best = max(trials, key=lambda trial: trial["validation"])
    predictions = made.fit_predict(TRAIN, labels[:20], 0, best["config"])
    assert np.mean(predictions.values == labels[20:]) > 0.8
    assert predictions.probabilities.shape == (10, 2)
    flops = made.fit_flops(20, best["config"])
    # Projections and MLP of two layers alone, for 10 tokens.
    assert flops > 20 * 2 * 10 * (8 * 16**2 + 4 * 16 * 32)
    assert made.model.num_features() == made.model.features(0, TRAIN).shape[1]


def test_features_are_cached_by_content(arm, monkeypatch):
    calls, compute = [], encoder_features.encoder_features
    monkeypatch.setattr(
        published_encoder_arm, "encoder_features", lambda *a: calls.append(a) or compute(*a)
    )
    first = arm()[0].model.features(0, TRAIN)
    np.testing.assert_array_equal(first, arm()[0].model.features(1, TRAIN))
    assert len(calls) == 1
    other = arm(inputs=255 - halves(30)[0])[0].model.features(0, TRAIN)
    assert len(calls) == 2 and not np.array_equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trainable_encoder_is_fine_tuned(arm, method):
    made, labels = arm("dinov2_with_registers", ("probe", method), trainable=True)
    trials = made.search(TRAIN, labels[:20], 0)
    assert {trial["config"]["method"] for trial in trials} == {"probe", method}
    hparams = trials[-1]["config"]
    rates = {"full": 1e-4, "lora": 1e-3}
    assert hparams["learning_rate"] == rates[method] and hparams["augment"] is None
    fitted = made.fit(TRAIN, labels[:20], 0, hparams)
    predictions = made.predict(fitted, hparams)
    assert fitted.steps > 0 and predictions.probabilities.shape == (10, 2)
    assert made.fit_flops(20, hparams) > fitted.steps * made.model.feature_flops()


def test_frozen_weights_are_not_fine_tuned(arm):
    assert [each.name for each in arm(methods=("probe", "full"))[0].supported_methods()] == [
        "probe"
    ]
    with pytest.raises(UserError, match=r"--adapt=full: .* supports none of these here; add probe"):
        arm(methods=("full",))


def test_clips_are_read_frame_by_frame(arm):
    images, _ = halves(30)
    clips = np.stack([images, images[:, :, ::-1]], axis=1)
    made, _ = arm(inputs=clips, methods=("probe", "full"), trainable=True)
    assert [each.name for each in made.supported_methods()] == ["probe"]
    found = made.model._all_features
    frames = [arm(inputs=clips[:, n])[0].model._all_features for n in range(2)]
    np.testing.assert_allclose(found, np.mean(frames, axis=0), atol=1e-5)
    assert made.model.feature_flops() == 2 * arm()[0].model.feature_flops()
    assert "of every frame" in made.model.description()["reading"]
    with pytest.raises(UserError, match="supports none of these of clips here"):
        arm(inputs=clips, methods=("full",), trainable=True)


def test_sounds(arm):
    times = np.arange(4000) / 8000
    labels = np.arange(30) % 2
    tones = np.array([300, 2000])[labels] * np.random.default_rng(0).uniform(0.9, 1.1, 30)
    sounds = (9000 * np.sin(2 * np.pi * tones[:, None] * times)).astype(np.int16)
    for family in ("audio-spectrogram-transformer", "whisper"):
        made, _ = arm(family, inputs=sounds, rate=8000)
        trials = made.search(TRAIN, labels[:20], 0)
        best = max(trials, key=lambda trial: trial["validation"])["config"]
        assert np.mean(made.fit_predict(TRAIN, labels[:20], 0, best).values == labels[20:]) > 0.8
        about = made.model.description()
        assert "resampled from 8000 Hz" in about["reading"] and about["tokens"] is None
        assert about["licence"] == "not known" and about["parameters"] > 1000


def test_data_that_a_model_does_not_read_are_refused():
    check_modality("dino", "image", "video")
    for reads, data in (("image", "text"), ("image", "audio"), ("audio", "image"), (None, "image")):
        with pytest.raises(UserError, match=f"reads {reads or 'text'}, and the data is {data}"):
            check_modality("model", reads, data)


def test_shrunk_images_are_told(arm):
    published = arm()[0].model.published
    shrunk = {"from": [480, 640], "to": [8, 8], "count": 1200}
    line = shrunk_inputs_line(published, (8, 8, 3), shrunk)
    assert "reads images of 12x12, and 1,200 of these were shrunk to 8x8" in line
    assert "typically from 480x640; --image_size=16 lets it see more" in line
    assert shrunk_inputs_line(published, (8, 8, 3), None) is None
    assert shrunk_inputs_line(published, (4, 32, 32, 3), shrunk) is None
