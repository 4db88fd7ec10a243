"""The attention contract: value and gradients of the textbook, case by case.

An implementation is one subclass of `Contract`: its name in the registry, what it does not support,
and, if it needs another device, an `Implementation` that runs it in an interpreter here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm.attention import Mask, attention
from fm.attention.api import IMPLEMENTATIONS, Implementation, default_platform
from tests.attention import helpers_textbook as textbook

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
PACKED = ints([1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 0])
EACH = jnp.stack([jnp.arange(7), jnp.arange(7) % 6])
LONG = {"B": 1, "H": 2, "K": 1}
HALVES = (jnp.arange(192) // 96)[None]
CASES = {
    "full": Case(),
    "causal": Case(mask=Mask(causal=True)),
    "more keys": Case(L=3, S=9),
    "more queries": Case(L=9, S=3, mask=Mask(causal=True)),
    "one key": Case(S=1),
    "one query": Case(L=1, S=8, mask=Mask(causal=True, q_start=ints(5, 0))),
    "heads of 6": Case(C=6, mask=Mask(causal=True)),
    "one row": Case(B=1, mask=Mask(causal=True)),
    "window of one": Case(mask=Mask(causal=True, window=1)),
    "window": Case(mask=Mask(causal=True, window=3)),
    "window ahead": Case(mask=Mask(window=2)),
    "window both ways": Case(mask=Mask(window=2, window_right=3)),
    "window both ways of one": Case(mask=Mask(window=1, window_right=1)),
    "window ahead only": Case(mask=Mask(window_right=2, kv_length=ints(7, 3))),
    "window both ways, segments": Case(
        mask=Mask(window=2, window_right=2, q_segments=SEGMENTS, kv_segments=SEGMENTS)
    ),
    "window both ways past the keys": Case(L=9, S=3, mask=Mask(window=2, window_right=2)),
    "prefix past a window ahead": Case(
        mask=Mask(causal=True, window=2, window_right=2, prefix=ints(4, 7))
    ),
    "window past the keys": Case(L=9, S=3, mask=Mask(causal=True, window=2)),
    "prefix": Case(mask=Mask(causal=True, prefix=ints(3, 0))),
    "prefix past a window": Case(mask=Mask(causal=True, window=2, prefix=ints(4, 7))),
    "segments": Case(mask=Mask(q_segments=SEGMENTS, kv_segments=SEGMENTS)),
    "causal segments": Case(mask=Mask(causal=True, q_segments=SEGMENTS, kv_segments=SEGMENTS)),
    "a segment each": Case(mask=Mask(causal=True, q_segments=EACH, kv_segments=EACH)),
    "packed": Case(mask=Mask(q_segments=PACKED, kv_segments=PACKED, packed=True)),
    "packed, causal": Case(
        K=2, mask=Mask(causal=True, q_segments=PACKED, kv_segments=PACKED, packed=True)
    ),
    "packed, window": Case(
        mask=Mask(causal=True, window=2, q_segments=PACKED, kv_segments=PACKED, packed=True)
    ),
    "segments and kv_length": Case(
        mask=Mask(q_segments=SEGMENTS, kv_segments=SEGMENTS, kv_length=ints(4, 6))
    ),
    "kv_length": Case(mask=Mask(kv_length=ints(1, 6))),
    "causal kv_length": Case(mask=Mask(causal=True, kv_length=ints(4, 4))),
    "kv_length past the keys": Case(mask=Mask(kv_length=ints(7, 20))),
    "windowed kv_length": Case(mask=Mask(causal=True, window=2, kv_length=ints(3, 7))),
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
    "huge scores and no key": Case(size=1000.0, mask=Mask(kv_length=ints(0, 4)), rtol=5e-3),
    "long": Case(L=160, S=160, mask=Mask(causal=True, window=70), **LONG),
    "long window both ways": Case(L=160, S=160, mask=Mask(window=50, window_right=30), **LONG),
    "long window of one": Case(L=192, S=192, mask=Mask(causal=True, window=1), **LONG),
    "half a block over": Case(
        L=192, S=192, mask=Mask(causal=True, kv_length=ints(150)), rtol=4e-5, **LONG
    ),
    "half a block over, segments": Case(
        L=192, S=192, mask=Mask(q_segments=HALVES, kv_segments=HALVES), **LONG
    ),
    "half a block over, packed": Case(
        L=192,
        S=192,
        mask=Mask(causal=True, q_segments=HALVES, kv_segments=HALVES, packed=True),
        **LONG,
    ),
    "long, more keys": Case(L=130, S=200, mask=Mask(causal=True), **LONG),
}


def arrays(case, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(case.B, case.L, case.H, case.C)) * case.size
    k, v = rng.normal(size=(2, case.B, case.S, case.K, case.C))
    do = rng.normal(size=q.shape)
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v, do))


def _value_and_gradients(q, k, v, do, mask, *, name, scale, softcap):
    """One program for all cases of one shape, whatever their masks' arrays hold."""

    def value(q, k, v):
        return attention(q, k, v, mask=mask, scale=scale, softcap=softcap, implementation=name)

    o, backward = jax.vjp(value, q, k, v)
    return o, *backward(do)


