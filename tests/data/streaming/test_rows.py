"""Rows on disk are those in memory, read at random."""

import numpy as np
import pytest

from fm.data.packing import PackedRowSource
from fm.data.streaming import rows
from fm.data.streaming.rows import RowWriter, StoredRowSource, token_dtype
from fm.errors import UserError

RNG = np.random.default_rng(0)


def chunks(count, capacity=32, vocab_size=500):
    return [RNG.integers(0, vocab_size, n) for n in RNG.integers(1, capacity + 1, count)]


def write(path, own, capacity=32, vocab_size=500, share_rows=True):
    writer = RowWriter(path, capacity, token_dtype(vocab_size))
    writer.write(own, share_rows=share_rows)
    writer.close()
    return writer


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].dtype == np.int32
        np.testing.assert_array_equal(found[key], expected[key])


@pytest.mark.parametrize("share_rows", [True, False])
@pytest.mark.parametrize(("capacity", "vocab_size"), [(32, 500), (32, 2**17), (5000, 500)])
def test_rows_equal_those_packed_in_memory(tmp_path, share_rows, capacity, vocab_size):
    own = chunks(70, capacity, vocab_size)
    writer = write(tmp_path / "a", own, capacity, vocab_size, share_rows)
    expected = PackedRowSource(own, capacity, share_rows=share_rows)
    expected.with_length = with_length = writer.single
    assert writer.single == expected.single and writer.num_rows == len(expected)
    found = StoredRowSource(
        [tmp_path / "a"],
        [writer.num_rows],
        capacity,
        token_dtype(vocab_size),
        with_length=with_length,
    )
    assert len(found) == len(expected)
    for index in RNG.permutation(len(found)):
        assert_equal(found[int(index)], expected[int(index)])


def test_rows_are_numbered_through_the_files_of_which_few_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MAX_OPEN", 2)
    counts, expected = [], []
    for n in range(5):
        own = chunks(10 + 40 * n)
        counts.append(write(tmp_path / str(n), own).num_rows)
        expected += list(PackedRowSource(own, 32))
    found = StoredRowSource([tmp_path / str(n) for n in range(5)], counts, 32, token_dtype(500))
    assert len(found) == len(expected) > 5
    for index in RNG.permutation(len(found)):
        assert_equal(found[int(index)], expected[int(index)])


def test_a_file_that_is_damaged_or_gone_is_told(tmp_path):
    count = write(tmp_path / "a", chunks(9)).num_rows
    with pytest.raises(FileNotFoundError):
        StoredRowSource([tmp_path / "b"], [count], 32, token_dtype(500))[0]
    (tmp_path / "a").write_bytes(b"noise" * 50)
    with pytest.raises(UserError, match="a is damaged"):
        StoredRowSource([tmp_path / "a"], [count], 32, token_dtype(500))[0]
