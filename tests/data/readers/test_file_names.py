"""Folders and archives of WAV files become data sets."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from fm.data.load import load
from fm.data.media import audio
from fm.data.readers import archives
from fm.data.splitting import split_by_group
from fm.errors import UserError
from tests.data.conftest import SHARED

RNG = np.random.default_rng(0)
FIELDS = {"label_field": 0, "speaker_field": 1}


def record(path, samples=800, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(-9000, 9000, samples).astype(np.int16)
    path.write_bytes(audio.encode_wav(values, rate))
    return values


def digits(folder):
    for word in (7, 8):
        for speaker in ("ann", "bob", "cy"):
            for take in range(2):
                record(folder / f"{word}_{speaker}_{take}.wav")


def packed(folder, name):
    """An archive `name` beside a folder, with all its files."""
    path = folder.parent / name
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as opened:
            for file in files:
                opened.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w:gz") as opened:
            opened.add(folder, folder.name)
    return path


def contents(dataset):
    return {
        (sound.tobytes(), int(label))
        for split in (dataset.train, dataset.test)
        for sound, label in zip(split.sounds(range(len(split))), split.labels, strict=True)
    }


def test_sounds_by_class(tmp_path, capsys):
    written = [record(tmp_path / name / f"{n}.wav") for name in ("no", "yes") for n in range(6)]
    dataset = load(str(tmp_path))
    assert dataset.modality == "audio" and dataset.classes == ("no", "yes")
    assert dataset.info["shape"] == [800] and dataset.info["rate"] == 8000
    assert dataset.info["split"] == "by hash"
    assert contents(dataset) == {(each.tobytes(), n // 6) for n, each in enumerate(written)}
    assert " sounds " not in capsys.readouterr().err
    with pytest.raises(AssertionError, match="not images"):
        dataset.train.images([0])


def test_what_is_changed_is_said_once(tmp_path, capsys):
    for n in range(19):
        record(tmp_path / f"{n}.wav")
    record(tmp_path / "fast.wav", samples=1764, rate=44100)
    dataset = load(str(tmp_path))
    assert dataset.info["shape"] == [800] and dataset.train.labels is None
    said = capsys.readouterr().err
    assert said.count("1 of 20 sounds resampled from 44100 Hz to 8000 Hz") == 1


@pytest.mark.parametrize("name", ["folder", "all.tar.gz", "all.zip"])
def test_names_say_label_and_speaker(tmp_path, capsys, name):
    digits(tmp_path / "digits" / "recordings")
    (tmp_path / "digits" / "README.md").write_text("read me")
    path = tmp_path / "digits" if name == "folder" else packed(tmp_path / "digits", name)
    dataset = load(str(path), **FIELDS)
    assert dataset.modality == "audio" and dataset.classes == ("7", "8")
    assert dataset.info["split"] == "by speaker"
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert "1 files of other kinds were left out" in capsys.readouterr().err
    train, test = split_by_group(["ann"] * 4 + ["bob"] * 4 + ["cy"] * 4, 0.2)
    assert (len(train), len(test)) == (8, 4)


def test_a_speaker_in_a_folder_by_class(tmp_path):
    for name in ("no", "yes"):
        for n in range(6):
            record(tmp_path / name / f"{'ab'[n % 2]}_{n}.wav")
    dataset = load(str(tmp_path), speaker_field=0)
    assert dataset.classes == ("no", "yes") and len(dataset.train) == len(dataset.test) == 6


def test_groups_stay_whole_whatever_the_order():
    groups = [f"speaker {n % 7}" for n in range(70)]
    train, test = split_by_group(groups, 0.2)
    assert len(test) == 20
    assert not {groups[n] for n in train} & {groups[n] for n in test}
    backward = split_by_group(groups[::-1], 0.2)[1]
    assert {groups[::-1][n] for n in backward} == {groups[n] for n in test}
    assert len(split_by_group(["a", "a", "b"], 0.99)[0]) > 0


def _short(folder):
    digits(folder)
    (folder / "bad_one.wav").write_bytes(audio.encode_wav(np.ones(99, np.int16), 8000)[:-7])


def _empty(folder):
    digits(folder)
    (folder / "bad_one.wav").write_bytes(b"")


def _unnamed(folder):
    digits(folder)
    record(folder / "seven.wav")


def _alone(folder):
    for n in range(4):
        record(folder / f"{n % 2}_ann_{n}.wav")


def _none(folder):
    (folder / "notes.txt").write_text("x")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_short, r"bad_one\.wav is a broken sound: it ends early, after \d+ bytes"),
        (_empty, r"bad_one\.wav is a broken sound: not a WAV file"),
        (_unnamed, r"seven\.wav: no field 1 in the name.* 0='seven'"),
        (_alone, "'ann' is the only speaker; at least two"),
        (_none, r"holds no file ending in .*\.wav"),
    ],
)
@pytest.mark.parametrize("archived", [False, True])
def test_errors_name_the_file_and_its_place(tmp_path, make, expected, archived):
    folder = tmp_path / "sounds" / "deep"
    folder.mkdir(parents=True)
    make(folder)
    path = packed(folder, "all.tar.gz") if archived else folder
    with pytest.raises(UserError, match=expected) as raised:
        load(str(path), **FIELDS)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(path))


def _outside(opened):
    member = tarfile.TarInfo("../outside.wav")
    opened.addfile(member, io.BytesIO())


def _link(opened):
    member = tarfile.TarInfo("a_link.wav")
    member.type, member.linkname = tarfile.SYMTYPE, os.fspath("/etc/hostname")
    opened.addfile(member)


def test_unpacking_lets_nothing_out(tmp_path):
    for number, (add, expected) in enumerate(
        [(_outside, "a path leading outside"), (_link, "'a_link.wav' is neither a file nor")]
    ):
        path = tmp_path / f"{number}.tar.gz"
        with tarfile.open(path, "w:gz") as opened:
            good = tarfile.TarInfo("good.wav")
            opened.addfile(good, io.BytesIO())
            add(opened)
        with pytest.raises(UserError, match=expected), archives.unpacked_archive(path):
            pass
    assert not (tmp_path.parent / "outside.wav").exists()


@pytest.mark.parametrize("name", ["bad.tar.gz", "bad.zip"])
def test_an_unreadable_archive_is_one_line(tmp_path, name):
    digits(tmp_path / "digits")
    path = packed(tmp_path / "digits", name)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"bad\.\S+ is not a readable (tar|zip) file") as raised:
        load(str(path), **FIELDS)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_recorded_digits():
    path = SHARED / "data" / "fsdd-v1.0.9.tar.gz"
    if not path.exists():
        pytest.skip("no recordings beside the repository")
    dataset = load(str(path), **FIELDS)
    assert dataset.classes == tuple("0123456789") and dataset.info["rate"] == 8000
    assert (len(dataset.train), len(dataset.test)) == (2000, 500)
    counts = dataset.info["counts"]["test_by_class"]
    assert set(counts.values()) == {50}
