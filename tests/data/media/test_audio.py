import struct

import numpy as np
import pytest

from fm.data.load import load
from fm.data.media import audio
from fm.data.media.audio import AudioCodec, decode_wav

RATE = 8000
SAMPLES = np.rint(9000 * np.sin(np.arange(400) / 5)).astype(np.int16)
CODEC = AudioCodec()


def chunk(name, content, size=None, order="<", pad=True):
    stated = len(content) if size is None else size
    padding = bytes(len(content) % 2) if pad else b""
    return name + struct.pack(f"{order}I", stated) + content + padding


def wav(
    values,
    size=None,
    riff_size=None,
    form=b"RIFF",
    before=b"",
    after=b"",
    real_size=None,
    pad=True,
):
    """A WAV file in which every size may be stated as one likes."""
    order = ">" if form == b"RIFX" else "<"
    kind = values.dtype
    width = kind.itemsize
    channels = values.shape[1] if values.ndim == 2 else 1
    coding = (3 if kind.kind == "f" else 1, channels, RATE, RATE * width * channels)
    fmt = chunk(
        b"fmt ", struct.pack(f"{order}HHIIHH", *coding, width * channels, 8 * width), order=order
    )
    ds64 = b""
    if form == b"RF64":
        ds64 = chunk(b"ds64", struct.pack("<QQQI", real_size, real_size, 0, 0))
    data = values.astype(kind.newbyteorder(order)).tobytes()
    body = b"WAVE" + ds64 + fmt + before + chunk(b"data", data, size, order, pad) + after
    return form + struct.pack(f"{order}I", len(body) if riff_size is None else riff_size) + body


@pytest.mark.parametrize("riff_size", [None, 0, 0xFFFFFFFF, 0x7FFFF024])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
@pytest.mark.parametrize("form", [b"RIFF", b"RIFX"])
def test_a_size_unknown_when_written_is_the_rest_of_the_file(riff_size, size, form):
    information = chunk(b"LIST", b"INFOISFTabc\0")
    sound = decode_wav(
        wav(SAMPLES, size, riff_size, form, before=information if form == b"RIFF" else b"")
    )
    np.testing.assert_array_equal(sound.values[:, 0], SAMPLES)
    assert sound.open_ended


@pytest.mark.parametrize("real_size", [800, 0, 2**64 - 1, 2**63 - 1])
def test_the_size_of_a_large_file_may_be_unknown_too(real_size):
    sound = decode_wav(wav(SAMPLES, 2**32 - 1, 2**32 - 1, b"RF64", real_size=real_size))
    np.testing.assert_array_equal(sound.values[:, 0], SAMPLES)
    assert sound.open_ended == (real_size != 800)


def test_a_frame_that_was_not_finished_is_left_out():
    pairs = np.stack([SAMPLES, -SAMPLES], axis=1)
    sound = decode_wav(wav(pairs, 0xFFFFFFFF)[:-3])
    np.testing.assert_array_equal(sound.values, pairs[:-1])


@pytest.mark.parametrize("pad", [False, True])
def test_chunks_of_odd_size_may_lack_their_padding(pad):
    odd = np.arange(101, dtype=np.uint8)
    comment = chunk(b"LIST", b"INFOISFTabc", pad=pad)
    for encoded in (wav(odd, before=comment, after=comment, pad=pad), wav(odd, riff_size=146)):
        sound = decode_wav(encoded)
        np.testing.assert_array_equal(sound.values[:, 0], odd)
        assert not sound.open_ended


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (wav(SAMPLES)[:-1], "it ends early, after 843 bytes of 844"),
        (wav(SAMPLES, riff_size=0)[:-1], "it ends early, after 843 bytes of 844"),
        (wav(SAMPLES, 2**32 - 1, form=b"RF64", real_size=900), "it ends early, after 880 bytes of"),
        (wav(SAMPLES[:0]), "it holds no samples"),
        (wav(SAMPLES[:0], after=chunk(b"LIST", b"INFO")), "it holds no samples"),
        (wav(SAMPLES[:0], 0xFFFFFFFF, 0xFFFFFFFF), "it holds no samples"),
        (wav(SAMPLES)[:36], "it ends early, after 36 bytes of 844"),
        (wav(SAMPLES, riff_size=0)[:36], "no data chunk"),
        (wav(SAMPLES)[:9], "not a WAV file"),
        (wav(SAMPLES, 2**32 - 1, form=b"RF64", real_size=0)[:12], "ends early|no data chunk"),
    ],
)
def test_what_is_cut_short_or_empty_says_so(encoded, expected):
    with pytest.raises(OSError, match=expected):
        decode_wav(encoded)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("factor", "scale"), [(1 / 32768, 1), (1, 16384), (1.2 / 9000, 2), (2.0**15, 2**29)]
)
def test_floating_point_sounds_have_one_full_scale(dtype, factor, scale):
    values = [(share * factor * SAMPLES).astype(dtype) for share in (1, 0.25)]
    sounds = [decode_wav(wav(each)) for each in values]
    measures = [CODEC.measure(sound) for sound in sounds]
    spec = CODEC.common_spec(measures)
    assert spec.value_range == (-scale, scale)
    told = [line for line in CODEC.describe_changes(measures, spec) if "divided" in line]
    assert len(told) == (scale > 1)
    for sound, each in zip(sounds, values, strict=True):
        found = CODEC.to_array(sound, spec)[: len(each)]
        np.testing.assert_array_equal(found, np.rint(each.astype(float) / scale * 32768))


def test_sounds_of_other_codings_keep_their_scale():
    sounds = [decode_wav(wav(SAMPLES)), decode_wav(wav(SAMPLES.astype(np.float32)))]
    measures = [CODEC.measure(sound) for sound in sounds]
    spec = CODEC.common_spec(measures)
    np.testing.assert_array_equal(CODEC.to_array(sounds[0], spec)[:400], SAMPLES)
    assert (
        "1 of 2 sounds of floating point, up to 9000" in CODEC.describe_changes(measures, spec)[1]
    )


def test_sounds_on_another_scale_are_told_of():
    values = [SAMPLES.astype(np.float32), (SAMPLES / 32768).astype(np.float32)]
    measures = [CODEC.measure(decode_wav(wav(each))) for each in values]
    lines = CODEC.describe_changes(measures, CODEC.common_spec(measures))
    assert "1 of 2 sounds then nearly silent: they may be on another scale than the others" in lines


def test_files_are_read_and_told_of(tmp_path, capsys):
    for number in range(8):
        folder = tmp_path / ("low", "high")[number % 2]
        folder.mkdir(exist_ok=True)
        values = SAMPLES.astype(np.float32) * (number + 1) / 8
        (folder / f"{number}.wav").write_bytes(wav(values, 0xFFFFFFFF, 0xFFFFFFFF))
    data = load(str(tmp_path))
    heard = np.concatenate([data.train.inputs(range(len(data.train)))])
    assert data.info["rate"] >= audio.MIN_HZ and len(np.unique(heard)) > 500
    said = capsys.readouterr().err
    assert "8 of 8 sounds of floating point, up to 9000" in said and "divided by 16384" in said
    assert "8 of 8 sounds without a stated length, read to the end of the file" in said
