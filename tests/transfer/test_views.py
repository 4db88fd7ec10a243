import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fm.adaptation import batching
from tests.transfer.problems import text


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    most=st.integers(0, 30),
)
def test_views_hold_every_piece_once_and_span_the_row(lengths, most):
    rows = text([list(range(1, n + 1)) for n in lengths], 23)
    pieces, of = batching.strided_chunks(rows, most)
    assert np.all(np.diff(of) >= 0) and set(of) == set(range(len(lengths)))
    assert all(len(value) == len(of) for value in pieces.values())
    if most:
        assert pieces["segments"].shape[1] == min(most, 23)
    for n, length in enumerate(lengths):
        mine = [pieces["tokens"][m][pieces["segments"][m] > 0] for m in np.flatnonzero(of == n)]
        assert sorted(np.concatenate(mine)) == list(range(1, length + 1))
        for view in mine:
            assert len(set(np.diff(view))) <= 1
        filled = [len(view) for view in mine]
        assert max(filled) - min(filled) <= 1


def test_no_views_of_short_rows():
    rows = text([[1, 2, 3], [4]], 3)
    pieces, of = batching.strided_chunks(rows, 3)
    assert pieces is rows and of.tolist() == [0, 1]


def test_the_mean_is_over_the_pieces_of_all_views():
    rows = text([[1, 2, 3, 4, 5], [6, 7], []], 5)
    pieces, of = batching.strided_chunks(rows, 2)
    sums = np.sum(pieces["tokens"] * (pieces["segments"] > 0), axis=1)
    found = batching.mean_over_chunks(np.stack([sums, 2.0 * sums], axis=1), pieces, of)
    assert found.tolist() == [[3.0, 6.0], [6.5, 13.0], [0.0, 0.0]]
