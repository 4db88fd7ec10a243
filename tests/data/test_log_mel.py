import io
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from fm.data import log_mel
from fm.data.datasets import Split
from fm.data.decontamination import find_duplicates
from fm.data.dedup import audio as sound_overlap
from fm.data.media import audio as waves
from fm.errors import UserError

RATE = 8000
FRAMES = log_mel.LogMelConfig(RATE, 4000)
RNG = np.random.default_rng(0)


def tone(hertz, seconds=0.5, rate=RATE, loudness=0.5):
    return loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def sweeps(count, samples=4000):
    """Sounds like syllables: a gliding tone with two overtones under a bump, a little noise."""
    time = np.arange(samples) / RATE
    low, high = RNG.uniform(100, 400, (2, count, 1))
    phase = 2 * np.pi * np.cumsum(low + (high - low) * time / time[-1], axis=1) / RATE
    voice = sum(RNG.uniform(0.1, 1, (count, 1)) * np.sin(n * phase) for n in (1, 5, 9))
    bump = np.exp(-(((time - RNG.uniform(0.15, 0.35, (count, 1))) / 0.08) ** 2))
    return np.rint(4000 * voice * bump + RNG.normal(0, 20, (count, samples))).astype(np.int16)


def murmurs(count, samples=4000):
    """Bursts of noise, each of its own colour."""
    spectra = np.fft.rfft(RNG.normal(0, 4000, (count, samples)))
    centre = RNG.uniform(300, 1200, (count, 1))
    colour = np.exp(-(((np.arange(spectra.shape[1]) - centre) / 300) ** 2))
    bump = np.exp(-(((np.arange(samples) - samples / 2) / 900) ** 2))
    return np.rint(np.fft.irfft(spectra * colour, samples) * bump).astype(np.int16)


def wav(values, rate=RATE):
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, values)
    return buffer.getvalue()


def test_pieces_are_frames_in_order():
    silent_then_tone = np.concatenate([np.zeros(2000), tone(1000, 0.25)])
    pieces = log_mel.log_mel_patches((silent_then_tone * 32767).astype(np.int16)[None], FRAMES)
    assert pieces.shape == (1, FRAMES.num_patches, FRAMES.patch_dim) == (1, 16, 80)
    assert pieces.dtype == np.float32 and pieces.min() == 0 and pieces.max() <= 1
    mel = log_mel.patches_to_spectrograms(pieces, FRAMES)[0]
    assert mel.shape == (40, 32)
    # A frame is 256 samples about its moment, every 128: the tone's first is 15 or 16.
    assert (mel[:, :14] == 0).all() and (mel[:, 17:31].max(0) > 0.8).all()
    assert log_mel.log_mel_time_positions(FRAMES).tolist() == [[n] for n in range(16)]


def test_decibels_are_those_of_a_sine():
    levels = [
        log_mel.log_mel_patches((tone(1000, loudness=each) * 32767).astype(np.int16)[None], FRAMES)
        for each in (0.01, 0.1)
    ]
    louder = levels[1].max() - levels[0].max()
    assert louder * (log_mel.HIGH_DB - log_mel.LOW_DB) == pytest.approx(20, abs=0.1)
    assert log_mel.LOW_DB + levels[1].max() * 90 == pytest.approx(-20, abs=2)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_a_second_is_at_most_forty_pieces(rate):
    frames = log_mel.LogMelConfig(rate, rate)
    pitch = np.rint(tone(1000, 1, rate) * 32767).astype(np.int16)[None]
    mel = log_mel.patches_to_spectrograms(log_mel.log_mel_patches(pitch, frames), frames)[0]
    assert frames.num_patches <= 40 and len(set(mel[:, 5:-5].argmax(0))) == 1


def test_every_sound_survives_the_way_to_pieces_and_back():
    given = sweeps(6)
    pieces = log_mel.log_mel_patches(given, FRAMES)
    back = log_mel.patches_to_waveforms(pieces, FRAMES, iterations=10)
    assert back.shape == given.shape and back.dtype == np.int16
    again = log_mel.log_mel_patches(back, FRAMES).reshape(6, -1)
    likeness = np.corrcoef(pieces.reshape(6, -1), again)[:6, 6:]
    assert (likeness.argmax(1) == range(6)).all() and likeness.diagonal().min() > 0.9
    alone = log_mel.patches_to_waveforms(pieces[3:4], FRAMES, iterations=10)[0]
    np.testing.assert_allclose(alone, back[3], atol=2)
    assert not log_mel.patches_to_waveforms(np.zeros_like(pieces[:1]), FRAMES, iterations=2).any()