def _known(options):
    """Those that this version of XLA has."""
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        yield name, value


_STATIC = ("name", "scale", "softcap")
_EASY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
as_users_do = jax.jit(_value_and_gradients, static_argnames=_STATIC)
# Nearly all that these tests take is compiling: on a CPU a third as long, for slower programs.
quickly = jax.jit(
    _value_and_gradients,
    static_argnames=_STATIC,
    compiler_options=dict(_known(_EASY)) if default_platform() == "cpu" else {},
)


def expected(case, q, k, v, do):
    scale = case.C**-0.5 if case.scale is None else case.scale
    seen = textbook.visible(case.mask, case.B, case.L, case.S)
    return textbook.attend(q, k, v, do, seen, scale, case.softcap)


@functools.cache
def expected_of(which, dtype):
    return expected(CASES[which], *arrays(CASES[which], dtype))


def assert_close(got, want, rtol):
    for name, left, right in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
        left = np.asarray(left, np.float64)
        size = max(1.0, np.abs(right).max())
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * size, err_msg=name)


@st.composite
def cases(draw):
    B, L, S = draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    K = draw(st.sampled_from([1, 2]))

    def maybe(low, high):
        values = st.lists(st.integers(low, high), min_size=B, max_size=B)
        return np.array(draw(values), np.int32) if draw(st.booleans()) else None

    q_segments = kv_segments = None
    if draw(st.booleans()):
        ids = st.integers(0, 2)
        q_segments, kv_segments = (
            np.array(draw(st.lists(ids, min_size=B * n, max_size=B * n)), np.int32).reshape(B, n)
            for n in (L, S)
        )
    mask = Mask(
        causal=draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 5)),
        window_right=draw(st.none() | st.integers(1, 5)),
        prefix=maybe(0, 4),
        q_start=maybe(-2, 5),
        kv_length=maybe(0, S + 1),
        q_segments=q_segments,
        kv_segments=kv_segments,
    )
    softcap = draw(st.sampled_from([None, 3.0]))
    return Case(B=B, L=L, S=S, H=2 * K, K=K, mask=mask, softcap=softcap)


