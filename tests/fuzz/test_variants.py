"""Whole files as other programs write them: read as they were meant, or refused in one line."""

import csv
import json
import pathlib
import struct
import tempfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fm.data.load import load
from fm.errors import UserError
from tests.fuzz import helpers_guard as guard

WORDS = ("café", "naïve", "Übung", "rock", "sea", "film", "tea", "sky")
LABELS = ("good", "bad")
# Encodings by the text that they can write.
ENCODINGS = {
    "utf-8": WORDS,
    "utf-8-sig": WORDS,
    "utf-16": WORDS,
    "cp1252": WORDS,
    "shift_jis": ("映画", "とても", "良い", "悪い", "音楽"),
    "gb18030": ("电影", "非常", "好看", "不好", "音乐"),
    "koi8-r": ("фильм", "очень", "хороший", "плохой", "музыка"),
}


def rows(words, count=36):
    """(text, label) with every text another."""
    return [
        (f"{words[n % len(words)]} {n} {words[n * 7 % len(words)]}", LABELS[n % 2])
        for n in range(count)
    ]


def examples(data):
    """Every example with the name of its label, of both splits, as a set."""
    found = set()
    for split in (data.train, data.test):
        inputs = split.inputs(range(len(split)))
        names = [data.classes[label] for label in split.labels]
        found |= set(zip(map(as_key, inputs), names, strict=True))
    return found


def as_key(example):
    return example if isinstance(example, str) else example.tobytes()


def read_or_refused(folder, write, **options):
    """What `load` returns of the path that `write` returns; None if it refuses in one line."""
    path = write(pathlib.Path(folder))
    try:
        return load(str(path), **options)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error), error
        return None


@guard.cases
@given(encoding=st.sampled_from(sorted(ENCODINGS)), kind=st.sampled_from(["csv", "jsonl", "tsv"]))
def test_encodings(encoding, kind):
    expected = rows(ENCODINGS[encoding])

    def write(folder):
        path = folder / f"reviews.{kind}"
        if kind == "jsonl":
            lines = [
                json.dumps(dict(zip(("text", "label"), row, strict=True)), ensure_ascii=False)
                for row in expected
            ]
        else:
            lines = ["\t,"[kind == "csv"].join(row) for row in [("text", "label"), *expected]]
        path.write_bytes("\n".join(lines).encode(encoding))
        return path

    with tempfile.TemporaryDirectory() as folder:
        told = read_or_refused(folder, write, encoding=encoding)
        assert told is not None and examples(told) == set(expected)
    with tempfile.TemporaryDirectory() as folder:
        guessed = read_or_refused(folder, write)
        assert guessed is None or examples(guessed) == set(expected)
        assert guessed is not None or not encoding.startswith("utf-8")


