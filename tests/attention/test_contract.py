"""What every implementation owes: value and gradients of the textbook, case by case."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, attention, choose
from fm.attention.api import IMPLEMENTATIONS
from tests.attention import textbook

EVERYWHERE = ("reference", "cpu", "chunked")  # the others may refuse a case, with a reason


ALL = Mask()


@dataclasses.dataclass(frozen=True)
class Case:
    B: int = 2
    L: int = 7
    S: int = 7
    H: int = 4
    K: int = 4
    C: int = 8
    mask: Mask = ALL
    softcap: float | None = None
    scale: float | None = None
    size: float = 1.0  # of the queries
    rtol: float = 2e-5


def ints(*values):
    return jnp.array(values, jnp.int32)


SEGMENTS = ints([1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 3])
CASES = {
    "full": Case(),
    "causal": Case(mask=Mask(causal=True)),
    "more keys": Case(L=3, S=9),
    "more queries": Case(L=9, S=3, mask=Mask(causal=True)),
    "one key": Case(S=1),
    "one query": Case(L=1, S=8, mask=Mask(causal=True, q_start=ints(5, 0))),
    "one row": Case(B=1, mask=Mask(causal=True)),
    "window of one": Case(mask=Mask(causal=True, window=1)),
    "window": Case(mask=Mask(causal=True, window=3)),
    "window ahead": Case(mask=Mask(window=2)),
    "prefix": Case(mask=Mask(causal=True, prefix=ints(3, 0))),
    "prefix past a window": Case(mask=Mask(causal=True, window=2, prefix=ints(4, 7))),
    "segments": Case(mask=Mask(q_segments=SEGMENTS, kv_segments=SEGMENTS)),
    "causal segments": Case(mask=Mask(causal=True, q_segments=SEGMENTS, kv_segments=SEGMENTS)),
    "kv_length": Case(mask=Mask(kv_length=ints(1, 6))),
    "no key at all": Case(mask=Mask(kv_length=ints(0, 4))),
    "no common segment": Case(mask=Mask(q_segments=SEGMENTS, kv_segments=SEGMENTS + 9)),
    "some rows see nothing": Case(mask=Mask(causal=True, q_start=ints(-3, 0))),
    "decode": Case(L=2, S=9, mask=Mask(causal=True, q_start=ints(4, 6), kv_length=ints(6, 8))),
    "one key head": Case(K=1, mask=Mask(causal=True)),
    "two key heads": Case(K=2, L=5, mask=Mask(kv_length=ints(2, 7))),
    "softcap": Case(softcap=2.0, size=5.0, mask=Mask(causal=True)),
    "scale": Case(scale=0.5),
    # Float32 holds scores of thousands to about 1e-4, and exp passes that on.
    "huge scores": Case(size=1000.0, mask=Mask(causal=True), rtol=5e-3),
    "long": Case(B=1, L=160, S=160, H=2, K=1, mask=Mask(causal=True, window=70)),
}


def arrays(case, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(case.B, case.L, case.H, case.C)) * case.size
    k, v = rng.normal(size=(2, case.B, case.S, case.K, case.C))
    do = rng.normal(size=q.shape)
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v, do))


def compiled(name, case):
    """(q, k, v, do) -> output and gradients."""

    def value(q, k, v):
        return attention(
            q, k, v, mask=case.mask, scale=case.scale, softcap=case.softcap, implementation=name
        )

    @jax.jit
    def both(q, k, v, do):
        o, backward = jax.vjp(value, q, k, v)
        return o, *backward(do)

    return both


def run(name, case, *given):
    """Output and gradients; skips a case that an implementation of some device refuses."""
    try:
        return compiled(name, case)(*given)
    except NotImplementedError as error:
        assert name not in EVERYWHERE, f"{name} must run everything: {error}"
        pytest.skip(str(error))


def expected(case, q, k, v, do):
    scale = case.C**-0.5 if case.scale is None else case.scale
    seen = textbook.visible(case.mask, case.B, case.L, case.S)
    return textbook.attend(q, k, v, do, seen, scale, case.softcap)


def assert_close(got, want, rtol):
    for name, left, right in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
        left = np.asarray(left, np.float64)
        size = max(1.0, np.abs(right).max())
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * size, err_msg=name)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
class TestContract:
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_value_and_gradients_are_the_textbooks(self, name, case):
        given = arrays(case)
        assert_close(run(name, case, *given), expected(case, *given), case.rtol)

    @pytest.mark.parametrize("which", ["full", "causal segments", "no key at all", "softcap"])
    def test_bfloat16_within_its_precision(self, name, which):
        case = CASES[which]
        given = arrays(case, jnp.bfloat16)
        got = run(name, case, *given)
        assert all(each.dtype == jnp.bfloat16 for each in got)
        assert_close(got, expected(case, *given), 3e-2)

    def test_a_row_that_sees_nothing_is_zero_in_value_and_gradient(self, name):
        case = Case(mask=Mask(kv_length=ints(0, 4)), size=50.0)
        for each in run(name, case, *arrays(case)):
            assert not np.any(np.asarray(each)[0])
            assert np.any(np.asarray(each)[1])

    def test_keys_out_of_sight_get_no_gradient(self, name):
        case = Case(mask=Mask(causal=True, kv_length=ints(4, 4)))
        _, _, dk, dv = run(name, case, *arrays(case))
        assert not np.any(dk[:, 4:]) and not np.any(dv[:, 4:])

    def test_a_key_out_of_sight_does_not_matter_whatever_it_holds(self, name):
        case = Case(mask=Mask(kv_length=ints(4, 4)))
        q, k, v, do = arrays(case)
        plain = run(name, case, q, k, v, do)
        wild = run(name, case, q, k.at[:, 4:].set(1e4), v.at[:, 4:].set(-1e4), do)
        np.testing.assert_array_equal(plain[0], wild[0])

    def test_repeats_to_the_bit(self, name):
        case = CASES["causal segments"]
        given = arrays(case)
        for left, right in zip(run(name, case, *given), run(name, case, *given), strict=True):
            np.testing.assert_array_equal(left, right)

    def test_maps_over_masks(self, name):
        case = CASES["decode"]
        q, k, v, do = arrays(case)

        def one(q, k, v, mask):
            mask = jax.tree.map(lambda field: field[None], mask)
            return attention(q[None], k[None], v[None], mask=mask, implementation=name)[0]

        try:
            got = jax.jit(jax.vmap(one))(q, k, v, case.mask)
        except NotImplementedError as error:
            assert name not in EVERYWHERE
            pytest.skip(str(error))
        np.testing.assert_allclose(got, expected(case, q, k, v, do)[0], rtol=2e-5, atol=2e-5)


class TestApi:
    def test_unknown_name(self):
        q, k, v, _ = arrays(Case())
        with pytest.raises(NotImplementedError, match=r"'quick'.*reference"):
            attention(q, k, v, implementation="quick")

    def test_what_choose_names_is_there_and_is_what_runs(self):
        q, k, v, _ = arrays(Case())
        name = choose(q, k, Mask(causal=True))
        assert name in IMPLEMENTATIONS
        np.testing.assert_array_equal(
            attention(q, k, v, mask=Mask(causal=True)),
            attention(q, k, v, mask=Mask(causal=True), implementation=name),
        )

    @pytest.mark.parametrize("other", [Case(K=3), Case(C=4), Case(S=5)])
    def test_shapes_that_do_not_fit(self, other):
        q, _, v, _ = arrays(Case())
        _, bad, _, _ = arrays(other)
        with pytest.raises(ValueError, match="head"):
            attention(q, bad, bad if other.S == 7 else v)
