"""Memory of `xla_chunked` and `xla_tiled`, and the blocks that `xla_chunked` skips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, reference, xla_chunked, xla_tiled
from tests.attention import helpers_contract as contract
from tests.attention.helpers_contract import Case


def held(attend, length):
    """Bytes that forward and backward hold beside what comes in and goes out."""

    def both(q, k, v, do):
        _, backward = jax.vjp(
            lambda *x: attend(*x, mask=Mask(causal=True), scale=0.1, softcap=None), q, k, v
        )
        return backward(do)

    like = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    compiled = jax.jit(both).lower(like, like, like, like).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_length():
    lengths = (1024, 2048, 4096, 8192)
    blocks = [
        held(functools.partial(xla_chunked.attend, block_size=64), length) for length in lengths
    ]
    grown = np.diff(blocks)
    # Twice the length, twice as much more: what the blocks themselves take stays.
    assert grown[1] == pytest.approx(2 * grown[0], rel=0.1)
    assert grown[2] == pytest.approx(2 * grown[1], rel=0.1)
    assert blocks[-1] < 4 * 2 * 8192**2 / 4  # a quarter of the scores alone


def test_memory_of_xla_tiled_is_linear_in_length():
    few, more = held(xla_tiled.attend, 4096), held(xla_tiled.attend, 8192)
    assert more < 2.5 * few
    assert more < 2 * 8192**2 * 4 / 8  # an eighth of the scores alone


def test_memory_of_the_reference_is_quadratic_in_length():
    assert held(reference.attend, 1024) > 3.5 * held(reference.attend, 512)


@pytest.mark.parametrize(
    ("mask", "steps"),
    [
        (Mask(), 16),
        (Mask(causal=True), 10),
        (Mask(causal=True, window=1), 4),
        (Mask(causal=True, window=5), 7),
        (Mask(window=1), 10),
        (Mask(window=1, window_right=1), 4),
        (Mask(window=2, window_right=2), 10),
        (Mask(window_right=5), 13),
        (Mask(causal=True, kv_length=jnp.array([9])), 10),
        (Mask(causal=True, prefix=jnp.array([9])), 16),
        (Mask(causal=True, window=5, q_start=jnp.array([9])), 16),
    ],
)
def test_blocks_hidden_by_the_mask_are_skipped(mask, steps):
    assert len(xla_chunked.block_pairs(mask, 16, 16, (4, 4))) == steps


def test_every_visible_key_is_in_some_block():
    for window in (None, 1, 3, 8):
        mask = Mask(causal=True, window=window)
        joined = np.zeros((15, 12), bool)
        for i, j in xla_chunked.block_pairs(mask, 14, 11, (5, 4)):
            joined[5 * i : 5 * i + 5, 4 * j : 4 * j + 4] = True
        assert not np.any(np.asarray(mask.materialize(14, 11))[0] & ~joined[:14, :11])


def test_default_block_sizes():
    """Two uneven blocks of queries, three of keys; values and gradients still the textbook's."""
    case = Case(B=1, L=300, S=520, H=2, K=1, mask=Mask(causal=True, q_start=contract.ints(120)))
    inputs = contract.arrays(case)
    got = contract.as_users_do(*inputs, case.mask, name="xla_chunked", scale=None, softcap=None)
    contract.assert_close(got, contract.expected(case, *inputs), 4e-5)
