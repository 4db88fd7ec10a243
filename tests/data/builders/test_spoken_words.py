import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fm.data.builders import espeak, spoken_words
from fm.data.load import load
from fm.data.readers import archives
from fm.errors import UserError
from fm.files import cache_dir
from tests.data.conftest import fetched


@pytest.fixture(scope="module")
def package(session_cache, tmp_path_factory):
    """The unpacked wheel; skips the test when it cannot be had."""
    folder = tmp_path_factory.mktemp("espeak")
    archives.unzip(fetched(spoken_words.WHEEL, session_cache), folder)
    return folder / "espeakng_loader"


def say(package, *words):
    return spoken_words.speak(package, [(word, "en-us+f2", 50, 150) for word in words])


def test_words_are_spoken(package):
    sounds = say(package, "seven", "go", "seven")
    assert {sound.rate for sound in sounds} == {22050}
    assert all(0.2 < len(sound.values) / sound.rate < 1 for sound in sounds)
    assert all(np.abs(sound.values).max() > 2000 for sound in sounds)
    time.sleep(1.1)  # Left to itself, the library seeds its noise with the second of the day.
    again = say(package, "seven", "go", "seven")
    assert all((a.values == b.values).all() for a, b in zip(sounds, again, strict=True))
    assert say(package) == []


def test_a_failure_is_one_line(package, tmp_path):
    with pytest.raises(UserError, match="no speech for 'go' by 'nobody'") as raised:
        spoken_words.speak(package, [("go", "nobody", 50, 150)])
    assert "\n" not in str(raised.value)
    (tmp_path / "libespeak-ng.so").write_bytes(b"not a library")
    with pytest.raises(UserError, match="cannot be made: the library cannot be loaded"):
        say(tmp_path, "go")


def test_a_crash_is_one_line(package, tmp_path, monkeypatch):
    crashing = tmp_path / "espeak.py"
    crashing.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(espeak, "__file__", str(crashing))
    with pytest.raises(UserError, match="cannot be made: it ended with -11"):
        say(package, "go")


def test_the_speaker_imports_nothing_of_ours():
    code = f"import runpy, sys; runpy.run_path({espeak.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    assert not {b"fm", b"numpy"} & set(done.stdout.split())


def test_every_voice_says_every_word(package, tmp_path):
    voices = tmp_path / "voices"
    voices.mkdir()
    for name in ("ann", "whisperf", "bob"):
        (voices / name).write_text("")
    utterances = spoken_words._utterances(voices)
    assert utterances == spoken_words._utterances(voices)
    said = [(text, voice.split("+")[1]) for text, voice, _, _ in utterances]
    assert sorted(said) == sorted(
        (word, voice) for word in spoken_words.WORDS for voice in ("ann", "bob") for _ in range(2)
    )
    assert len({voice for _, voice, _, _ in utterances}) > 8


@pytest.mark.slow
@pytest.mark.usefixtures("package")
def test_spoken_words():
    dataset = load("spoken_words")
    assert (len(dataset.train), len(dataset.test)) == (2272, 576)
    assert dataset.modality == "audio" and dataset.classes == spoken_words.WORDS
    assert (dataset.info["shape"], dataset.info["rate"]) == ([6400], 8000)
    assert dataset.info["split"] == "by voice" and "GPL-3" in dataset.info["licence"]
    assert set(dataset.info["counts"]["test_by_class"].values()) == {36}
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    sounds = dataset.test.sounds(range(576))
    assert sounds.shape == (576, 6400) and (np.abs(sounds).max(1) > 2000).all()
    voices = [{row["voice"] for row in rows_of(dataset, split)} for split in ("train", "test")]
    assert (len(voices[0]), len(voices[1])) == (71, 18) and not voices[0] & voices[1]


def rows_of(dataset, split):
    folder = cache_dir() / "tfds" / "spoken_words" / dataset.info["version"]
    return tfds.builder_from_directory(folder).as_data_source(split)