class Contract:
    """Tests inherited by one class per implementation."""

    implementation: str
    override: Implementation | None = None  # registered under that name while the class runs
    dtype = jnp.float32
    compiled = staticmethod(quickly)
    repeated = "causal kv_length"  # the case that is run twice

    def unsupported(self, case):
        """Regex of the reason a case is unsupported, None if it must run."""
        return None

    def supported(self, case):
        """The case, or a similar one if it is unsupported."""
        return case

    @pytest.fixture(autouse=True, scope="class")
    def registered(self, request):
        with pytest.MonkeyPatch.context() as patch:
            if request.cls.override is not None:
                patch.setitem(IMPLEMENTATIONS, request.cls.implementation, request.cls.override)
            yield

    def run(self, case, *inputs):
        """Output and gradients; None for a case that is unsupported, as expected."""

        def both():
            return self.compiled(
                *inputs, case.mask, name=self.implementation, scale=case.scale, softcap=case.softcap
            )

        reason = self.unsupported(case)
        if reason is None:
            return both()
        with pytest.raises(NotImplementedError, match=reason):
            both()
        return None

    def check(self, case, inputs, want, rtol):
        got = self.run(case, *inputs)
        if got is not None:
            assert all(each.dtype == inputs[0].dtype for each in got)
            assert_close(got, want, rtol)

    @pytest.mark.parametrize("which", CASES)
    def test_value_and_gradients_match_the_textbook(self, which):
        case = self.supported(CASES[which])
        inputs = arrays(case, self.dtype)
        same = case is CASES[which]
        want = expected_of(which, self.dtype) if same else expected(case, *inputs)
        self.check(case, inputs, want, case.rtol if self.dtype == jnp.float32 else 3e-2)

    @pytest.mark.parametrize("which", ["full", "causal segments", "no key at all", "softcap"])
    def test_bfloat16_is_accurate_to_its_precision(self, which):
        case = CASES[which]
        self.check(case, arrays(case, jnp.bfloat16), expected_of(which, jnp.bfloat16), 3e-2)

    @settings(
        max_examples=5,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )
    @given(case=cases())
    def test_any_shape_and_mask(self, case):
        inputs = arrays(case, self.dtype)
        rtol = case.rtol if self.dtype == jnp.float32 else 3e-2
        self.check(case, inputs, expected(case, *inputs), rtol)

    def test_a_row_without_visible_keys_is_zero_in_value_and_gradient(self):
        case = dataclasses.replace(self.supported(CASES["no key at all"]), size=50.0)
        for each in self.run(case, *arrays(case, self.dtype)):
            assert not np.any(np.asarray(each)[0])
            assert np.any(np.asarray(each)[1])

    def test_hidden_keys_get_no_gradient(self):
        case = self.supported(CASES["causal kv_length"])
        _, _, dk, dv = self.run(case, *arrays(case, self.dtype))
        assert not np.any(dk[:, 4:]) and not np.any(dv[:, 4:])
        assert np.any(dk[:, :4]) and np.any(dv[:, :4])

    def test_values_of_hidden_keys_do_not_matter(self):
        case = self.supported(CASES["kv_length"])
        case = dataclasses.replace(case, mask=Mask(kv_length=ints(4, 4)))
        q, k, v, do = arrays(case, self.dtype)
        plain = self.run(case, q, k, v, do)
        wild = self.run(case, q, k.at[:, 4:].set(1e4), v.at[:, 4:].set(-1e4), do)
        for left, right in zip(plain, wild, strict=True):
            np.testing.assert_array_equal(left, right)

    def test_later_keys_do_not_influence_a_causal_row(self):
        case = self.supported(CASES["causal"])
        q, k, v, do = arrays(case, self.dtype)
        only = do * (jnp.arange(case.L) == 3)[:, None, None].astype(do.dtype)
        _, dq, dk, dv = self.run(case, q, k, v, only)
        assert not np.any(dk[:, 4:]) and not np.any(dv[:, 4:])
        assert np.any(dk[:, :4]) and np.any(dv[:, 3])
        assert np.any(dq[:, 3])
        assert not np.any(np.delete(np.asarray(dq, np.float32), 3, axis=1))

    def test_is_deterministic_to_the_bit(self):
        case = self.supported(CASES[self.repeated])
        inputs = arrays(case, self.dtype)
        for left, right in zip(self.run(case, *inputs), self.run(case, *inputs), strict=True):
            np.testing.assert_array_equal(left, right)

    @pytest.mark.parametrize("which", ["decode", "two key heads"])
    def test_vmap_over_rows_and_masks(self, which):
        case = CASES[which]

        def one(q, k, v, do, mask):
            q, k, v, do, mask = jax.tree.map(lambda x: x[None], (q, k, v, do, mask))
            got = self.run(dataclasses.replace(case, B=1, mask=mask), q, k, v, do)
            return None if got is None else [each[0] for each in got]

        got = jax.vmap(one)(*arrays(case, self.dtype), case.mask)
        if self.unsupported(case) is None:
            rtol = 2e-5 if self.dtype == jnp.float32 else 3e-2
            assert_close(got, expected_of(which, self.dtype), rtol)
