"""What is kept comes back, and a byte of it that changed is seen."""

import pytest

from fm import files
from fm.errors import UserError

VALUE = {"b": [1, 2.5, float("nan")], "a": {"x": None, "y": "ä"}, "c": 0.1 + 0.2}


def test_comes_back(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_checked_json(path, VALUE)
    assert repr(files.read_checked_json(path)) == repr(VALUE)
    files.write_checked_json(path, {2: "two", 10: "ten"})
    assert files.read_checked_json(path) == {"2": "two", "10": "ten"}


def test_any_byte_that_changes_is_seen(tmp_path):
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
    # The last digit of 0.30000000000000004 is none of the number's.
    assert unseen == [(whole.index(b"04}") + 1, repr(VALUE))]
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            files.read_checked_json(path)
