"""Preprocessing of sounds against the feature extractors of `transformers`."""

import numpy as np
import pytest

from fm.errors import UserError
from fm.hf.encoders.spectrograms import AstPreprocessing, WhisperPreprocessing
from tests.hf.encoders.helpers_encoders import AST_PROCESSOR, WHISPER_PROCESSOR, noises

AST_CASES = {
    "whole": {},
    "cut": {"max_length": 9},
    "not normalized": {"do_normalize": False},
    "128 bins": {"num_mel_bins": 128, "mean": -3.0, "std": 2.0},
}
WHISPER_CASES = {
    "80 bins": {"feature_size": 80},
    "128 bins": {"feature_size": 128, "chunk_length": 2},
    "other frames": {"n_fft": 320, "hop_length": 100},
}


def expected(name, values, sounds):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    settings = {key: value for key, value in values.items() if key != "feature_extractor_type"}
    extractor = getattr(transformers, name)(**settings)
    waves = list((sounds / 32768).astype(np.float32))
    found = extractor(waves, sampling_rate=16_000)
    return np.stack([np.asarray(each) for each in found[extractor.model_input_names[0]]])


@pytest.mark.parametrize("name", AST_CASES)
def test_ast(name):
    values = AST_PROCESSOR | AST_CASES[name]
    sounds = noises(2, 2500)
    sounds[1, 1200:] = 0
    found = AstPreprocessing.from_config(values)(sounds, 16_000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected("ASTFeatureExtractor", values, sounds), atol=1e-4)


@pytest.mark.parametrize("name", WHISPER_CASES)
@pytest.mark.parametrize("samples", [4000, 40_000])
def test_whisper(name, samples):
    values = WHISPER_PROCESSOR | WHISPER_CASES[name]
    sounds = noises(2, samples)
    found = WhisperPreprocessing.from_config(values)(sounds, 16_000)
    theirs = expected("WhisperFeatureExtractor", values, sounds)
    np.testing.assert_allclose(found, theirs.swapaxes(1, 2), atol=1e-4)


def test_sounds_are_resampled():
    times = np.arange(8000) / 8000
    tone = (8000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)[None]
    twice = (8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)[None]
    whisper = WhisperPreprocessing.from_config(WHISPER_PROCESSOR)
    one, other = whisper(tone, 8000), whisper(twice, 16_000)
    np.testing.assert_allclose(one[:, 5:-5, :3], other[:, 5:-5, :3], atol=0.05)
    assert whisper.resampled_length(8000, 8000) == 16_000
    assert whisper.describe(8000, 8000) == "resampled from 8000 Hz, 8 mel bins of 16000 Hz over 1 s"
    assert whisper.describe(20_000, 16_000).endswith("over 1 s, the rest is cut")


def test_sounding_frames():
    whisper = WhisperPreprocessing.from_config(WHISPER_PROCESSOR)
    assert [whisper.num_sounding_frames(n) for n in (1, 160, 161, 99_999)] == [1, 1, 2, 100]
    ast = AstPreprocessing.from_config(AST_PROCESSOR)
    assert [ast.num_sounding_frames(n) for n in (1, 400, 560, 99_999)] == [1, 1, 2, 24]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (AstPreprocessing, {"padding_side": "left"}, "padding_side='left' is not supported"),
        (AstPreprocessing, {"std": 0}, "std=0 must not be 0"),
        (AstPreprocessing, {"feature_size": 2}, "feature_size=2 is not supported, only 1 is"),
        (AstPreprocessing, {"window": "hamming"}, "window='hamming' is not supported"),
        (WhisperPreprocessing, {"dither": 0.1}, "dither=0.1 is not supported, only 0.0 is"),
        (WhisperPreprocessing, {"do_normalize": True}, "do_normalize=True is not supported"),
        (WhisperPreprocessing, {"chunk_length": 1.5}, "chunk_length=1.5 must be a whole number"),
    ],
)
def test_what_is_not_done_is_refused(kind, change, message):
    values = AST_PROCESSOR if kind is AstPreprocessing else WHISPER_PROCESSOR
    with pytest.raises(UserError, match=message):
        kind.from_config(values | change)
