"""Damaged data files: read, or refused with a line that names the file."""

import io
import json
import pathlib
import tarfile
import tempfile
import wave
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fm.data.load import load
from tests.fuzz import helpers_guard as guard
from tests.fuzz import helpers_junk as junk
from tests.study.helpers_study import texts


def labelled(count=60):
    inputs, labels = texts(count, 0)
    return list(zip(inputs, ("bad" if label else "good" for label in labels), strict=True))


def csv():
    return "".join(
        f'"{text}, ""so""",{label}\n' for text, label in [("text", "label"), *labelled()]
    )


def jsonl():
    rows = ({"text": text, "label": label, "n": 2**70} for text, label in labelled())
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def conll():
    sentence = "In O\nParis B-place\nRoma I-place\n. O\n\n"
    return "".join(sentence.replace("In", f"In{n}") for n in range(40))


def png(n):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 9 * n % 251, np.uint8)).save(file, "PNG")
    return file.getvalue()


def wav(n):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        wavelength = np.arange(2400) * (n + 3) / 40
        sound.writeframes((9000 * np.sin(wavelength)).astype("<i2").tobytes())
    return file.getvalue()


def gif(n):
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((8, 8), (9 * n + 20 * k) % 251, np.uint8)) for k in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


TEXTS = {
    "data.csv": csv,
    "data.jsonl": jsonl,
    "data.txt": lambda: "\n".join(text for text, _ in labelled()),
    "data.conll": conll,
}
FOLDERS = {"png": png, "wav": wav, "gif": gif}


def check(path, folder):
    """Runs pretrain (no labels) and adapt (labels); a refusal names the file or its folder."""
    for name, more in (("pretrain", []), ("adapt", ["--labels=20"])):
        out = pathlib.Path(folder, f"out-{name}")
        done = guard.run(name, [f"--dataset={path}", f"--out={out}", *more], out)
        if done.code == 2:
            assert path.name in done.error or "labels" in done.error, done.error


def damage(name, whole):
    """Runs `check` on damaged files of this name."""

    @guard.cases
    @given(junk.damaged(whole))
    def test(content):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, name)
            path.write_bytes(content)
            check(path, folder)

    test()


@pytest.mark.parametrize("name", TEXTS)
def test_a_damaged_file(name):
    damage(name, TEXTS[name]().encode())


def packed(path):
    """Writes an archive of image folders, one per class, and returns its bytes."""
    files = {f"{label}/{n}.png": png(n + 12 * k) for k, label in enumerate("ab") for n in range(9)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in files.items():
                opened.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as opened:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["data.zip", "data.tar", "data.tar.gz"])
def test_a_damaged_archive(name, tmp_path):
    damage(name, packed(tmp_path / name))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The files of a data set prepared by TFDS."""
    path = tmp_path_factory.mktemp("plain") / "data.csv"
    path.write_text(
        "".join(f"{text},{label}\n" for text, label in [("text", "label"), *labelled()])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FM_CACHE", str(path.parent))
        load(str(path))
    (folder,) = path.parent.glob("files/*/plain_files/*")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_damaged_prepared_folder(prepared):
    @guard.cases
    @given(st.sampled_from(sorted(prepared)), st.data())
    def test(name, data):
        content = data.draw(junk.damaged(prepared[name]))
        if name.endswith(".json") and data.draw(st.booleans()):
            content = json.dumps(data.draw(junk.altered(json.loads(prepared[name])))).encode()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "prepared")
            path.mkdir()
            for each, whole in prepared.items():
                (path / each).write_bytes(content if each == name else whole)
            check(path, folder)

    test()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_with_a_damaged_file(kind):
    make = FOLDERS[kind]

    @guard.cases
    @given(junk.damaged(make(0)), st.sampled_from([f"0.{kind}", f"new.{kind}", "0.txt", "0"]))
    def test(content, name):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "classes")
            for label in ("left", "right"):
                (path / label).mkdir(parents=True)
                for n in range(12):
                    (path / label / f"{n}.{kind}").write_bytes(make(n + 12 * (label == "left")))
            (path / "left" / name).write_bytes(content)
            check(path, folder)

    test()