def test_other_lengths_are_refused():
    with pytest.raises(UserError, match="100 samples, not of 4000"):
        log_mel.log_mel_patches(np.zeros((1, 100), np.int16), FRAMES)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_samples_of_every_width_become_sixteen_bits(dtype):
    given = tone(440)
    kind = np.dtype(dtype).kind
    if kind == "u":
        values = np.rint(given * 127 + 128)
    else:
        values = given if kind == "f" else np.rint(given * np.iinfo(dtype).max)
    opened = waves.decode_wav(wav(values.astype(dtype)))
    assert (opened.rate, opened.bits) == (RATE, 8 * np.dtype(dtype).itemsize)
    np.testing.assert_allclose(waves.resample_to_int16(opened, RATE) / 32768, given, atol=0.01)


def test_24_bits_and_stereo():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((2, 3, RATE, 0, "NONE", ""))
        # Left is half of full scale, right silent.
        file.writeframes((b"\x00\x00\x40" + b"\x00\x00\x00") * 100)
    opened = waves.decode_wav(buffer.getvalue())
    assert opened.values.shape == (100, 2)
    assert set(waves.resample_to_int16(opened, RATE)) == {8192}


def test_resampling_keeps_what_is_heard_and_no_more():
    both = tone(440, rate=22050) + tone(6000, rate=22050)
    low = waves.resample_to_int16(waves.decode_wav(wav(both.astype(np.float32), 22050)), RATE)
    assert len(low) == 4000
    np.testing.assert_allclose(low[200:-200] / 32768, tone(440)[200:-200], atol=0.01)


def test_encoding_is_undone_by_decoding():
    given = sweeps(1)[0]
    opened = waves.decode_wav(waves.encode_wav(given, RATE))
    assert opened.rate == RATE and (opened.values[:, 0] == given).all()


BROKEN = {
    "empty": (b"", "not a WAV file"),
    "text": (b"hello world, this is not a sound", "not a WAV file"),
    "header": (wav(np.ones(100, np.int16))[:30], "ends early, after 30 bytes of 244"),
    "truncated": (wav(np.ones(1000, np.int16))[:-501], "ends early, after 1543 bytes of 2044"),
    "dataless": (b"RIFF" + (28).to_bytes(4, "little") + wav(np.ones(9, np.int16))[8:36], "not a"),
    "silent": (wav(np.ones(0, np.int16)), "no samples"),
    "slow": (wav(np.ones(9, np.int16), 100), "100 Hz; accepted: 4000 to"),
    "nan": (wav(np.full(9, np.nan, np.float32)), "not finite"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_sounds_say_so(what):
    encoded, expected = BROKEN[what]
    with pytest.raises(OSError, match=expected):
        waves.decode_wav(encoded)


def test_the_common_form_is_what_most_have():
    codec = waves.AudioCodec()
    measures = [
        *[waves.AudioMeasure(8000, 8000, 1, 16)] * 12,
        *[waves.AudioMeasure(4000, 8000, 2, 8)] * 7,
        waves.AudioMeasure(160_000, 16_000, 1, 16),
    ]
    form = codec.common_spec(measures)
    assert (form.shape, form.rate) == ((8000,), 8000)
    assert codec.describe_changes(measures, form) == [
        "1 of 20 sounds resampled from 16000 Hz to 8000 Hz",
        "7 of 20 sounds mixed down to one channel",
        "7 of 20 sounds converted to 16 bits per sample",
        "1 of 20 sounds cut to 1.00 s",
    ]
    short = codec.to_array(waves.Sound(np.ones((5, 1), np.int16), 8000, 16), form)
    assert short.shape == (8000,) and short[:5].all() and not short[5:].any()
    assert codec.common_spec([waves.AudioMeasure(100, 44_100, 2, 24)]).rate == 16_000
    for samples in (1653, 1654, 7166, 44_100):
        once = codec.common_spec([waves.AudioMeasure(samples, 11_025, 1, 16)])
        assert codec.common_spec([waves.AudioMeasure(*once.shape, 11_025, 1, 16)]) == once


def held(array):
    return Split(None, tuple(map(str, range(len(array)))), np.arange(len(array)), array.__getitem__)


CHANGES = {
    "copy": lambda sound: sound,
    "quieter": lambda sound: sound * 0.3,
    "later": lambda sound: np.pad(sound, ((0, 0), (300, 0)))[:, :4000],
    "noisy": lambda sound: sound + RNG.normal(0, 0.05, sound.shape) * sound.std(1, keepdims=True),
    "8 bits": lambda sound: np.round(sound / 256) * 256,
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found(change):
    pretrain, test = murmurs(60), murmurs(20)
    copies = np.rint(CHANGES[change](test[:10].astype(float))).astype(np.int16)
    found = find_duplicates(held(np.concatenate([pretrain, copies])), held(test), "audio")
    assert found.duplicate_idx.tolist() == list(range(60, 70))
    assert (found.num_checked, found.num_found) == (20, 10) and "correlation" in found.method


def test_lengths_may_differ():
    test = murmurs(5)
    longer = np.pad(test, ((0, 0), (500, 1500)))
    pairs = sound_overlap.find_audio_duplicate_pairs(longer, test)
    assert pairs.tolist() == [[n, n] for n in range(5)]
