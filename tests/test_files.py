"""Files are written atomically and checked when read; errors name the file."""

import errno
from pathlib import Path

import pytest

from fm import files
from fm.errors import UserError
from fm.files import (
    atomic_dir,
    atomic_path,
    atomic_write,
    expand_path,
    oserror_with_filename,
    read_json,
)


def test_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "ä")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["b.txt"]


def test_a_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    with pytest.raises(OSError) as caught, atomic_path(path) as partial:
        partial.write_text("ne")
        with Path("/dev/full").open("w") as full:
            full.write("w")
            full.flush()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_names_the_prepared_data(tmp_path):
    with pytest.raises(OSError) as caught, atomic_dir(tmp_path / "digits"):
        # NumPy's message.
        raise OSError("100 requested and 7 written")
    assert caught.value.filename == str(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_name_it_has(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, oserror_with_filename(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert caught.value.filename == str(tmp_path / "b")


def test_an_unknown_home_folder():
    assert expand_path("~/a") == Path.home() / "a" and str(expand_path("a~")) == "a~"
    with pytest.raises(UserError, match="~no such user/a: no user has this home"):
        expand_path("~no such user/a")


def test_json_is_read_or_raises(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            read_json(path)


VALUE = {"b": [1, 2.5, float("nan")], "a": {"x": None, "y": "ä"}, "c": 0.1 + 0.2}


def test_checked_json_round_trip(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_checked_json(path, VALUE)
    assert repr(files.read_checked_json(path)) == repr(VALUE)
    files.write_checked_json(path, {2: "two", 10: "ten"})
    assert files.read_checked_json(path) == {"2": "two", "10": "ten"}


def test_any_changed_byte_of_checked_json_is_detected(tmp_path):
    path = tmp_path / "a.json"
    files.write_checked_json(path, VALUE)
    whole = path.read_bytes()
    unseen = []
    for n in range(len(whole)):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :])
        try:
            unseen.append((n, repr(files.read_checked_json(path))))
        except UserError as error:
            assert "is damaged; delete it, and it is made again" in str(error)
    # Changing the last digit of 0.30000000000000004 does not change the float.
    assert unseen == [(whole.index(b"04}") + 1, repr(VALUE))]
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            files.read_checked_json(path)
