"""Masks against matrices written by hand; row i is what query i sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask


def ints(*values):
    return jnp.array(values, jnp.int32)


WRITTEN = {
    "causal": (Mask(causal=True), ["1000", "1100", "1110", "1111"]),
    "window": (Mask(causal=True, window=2), ["1000", "1100", "0110", "0011"]),
    "window of one": (Mask(causal=True, window=1), ["1000", "0100", "0010", "0001"]),
    "window, all ahead": (Mask(window=2), ["1111", "1111", "0111", "0011"]),
    "all behind, window": (Mask(window_right=2), ["1100", "1110", "1111", "1111"]),
    "window both ways": (Mask(window=2, window_right=2), ["1100", "1110", "0111", "0011"]),
    "wider ahead": (Mask(window=1, window_right=3), ["1110", "0111", "0011", "0001"]),
    "window both ways, causal": (
        Mask(causal=True, window=2, window_right=2),
        ["1000", "1100", "0110", "0011"],
    ),
    "window both ways, prefix": (
        Mask(causal=True, window=2, window_right=2, prefix=ints(3)),
        ["1100", "1110", "0110", "0011"],
    ),
    "window both ways, start": (
        Mask(window=2, window_right=1, q_start=ints(1)),
        ["1100", "0110", "0011", "0001"],
    ),
    "prefix": (Mask(causal=True, prefix=ints(3)), ["1110", "1110", "1110", "1111"]),
    "start": (Mask(causal=True, q_start=ints(2)), ["1110", "1111", "1111", "1111"]),
    "start before": (Mask(causal=True, q_start=ints(-2)), ["0000", "0000", "1000", "1100"]),
    "length": (Mask(kv_length=ints(2)), ["1100", "1100", "1100", "1100"]),
    "segments": (
        Mask(q_segments=ints([1, 1, 2, 0]), kv_segments=ints([1, 1, 2, 2])),
        ["1100", "1100", "0011", "0000"],
    ),
    "all at once": (
        Mask(
            causal=True,
            window=3,
            prefix=ints(2),
            kv_length=ints(3),
            q_segments=ints([1, 1, 1, 1]),
            kv_segments=ints([1, 1, 1, 2]),
        ),
        ["1100", "1100", "1110", "0110"],
    ),
}


@pytest.mark.parametrize(("mask", "rows"), WRITTEN.values(), ids=WRITTEN)
def test_materialize(mask, rows):
    want = np.array([[character == "1" for character in row] for row in rows])
    np.testing.assert_array_equal(mask.materialize(4, 4)[0], want)


def test_materialize_per_batch_row():
    seen = Mask(kv_length=ints(1, 3)).materialize(2, 4)
    assert seen.astype(int).tolist() == [[[1, 0, 0, 0]] * 2, [[1, 1, 1, 0]] * 2]


def test_jit_does_not_retrace_for_new_arrays():
    traces = []

    @jax.jit
    def count(mask):
        traces.append(mask)
        return jnp.sum(mask.materialize(3, 3))

    assert count(Mask(causal=True, prefix=ints(0))) == 6
    assert count(Mask(causal=True, prefix=ints(3))) == 9
    assert len(traces) == 1


def test_is_full_only_if_nothing_is_hidden():
    assert Mask().is_full()
    # A prefix and a start hide nothing without causality or a window.
    assert Mask(prefix=ints(1), q_start=ints(1)).is_full()
    for mask, _ in WRITTEN.values():
        assert not mask.is_full()


def test_segments_of_queries_alone_raise():
    with pytest.raises(ValueError, match="together"):
        Mask(q_segments=ints([1, 1])).materialize(2, 2)


@pytest.mark.parametrize(("mask", "rows"), WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize(
    ("row", "key", "length", "keys"), [(0, 0, 2, 2), (1, 2, 3, 2), (2, 0, 1, 3)]
)
def test_tile_is_a_block_of_the_mask(mask, rows, row, key, length, keys):
    whole = mask.materialize(4, 4)
    part = mask.tile(jnp.int32(row), jnp.int32(key), length, keys).materialize(length, keys)
    np.testing.assert_array_equal(part, whole[:, row : row + length, key : key + keys])


@pytest.mark.parametrize(("mask", "rows"), WRITTEN.values(), ids=WRITTEN)
def test_no_key_outside_key_range_is_visible(mask, rows):
    for row in range(4):
        first, end = mask.key_range(row, 1, 4)
        seen = [key for key in range(4) if rows[row][key] == "1"]
        assert all(first <= key < end for key in seen)


def test_key_range_uses_all_static_fields():
    assert Mask().key_range(2, 3, 9) == (0, 9)
    assert Mask(causal=True).key_range(2, 3, 9) == (0, 5)
    assert Mask(causal=True, window=2).key_range(4, 3, 9) == (3, 7)
    assert Mask(window=2).key_range(4, 3, 9) == (3, 9)
    assert Mask(window_right=2).key_range(2, 3, 9) == (0, 6)
    assert Mask(window=2, window_right=3).key_range(4, 3, 9) == (3, 9)
    assert Mask(window=2, window_right=2).key_range(3, 3, 9) == (2, 7)
    assert Mask(causal=True, window_right=9, prefix=ints(5)).key_range(0, 1, 20) == (0, 9)
    assert Mask(window=2, window_right=2, q_start=ints(0)).key_range(3, 3, 9) == (0, 9)
    # What only an array knows rules nothing out, but does not undo what the rest does.
    assert Mask(causal=True, kv_length=ints(1)).key_range(2, 3, 9) == (0, 5)
    assert Mask(causal=True, window=2, prefix=ints(0)).key_range(4, 3, 9) == (3, 9)
    assert Mask(causal=True, window=2, q_start=ints(0)).key_range(4, 3, 9) == (0, 9)