@st.composite
def dialects(draw):
    return {
        "delimiter": draw(st.sampled_from([",", ";", "\t", "|"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
    }


@guard.cases
@given(dialects(), st.permutations(["text", "label", "id"]), st.sampled_from(["", "\ufeff"]))
def test_csv_dialects(dialect, order, mark):
    expected = [
        (f'{text}\nsays "{n}", or; a|b', label) for n, (text, label) in enumerate(rows(WORDS))
    ]

    def write(folder):
        path = folder / "reviews.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(mark)
            writer = csv.DictWriter(file, order, **dialect)
            writer.writeheader()
            writer.writerows(
                {"text": text, "label": label, "id": n} for n, (text, label) in enumerate(expected)
            )
        return path

    with tempfile.TemporaryDirectory() as folder:
        data = read_or_refused(folder, write)
        assert data is None or examples(data) == set(expected)
        assert data is not None or dialect["delimiter"] != ","


@st.composite
def sound_formats(draw):
    """How a WAV file holds its numbers, and what surrounds them."""
    number = draw(st.sampled_from(["<i2", "<i4", "i3", "u1", "<f4", "<f8"]))
    return {
        "number": number,
        "channels": draw(st.integers(1, 2)),
        "size": draw(st.sampled_from(["right", "unknown", "zero"])),
        "extensible": draw(st.booleans()),
        "chunk_before": draw(st.booleans()),
    }


def wav(samples, number, channels, size, extensible, chunk_before):
    """The bytes of a WAV file of `samples` in -1..1."""
    is_float = number.startswith("<f")
    bits = 8 if number == "u1" else 24 if number == "i3" else 8 * np.dtype(number).itemsize
    frames = np.repeat(samples[:, None], channels, 1)
    if is_float:
        body = frames.astype(number).tobytes()
    elif number == "u1":
        body = np.round(frames * 127 + 128).astype("u1").tobytes()
    elif number == "i3":
        whole = np.round(frames * (2**23 - 1)).astype("<i4")
        body = whole.view("u1").reshape(-1, 4)[:, :3].tobytes()
    else:
        body = np.round(frames * (2.0 ** (bits - 1) - 1)).astype(number).tobytes()
    align, code = channels * bits // 8, 3 if is_float else 1
    kind = struct.pack("<HIIHH", channels, 8000, 8000 * align, align, bits)
    if extensible:
        tail = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
        kind = struct.pack("<H", 0xFFFE) + kind + struct.pack("<HHIH", 22, bits, 0, code) + tail
    else:
        kind = struct.pack("<H", code) + kind
    before = b"LIST" + struct.pack("<I", 5) + b"INFO!\0" if chunk_before else b""
    stated = {"right": len(body), "unknown": 0xFFFFFFFF, "zero": 0}[size]
    inner = b"WAVE" + before + b"fmt " + struct.pack("<I", len(kind)) + kind
    inner += b"data" + struct.pack("<I", stated) + body
    whole = len(inner) if size == "right" else stated
    return b"RIFF" + struct.pack("<I", whole) + inner


@guard.cases
@given(sound_formats())
def test_wav_variants(kind):
    time = np.arange(1600) / 8000
    tones = [0.8 * np.sin(2 * np.pi * (200 + 25 * n) * time) for n in range(24)]

    def write(folder):
        for n, tone in enumerate(tones):
            path = folder / "sounds" / LABELS[n % 2] / f"{n}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav(tone, **kind))
        return folder / "sounds"

    with tempfile.TemporaryDirectory() as folder:
        data = read_or_refused(folder, write)
        assert data is not None or kind["size"] != "right"
        if data is None:
            return
        assert data.modality == "audio" and len(examples(data)) == len(tones)
        # A sound is as any 16-bit file of it is.
        plain = dict(number="<i2", channels=1, size="right", extensible=False, chunk_before=False)
    with tempfile.TemporaryDirectory() as folder:
        kind.update(plain)
        usual = read_or_refused(folder, write)
    for split, same in ((data.train, usual.train), (data.test, usual.test)):
        assert split.inputs(range(1)).shape[1:] == same.inputs(range(1)).shape[1:]
    means = [np.sort(by_example(each)) for each in (data, usual)]
    np.testing.assert_allclose(*means, atol=1.5)


def by_example(data):
    """The mean of every example, of both splits."""
    splits = (data.train, data.test)
    return np.concatenate(
        [split.inputs(range(len(split))).reshape(len(split), -1).mean(1) for split in splits]
    )


IMAGE_MODES = {
    "1": ("png", "bmp", "tiff"),
    "L": ("png", "bmp", "tiff", "webp", "gif"),
    "LA": ("png",),
    "P": ("png", "gif"),
    "RGB": ("png", "webp", "tiff", "bmp", "ppm"),
    "RGBA": ("png", "webp", "tiff"),
    "CMYK": ("tiff",),
    "I;16": ("png", "tiff"),
}


@guard.cases
@given(
    st.sampled_from([(mode, end) for mode, ends in IMAGE_MODES.items() for end in ends]),
    st.booleans(),
)
def test_image_modes(kind, only_alpha):
    """Black bars on white, at a place of their own each, stay apart and dark on light."""
    mode, ending = kind
    only_alpha = only_alpha and mode in ("LA", "RGBA")

    def write(folder):
        for n in range(24):
            pixels = np.full((16, 16), 255, np.uint8)
            pixels[n % 12 : n % 12 + 4, 4 * (n // 12) + 2 : 4 * (n // 12) + 6] = 0
            picture = Image.fromarray(pixels)
            if only_alpha:
                picture = Image.new(mode, (16, 16))
                picture.putalpha(Image.fromarray(255 - pixels))
            elif mode == "I;16":
                picture = Image.fromarray(pixels.astype(np.uint16) * 257)
            else:
                picture = picture.convert("RGB").convert(mode)
            path = folder / "pictures" / LABELS[n % 2] / f"{n}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, **({"lossless": True} if ending == "webp" else {}))
        return folder / "pictures"

    with tempfile.TemporaryDirectory() as folder:
        data = read_or_refused(folder, write)
    assert data is not None and data.modality == "image"
    assert len({key for key, _ in examples(data)}) == 24
    assert data.train.inputs(range(len(data.train))).mean() > 180


SCHEMES = ("IOB1", "IOB2", "BIOES", "BILOU")


def tagged(spans, scheme):
    """Tags of a sentence of six words with entities at `spans`, in a scheme."""
    tags = ["O"] * 6
    for start, end in spans:
        for place in range(start, end):
            first, last = place == start, place == end - 1
            if scheme == "IOB1":  # B- only where an entity follows another of its kind
                follows = first and start > 0 and tags[start - 1] != "O"
                mark = "B" if follows else "I"
            elif scheme == "IOB2":
                mark = "B" if first else "I"
            else:
                single, ending = ("S", "E") if scheme == "BIOES" else ("U", "L")
                mark = single if first and last else "B" if first else ending if last else "I"
            tags[place] = f"{mark}-place"
    return tags


@guard.cases
@given(
    st.sampled_from(SCHEMES),
    st.sampled_from(["\t", " "]),
    st.integers(0, 2),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_conll_schemes(scheme, separator, middle, newline, document_marks):
    sentences = []
    for n in range(40):
        words = [f"w{n}x{place}" for place in range(6)]
        spans = [(n % 3, n % 3 + 1 + n % 2), (4, 5 + n % 2)]
        sentences.append((words, spans))

    def write(folder):
        lines = []
        for n, (words, spans) in enumerate(sentences):
            if document_marks and n % 10 == 0:
                lines += [separator.join(["-DOCSTART-", *["-X-"] * middle, "O"]), ""]
            for word, tag in zip(words, tagged(spans, scheme), strict=True):
                lines.append(separator.join([word, *["NN"] * middle, tag]))
            lines.append("")
        (folder / "places.conll").write_text(newline.join(lines), newline="")
        return folder / "places.conll"

    with tempfile.TemporaryDirectory() as folder:
        data = read_or_refused(folder, write)
    assert data is not None
    found, expected = {}, {tuple(words): tagged(spans, "IOB2") for words, spans in sentences}
    for split in (data.train, data.test):
        columns = (split.columns[name](split.source_idx) for name in ("words", "tags"))
        for words, tags in zip(*columns, strict=True):
            found[tuple(words)] = tags
    assert found == expected
