"""A lock admits one process per folder, and ends with its process."""

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fm import lock
from fm.errors import UserError

ROOT = Path(__file__).parents[1]
HOLDER = """
import pathlib, sys, time
from fm import lock
lock.acquire(pathlib.Path(sys.argv[1]), *sys.argv[2:])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _released():
    yield
    lock.release()


@pytest.fixture
def holder(tmp_path, request):
    """Another process that holds the lock of the folder, or another lock file in it."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), *getattr(request, "param", ())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_another_process_is_refused_and_named(tmp_path, holder):
    with pytest.raises(UserError) as caught:
        lock.acquire(tmp_path)
    message = str(caught.value)
    assert f"process {holder.pid} on {socket.gethostname()}" in message
    assert str(tmp_path) in message and "\n" not in message


def test_killed_locks_nobody_out(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    lock.acquire(tmp_path)
    assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_held_twice_and_released(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lock.acquire(tmp_path)


def test_a_folder_made_anew_is_held_anew(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock.acquire(folder)
    (folder / ".lock").unlink()
    lock.acquire(folder)
    assert (folder / ".lock").exists()


@pytest.mark.parametrize("holder", [["a.lock"]], indirect=True)
def test_names_are_held_apart(tmp_path, holder):
    lock.acquire(tmp_path, "b.lock")
    lock.acquire(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
        lock.acquire(tmp_path, "a.lock")


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        lock.acquire(tmp_path / "none")


def test_where_nothing_locks_a_line_says_so(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    lock.acquire(tmp_path)
    monkeypatch.setattr(lock, "fcntl", None)
    lock.acquire(tmp_path)
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot be locked (No locks available)" in first
    assert "no flock" in second


@pytest.mark.parametrize("holder", [[".ledger"]], indirect=True)
def test_a_lock_held_for_a_moment_is_waited_for(tmp_path, holder):
    with pytest.raises(UserError, match="is in use by"), lock.held(tmp_path, ".ledger", seconds=0):
        pass
    threading.Timer(0.2, holder.kill).start()
    with lock.held(tmp_path, ".ledger", seconds=30):
        pass
    lock.acquire(tmp_path)
    with lock.held(tmp_path, ".ledger"):
        pass
    assert (tmp_path / ".lock").exists()  # the folder's own lock stays
    assert not (tmp_path / ".ledger").exists()
