import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.data.packing import PackedRowSource, pack


@given(st.lists(st.integers(1, 16), max_size=60))
def test_every_piece_is_in_exactly_one_row_that_holds_it(lengths):
    rows = pack(lengths, 16)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    filled = [sum(lengths[piece] for piece in row) for row in rows]
    assert all(1 <= total <= 16 for total in filled)
    # No two rows could be one: any new row was opened because no other had the room.
    assert sum(total <= 8 for total in filled) <= 1


def test_small_pieces_fill_the_room_left():
    assert pack([3, 10, 7, 6, 4], 10) == [[1], [2, 0], [3, 4]]


@pytest.mark.parametrize("length", [0, 17])
def test_pieces_that_fit_no_row_are_refused(length):
    with pytest.raises(ValueError, match=f"sequence 1 has {length} tokens"):
        pack([4, length], 16)


def test_rows():
    rows = PackedRowSource([np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)], 6)
    assert len(rows) == 1
    row = rows[0]
    assert row["tokens"].tolist() == [5, 6, 7, 8, 9, 0]
    assert row["segments"].tolist() == [1, 1, 1, 2, 2, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 1, 0]
    assert {array.dtype for array in row.values()} == {np.dtype(np.int32)}
