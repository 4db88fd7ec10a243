"""Folders of encoders: what is read, and what is refused in one line."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.hf import load_pretrained
from fm.hf.encoders import CLASS_TOKEN, NOT_READ, PATCH, encoder_modality, load_encoder
from fm.model.stems import EncoderConfig
from fm.model.transformer import forward, init
from tests.hf.encoders.helpers_encoders import (
    IMAGES,
    SOUNDS,
    noises,
    pictures,
    tensors_of,
    write_folder,
)


def examples_of(family, count=2):
    return pictures(count) if family in IMAGES else noises(count)


def load(folder, family):
    return load_encoder(folder, examples_of(family).shape[1:], 16_000)


@pytest.mark.parametrize("family", [*IMAGES, *SOUNDS])
def test_a_folder_is_read(family, tmp_path):
    encoder = load(write_folder(tmp_path / "model", family), family)
    assert encoder_modality(tmp_path / "model") == encoder.modality
    config = encoder.config
    fresh = jax.eval_shape(lambda: init(jax.random.key(0), config))
    shapes = jax.tree.map(lambda leaf: leaf.shape, encoder.params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, fresh)
    assert EncoderConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    inputs = encoder.inputs(examples_of(family))
    final = forward(encoder.params, inputs, config, mask=Mask())["final"]
    assert final.shape == (2, len(encoder.segments), config.d_model) and np.isfinite(final).all()
    other = load(write_folder(tmp_path / "other", family, seed=1), family)
    assert other.digest() != encoder.digest() == load(tmp_path / "model", family).digest()


def test_segments_tell_class_tokens_registers_and_padding(tmp_path):
    found = load(write_folder(tmp_path / "r", "dinov2_with_registers"), "dinov2_with_registers")
    assert found.segments.tolist() == [CLASS_TOKEN, *[NOT_READ] * 3, *[PATCH] * 9]
    # 2,500 samples are 14 frames: the third column of patches begins at the twelfth.
    folder = write_folder(tmp_path / "ast", "audio-spectrogram-transformer")
    sounding = load_encoder(folder, (1200,), 16_000).segments
    assert sounding.tolist() == [CLASS_TOKEN] * 2 + [PATCH, NOT_READ, NOT_READ] * 3
    whisper = load_encoder(write_folder(tmp_path / "w", "whisper"), (4000,), 8000).segments
    assert whisper.tolist() == [PATCH] * 25 + [NOT_READ] * 25


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("vit", {"config": {"num_channels": 4}}, "num_channels=4 must be 1 or 3"),
        (
            "vit",
            {"config": {"image_size": 20}},
            r"position_embeddings has shape \[1, 37, 16\], not",
        ),
        ("vit", {"config": {"auto_map": {"x": "y"}}}, "auto_map is not supported"),
        ("vit", {"config": {"hidden_act": "relu"}}, "hidden_act='relu' is not known"),
        ("vit", {"config": {"patch_size": [4]}}, "patch_size=.* must be one or two"),
        ("vit", {"config": {"patch_size": 64}}, "smaller than a patch of 64x64"),
        ("dinov2", {"processor": {"do_pad": True}}, "preprocessor_config.json: do_pad=True"),
        ("whisper", {"processor": {"chunk_length": 2}}, "max_source_positions=50, but prepro"),
        (
            "audio-spectrogram-transformer",
            {"processor": {"max_length": 30}},
            "max_length=24, but preprocessor_config.json has 30",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(family, changes, message, tmp_path):
    folder = write_folder(tmp_path / "model", family, **changes)
    with pytest.raises(UserError, match=message) as error:
        load(folder, family)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    tensors = tensors_of("dinov2")
    for name, change, message in (
        ("lacks", {"layernorm.bias": None}, "missing from the weights: final_norm.bias"),
        ("more", {"strange": tensors["layernorm.bias"]}, "left over in the weights: strange"),
        ("ints", {"layernorm.bias": np.zeros(16, np.int32)}, "layernorm.bias holds int32"),
        ("nan", {"layernorm.bias": np.full(16, np.nan, np.float32)}, "16 of 16 numbers that are"),
    ):
        own = {key: value for key, value in (tensors | change).items() if value is not None}
        folder = write_folder(tmp_path / name, "dinov2", tensors=own)
        with pytest.raises(UserError, match=message):
            load(folder, "dinov2")


def test_the_license_is_that_of_the_model_card(tmp_path):
    folder = write_folder(tmp_path / "model", "vit")
    for card, license_ in (
        (None, "not known"),
        ("---\ntags: [x]\nlicense: apache-2.0\n---\n\n# ViT\n", "apache-2.0, says its model card"),
        ("# ViT\n\nlicense: mine\n", "not known"),
    ):
        if card is not None:
            (folder / "README.md").write_text(card)
        assert load(folder, "vit").license == license_


def test_files_that_are_missing_are_named(tmp_path):
    folder = write_folder(tmp_path / "model", "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        UserError, match=r"has no preprocessor_config\.json, which says how ViT reads"
    ):
        load(folder, "vit")
    folder = write_folder(tmp_path / "pickled", "vit")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights can run code"):
        load(folder, "vit")
    assert encoder_modality(tmp_path) is None


def test_encoders_are_no_text_models(tmp_path):
    folder = write_folder(tmp_path / "model", "dinov2")
    with pytest.raises(UserError, match="model_type='dinov2' is an encoder of image data; text is"):
        load_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(
        UserError, match="model_type='clip' is no known encoder of images or sounds"
    ):
        load(folder, "dinov2")
    assert encoder_modality(folder) is None
