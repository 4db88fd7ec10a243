import hashlib
import subprocess

import pytest

from fm.data.readers import wheels
from fm.errors import UserError
from fm.files import atomic_dir

CONTENT = b"not really a wheel"
WHEEL = wheels.WheelSpec("some-project", "1.0", hashlib.sha256(CONTENT).hexdigest())


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
    path = wheels.fetch_wheel(WHEEL)
    assert path.read_bytes() == CONTENT and empty_cache in path.parents
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])
    assert commands[1].strip() == f"some-project==1.0 --hash=sha256:{WHEEL.sha256}"
    wheels.fetch_wheel(WHEEL)
    assert len(commands) == 2


def test_a_wheel_for_each_platform_is_pinned_to_all_their_hashes(empty_cache, monkeypatch):
    commands = fake_pip(monkeypatch)
    wheel = wheels.WheelSpec("some-project", "1.0", ("0" * 64, WHEEL.sha256))
    path = wheels.fetch_wheel(wheel)
    assert path.read_bytes() == CONTENT and path.name != WHEEL.file_name
    hashes = f"--hash=sha256:{'0' * 64} --hash=sha256:{WHEEL.sha256}"
    assert commands[1].strip() == f"some-project==1.0 {hashes}"


def test_a_corrupt_cached_file_is_refused(empty_cache, monkeypatch):
    fake_pip(monkeypatch)
    path = wheels.fetch_wheel(WHEEL)
    path.write_bytes(CONTENT + b"!")
    found = hashlib.sha256(CONTENT + b"!").hexdigest()
    with pytest.raises(UserError) as raised:
        wheels.fetch_wheel(WHEEL)
    message = str(raised.value)
    assert all(part in message for part in (str(path), found, WHEEL.sha256, "delete it"))
    assert "\n" not in message


def test_a_wrong_download_is_refused_even_if_pip_takes_it(empty_cache, monkeypatch):
    fake_pip(monkeypatch, content=b"something else")
    with pytest.raises(UserError, match=r"corrupt.*not kept") as raised:
        wheels.fetch_wheel(WHEEL)
    assert "\n" not in str(raised.value)
    assert list((empty_cache / "wheels").iterdir()) == []


def test_no_network_is_one_line(empty_cache, monkeypatch):
    fake_pip(monkeypatch, returncode=1, stderr="WARNING: retrying\nERROR: no such host\nmore")
    with pytest.raises(UserError, match=r"cannot fetch some-project==1\.0.*no such host") as raised:
        wheels.fetch_wheel(WHEEL)
    assert "\n" not in str(raised.value)
    assert list((empty_cache / "wheels").iterdir()) == []


def test_pip_is_told_whence_alone(empty_cache, monkeypatch):
    told = {}
    fake_pip(monkeypatch)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, env, **b: told.update(env) or run(*a, **b))
    for name in ("PIP_INDEX_URL", "PIP_REQUIREMENT", "PIP_NO_BINARY", "PIP_PYTHON", "pip_editable"):
        monkeypatch.setenv(name, "x")
    wheels.fetch_wheel(WHEEL)
    assert "PATH" in told and "PIP_INDEX_URL" in told
    assert not {"PIP_REQUIREMENT", "PIP_NO_BINARY", "PIP_PYTHON", "pip_editable"} & told.keys()


def test_no_folder_one_is_in_stands_for_pip(empty_cache, monkeypatch, tmp_path):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("")
    (tmp_path / "pip" / "__main__.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="cannot fetch some-project"):
        wheels.fetch_wheel(WHEEL)
    assert not (tmp_path / "ran").exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt), atomic_dir(target) as scratch:
        (scratch / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_dir(target) as first, atomic_dir(target) as second:
        (first / "data").write_text("first")
        (second / "data").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "data").read_text() == "second"
