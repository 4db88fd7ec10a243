"""An input as a model looks at it: what it reads, in which mode, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from fm.data import tokenizer
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import attention_maps
from fm.study.pretraining import PretrainedModel
from fm.study.processing import Processor
from fm.training.objectives import PretrainingObjective

BPE = tokenizer.train(["the film was good, the film was bad"] * 9, 270)
MODEL = ModelConfig(num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=16)


def found(**sizes):
    model = dataclasses.replace(MODEL, **sizes)
    reads = Processor(model, BPE if model.vocab_size else None)
    return PretrainedModel(reads, init(jax.random.key(0), model), PretrainingObjective())


@pytest.fixture(scope="module")
def text():
    return found(vocab_size=BPE.vocab_size)


@pytest.fixture(scope="module")
def pictures():
    return found(patch_dims=(("image", 12),), position_axes=2, d_model=32)


class TestText:
    def test_whole(self, text):
        looked, ids, total = attention_maps.text_attention_maps(
            text, "the film", "bidirectional", 128
        )
        assert ids[0] == BPE.bos and ids[-1] == BPE.eos and total == len(ids)
        assert BPE.decode(ids) == "the film"
        assert looked.weights_NHLS.shape == (2, 2, len(ids), len(ids)) and looked.visible_LS.all()
        np.testing.assert_allclose(looked.weights_NHLS.sum(-1), 1, atol=2e-6)
        assert looked.kernel == "xla_tiled" and looked.error < 2e-6

    def test_cut(self, text):
        looked, ids, total = attention_maps.text_attention_maps(
            text, "the film was good " * 9, "causal", 5
        )
        assert len(ids) == 5 and total > 5 and BPE.eos not in ids
        assert looked.weights_NHLS.shape[-1] == 5
        assert not np.any(looked.weights_NHLS[..., ~looked.visible_LS])

    def test_causal_weights_do_not_know_what_was_cut(self, text):
        short, long = (
            attention_maps.text_attention_maps(text, "the film was good " * 3, "causal", most)[
                0
            ].weights_NHLS
            for most in (6, 12)
        )
        np.testing.assert_allclose(short, long[:, :, :6, :6], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("words", "reason"), [("", "empty"), (" \n", "empty"), ("a\udc80", "not Unicode")]
    )
    def test_refused(self, text, words, reason):
        with pytest.raises(UserError, match=reason):
            attention_maps.text_attention_maps(text, words, "causal", 9)

    def test_a_model_of_pictures(self, pictures):
        with pytest.raises(UserError, match="reads images"):
            attention_maps.text_attention_maps(pictures, "a film", "causal", 9)


class TestPictures:
    def test_both_ways_and_forward(self, pictures):
        image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
        both = attention_maps.image_attention_maps(pictures, image, "bidirectional")
        forward = attention_maps.image_attention_maps(pictures, image, "causal")
        assert both.weights_NHLS.shape[-2:] == (6, 6)
        assert forward.weights_NHLS.shape[-2:] == (7, 7)  # the start piece leads
        assert not np.any(np.triu(forward.weights_NHLS, 1))
        np.testing.assert_allclose(forward.weights_NHLS.sum(-1), 1, atol=2e-6)

    @pytest.mark.parametrize(
        ("shape", "reason"),
        [
            ((5, 6, 3), "6x5 pixels does not fit.*multiples of the model's patch size 2"),
            ((4, 7, 3), "7x4 pixels"),
            ((64, 64, 3), "at most 256 patches"),
            ((4, 4, 1), "1 channels, but the model reads 3"),
        ],
    )
    def test_refused(self, pictures, shape, reason):
        with pytest.raises(UserError, match=reason):
            attention_maps.image_attention_maps(pictures, np.zeros(shape, np.uint8), "causal")

    def test_a_model_of_text(self, text):
        with pytest.raises(UserError, match="reads text"):
            attention_maps.image_attention_maps(text, np.zeros((4, 4, 1), np.uint8), "causal")

    @pytest.mark.parametrize(("side", "channels"), [(1, 1), (1, 3), (2, 1), (4, 3), (7, 1), (8, 3)])
    def test_the_patch_is_known_from_its_numbers(self, side, channels):
        model = dataclasses.replace(
            MODEL, patch_dims=(("image", side**2 * channels),), position_axes=2
        )
        assert attention_maps.patch_shape(model) == (side, channels)


def test_the_main_mode_is_that_of_most_sequences():
    assert (
        attention_maps.default_mode(PretrainingObjective(causal_lm=0.6, masked_lm=0.4)) == "causal"
    )
    assert (
        attention_maps.default_mode(PretrainingObjective(causal_lm=0.5, masked_lm=0.5))
        == "bidirectional"
    )
    assert (
        attention_maps.default_mode(
            PretrainingObjective(causal_lm=0.1, masked_lm=0.0, bag_of_words=0.9)
        )
        == "bidirectional"
    )
    assert attention_maps.mode_share(
        PretrainingObjective(causal_lm=0.1, masked_lm=0.2, bag_of_words=0.7), "bidirectional"
    ) == pytest.approx(0.9)
