"""The Hopper kernels: their blocks and tiles by themselves, whole in JAX's interpreter, lowered.

No GPU is needed, and none is measured: what compiles for the chip is lowered as far as a CPU can.
"""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.attention import Mask, attention
from fm.attention.pallas_gpu import api, backward_keys, backward_queries, blocks, forward, tiles
from fm.attention.pallas_gpu.machine import Hopper, Interpreted
from tests.attention import interpreter, textbook


def ints(*values):
    return np.array(values, np.int32)


@st.composite
def cases(draw):
    """Rows, lengths and a mask of any kind, positions around the edges of blocks."""
    # Few sizes: XLA compiles for each.
    rows, length, keys = 2, draw(st.sampled_from([1, 7, 16])), draw(st.sampled_from([1, 10, 20]))

    def maybe(low, high, *size):
        number = st.integers(low, high)
        if not draw(st.booleans()):
            return None
        flat = draw(st.lists(number, min_size=int(np.prod(size)), max_size=int(np.prod(size))))
        return np.array(flat, np.int32).reshape(size)

    segments = {}
    if draw(st.booleans()):
        for name, size in (("q_segments", length), ("kv_segments", keys)):
            values = st.lists(st.integers(0, 2), min_size=rows * size, max_size=rows * size)
            drawn = np.array(draw(values), np.int32).reshape(rows, size)
            segments[name] = np.sort(drawn, 1) if draw(st.booleans()) else drawn
    mask = Mask(
        causal=draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 9)),
        prefix=maybe(0, 22, rows),
        q_start=maybe(-6, 12, rows),
        kv_length=maybe(0, 24, rows),
        **segments,
    )
    return rows, length, keys, mask


def by_block(seen, block_q, block_k, whole):
    """[rows, L, S] to [rows, query blocks, block_q, key blocks, block_k], short blocks filled up."""
    rows, length, keys = seen.shape
    more = ((0, 0), (0, -length % block_q), (0, 0))
    seen = np.pad(seen, more, constant_values=whole)
    seen = np.pad(seen, ((0, 0), (0, 0), (0, -keys % block_k)))
    return seen.reshape(rows, -(-length // block_q), block_q, -(-keys // block_k), block_k)


class TestBlocks:
    @given(cases(), st.sampled_from([(4, 4), (4, 8), (8, 4), (3, 5)]))
    @settings(max_examples=60, deadline=None)
    def test_touched_is_what_the_literal_mask_says(self, case, sizes):
        rows, length, keys, mask = case
        some, every = blocks.touched(mask, rows, length, keys, *sizes)
        seen = textbook.visible(mask, rows, length, keys)
        want_some = by_block(seen, *sizes, whole=False).any((2, 4))
        want_every = by_block(seen, *sizes, whole=True).all((2, 4))
        if mask.q_segments is None:
            np.testing.assert_array_equal(some, want_some)
            np.testing.assert_array_equal(every, want_every)
        else:  # segments go by their extremes: may visit more, never less
            assert not np.any(want_some & ~np.asarray(some))
            assert not np.any(np.asarray(every) & ~want_every)

    @given(cases(), st.sampled_from([(4, 4), (4, 8), (8, 4)]), st.booleans())
    @settings(max_examples=30, deadline=None)
    def test_walk_of_a_kernel_sees_exactly_the_visible_pairs(self, case, sizes, by_keys):
        """Every block of `spans` in the order of `visit`, `tiles.visible` where it says so."""
        rows, length, keys, mask = case
        tables = blocks.touched(mask, rows, length, keys, *sizes)
        if by_keys:
            tables = [table.swapaxes(1, 2) for table in tables]
        spans = np.asarray(blocks.spans(*tables))
        rule = dataclasses.replace(api.rule_of(mask, keys, 1.0, None), bounded=True)
        got = np.zeros((rows, length, keys), int)
        for b, outer in np.ndindex(*spans.shape[:2]):
            span = tuple(int(n) for n in spans[b, outer])
            for step in range(span[3] - span[0]):
                inner = int(blocks.visit(span, step))
                at_q, at_k = (inner, outer) if by_keys else (outer, inner)
                i = np.arange(at_q * sizes[0], min((at_q + 1) * sizes[0], length))
                j = np.arange(at_k * sizes[1], min((at_k + 1) * sizes[1], keys))
                seen = None
                if step < blocks.masked_steps(span):
                    seen = self.tile(rule, mask, b, i, j, keys)
                got[b, i[:, None], j] += 1 if seen is None else np.asarray(seen)
        np.testing.assert_array_equal(got, textbook.visible(mask, rows, length, keys))

    @staticmethod
    def tile(rule, mask, b, i, j, keys):
        def of(field, default):
            return default if field is None else field[b]

        wide = np.zeros((len(i), len(j)), int)
        valid = min(int(of(mask.kv_length, keys)), keys)
        q_segments = k_segments = None
        if rule.segments:
            q_segments = mask.q_segments[b][i][:, None] + wide
            k_segments = mask.kv_segments[b][j] + wide
        at = i[:, None] + of(mask.q_start, 0) + wide
        prefix = of(mask.prefix, 0)
        return tiles.visible(rule, at, j + wide, prefix, valid, q_segments, k_segments)

    def test_spans_by_hand(self):
        def bits(*rows):
            return jnp.array([[c == "1" for c in row] for row in rows])

        got = blocks.spans(bits("01111", "00000", "11111"), bits("00110", "00000", "11111"))
        assert got.tolist() == [[1, 2, 4, 5], [0, 0, 0, 0], [0, 0, 5, 5]]

    def test_causal_skips_half_and_masks_the_diagonal_only(self):
        spans = blocks.spans(*blocks.touched(Mask(causal=True), 1, 1024, 1024, 128, 128))
        assert spans[0].tolist() == [[0, 0, n, n + 1] for n in range(8)]

    def test_window_keeps_work_constant(self):
        mask = Mask(causal=True, window=128)
        spans = blocks.spans(*blocks.touched(mask, 1, 4096, 4096, 128, 128))
        assert int(jnp.max(spans[0, :, 3] - spans[0, :, 0])) == 2


class TestTiles:
    @pytest.mark.parametrize("softcap", [None, 1.5])
    def test_online_softmax_over_tiles_is_a_softmax(self, softcap):
        rng = np.random.default_rng(0)
        products = rng.normal(size=(6, 40)) * 30
        seen = rng.random((6, 40)) < 0.4
        seen[1] = False  # sees nothing
        seen[2, :30] = False  # nothing in the first tiles
        rule = tiles.Rule(False, None, False, False, False, 0.3, softcap)
        scores = 0.3 * products
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.where(seen, np.exp(scores), 0.0)
        sums = jnp.zeros((6, 40))
        top, total = jnp.full((6,), -jnp.inf), jnp.zeros((6,))
        for at in range(0, 40, 10):
            here = slice(at, at + 10)
            logits, _ = tiles.squash(rule, jnp.asarray(products[:, here], jnp.float32))
            logits = tiles.hide(logits, seen[:, here])
            w, shrink, top, total = tiles.soften(rule, logits, top, total)
            sums = (sums * shrink[:, None]).at[:, here].set(w)
        inverse, lse = tiles.finish(top, total)
        whole = weights.sum(1)
        want = weights / np.where(whole == 0, 1, whole)[:, None]
        np.testing.assert_allclose(sums * inverse[:, None], want, atol=1e-5)
        assert lse[1] == np.inf
        rest = np.arange(6) != 1
        np.testing.assert_allclose(lse[rest], np.log2(whole[rest]), rtol=1e-5)

    def test_squash_is_tanh_to_float32_and_its_slope(self):
        x = np.concatenate([np.linspace(-200, 200, 999), np.linspace(-1e-3, 1e-3, 99), [1e30]])
        rule = tiles.Rule(False, None, False, False, False, 0.5, 7.0)
        got, slope = tiles.squash(rule, jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(got, np.tanh(x * 0.5 / 7), atol=3e-7)
        np.testing.assert_allclose(slope, 1 - np.tanh(x * 0.5 / 7) ** 2, atol=6e-7)


@dataclasses.dataclass(frozen=True)
class Case:
    mask: Mask
    B: int = 1
    L: int = 150
    S: int = 150
    H: int = 1
    K: int = 1
    C: int = 64
    softcap: float | None = None
    dtype: type = jnp.bfloat16

    def arrays(self):
        rng = np.random.default_rng(0)
        q, do = rng.normal(size=(2, self.B, self.L, self.H, self.C))
        k, v = rng.normal(size=(2, self.B, self.S, self.K, self.C))
        return tuple(jnp.asarray(x, self.dtype) for x in (q, k, v, do))

    def both(self, machine):
        """(q, k, v, do, mask) -> output and gradients."""

        def value(q, k, v, mask):
            scale = self.C**-0.5
            return api.run(q, k, v, mask=mask, scale=scale, softcap=self.softcap, machine=machine)

        def run(q, k, v, do, mask):
            o, backward = jax.vjp(lambda q, k, v: value(q, k, v, mask), q, k, v)
            return o, *backward(do)

        return jax.jit(run)

    def expected(self, q, k, v, do):
        seen = textbook.visible(self.mask, self.B, self.L, self.S)
        return textbook.attend(q, k, v, do, seen, self.C**-0.5, self.softcap)


def in_runs(rows, length, run):
    return np.broadcast_to(np.arange(length) // run, (rows, length)).astype(np.int32)


ALL = Mask(
    causal=True,
    window=100,
    prefix=ints(40, 0),
    q_start=ints(120, -10),  # the second row's first queries see nothing
    kv_length=ints(250, 140),
    q_segments=in_runs(2, 140, 90),
    kv_segments=in_runs(2, 260, 120),
)
CASES = {
    "whole blocks, no mask": Case(Mask(), L=128, S=256, C=128),
    "causal, grouped": Case(Mask(causal=True), L=256, S=256, H=2),
    "short blocks": Case(Mask(), L=130, S=200),
    "window of one": Case(Mask(causal=True, window=1), C=128),
    "window ahead, capped, float16": Case(
        Mask(window=20), L=200, S=130, softcap=2.0, dtype=jnp.float16
    ),
    "segments, two key heads": Case(
        Mask(q_segments=in_runs(1, 150, 60), kv_segments=in_runs(1, 150, 60)), H=4, K=2
    ),
    "a row that sees nothing": Case(Mask(kv_length=ints(0, 100)), B=2, L=100, S=130),
    "all at once": Case(ALL, B=2, L=140, S=260, softcap=3.0),
}
TOLERANCE = {jnp.bfloat16: 1e-2, jnp.float16: 2e-3}


class TestInterpreted:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        interpreter.install(monkeypatch)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_value_and_gradients_are_the_textbooks(self, case):
        arrays = case.arrays()
        run = case.both(Interpreted(interpreter.parameters()))
        got = run(*arrays, case.mask)
        for name, left, right in zip(
            ("o", "dq", "dk", "dv"), got, case.expected(*arrays), strict=True
        ):
            assert left.dtype == case.dtype
            left = np.asarray(left, np.float64)
            size = max(1.0, np.abs(right).max())
            rtol = TOLERANCE[case.dtype]
            np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * size, err_msg=name)
            if case is CASES["a row that sees nothing"]:
                assert not np.any(left[0]) and np.any(left[1])

    @pytest.mark.slow
    def test_same_bits_twice_and_no_race(self):
        """Copies, barriers and reads of shared memory, checked by their vector clocks."""
        mask = Mask(causal=True, q_segments=in_runs(1, 256, 99), kv_segments=in_runs(1, 640, 99))
        case = Case(mask, L=256, S=640)  # more blocks than slots
        run = case.both(Interpreted(interpreter.parameters(races=True)))
        arrays = case.arrays()
        once = run(*arrays, mask)
        assert not interpreter.races_found()
        for left, right in zip(once, run(*arrays, mask), strict=True):
            np.testing.assert_array_equal(left, right)


SHAPES = {
    "no mask": Case(Mask(), L=256, S=256, H=4, K=2),
    "causal": Case(Mask(causal=True), L=256, S=256, H=4),
    "all at once": Case(ALL, B=2, L=140, S=260, H=2, softcap=30.0),
}


class TestLowered:
    """For CUDA, as far as a CPU goes: layouts, copies and shared memory (227 KB) are settled."""

    @pytest.mark.parametrize("width", api.WIDTHS)
    @pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
    def test_three_kernels(self, case, width):
        case = dataclasses.replace(case, C=width)
        traced = case.both(Hopper()).trace(*case.arrays(), case.mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == 3

    def test_under_vmap(self):
        case = dataclasses.replace(SHAPES["causal"], dtype=jnp.float16)
        given = [jnp.stack([x, x]) for x in case.arrays()]
        mask = Mask(causal=True, kv_length=ints([100], [200]))
        traced = jax.jit(jax.vmap(case.both(Hopper()))).trace(*given, mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == 3


def like(shape=(1, 128, 2, 64), dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


class TestRefusal:
    @pytest.mark.parametrize(
        ("q", "k", "mask", "softcap", "platform", "reason"),
        [
            (like(), like(), Mask(), None, "cpu", "NVIDIA.*not on cpu"),
            (like(), like(), None, None, "tpu", "not on tpu"),
            (like(dtype=jnp.float32), like(), None, None, "gpu", "bfloat16 or float16.*float32"),
            (like(), like(dtype=jnp.float16), None, None, "gpu", "float16 keys"),
            (like((1, 8, 2, 32)), like((1, 8, 2, 32)), None, None, "gpu", "64 or 128 wide, not 32"),
            (like(), like((1, 0, 2, 64)), None, None, "gpu", "empty"),
            (like(), like(), Mask(window=0), None, "gpu", "window of 1 or more, not 0"),
            (like(), like(), Mask(), 0.0, "gpu", "positive softcap"),
        ],
    )
    def test_says_why(self, q, k, mask, softcap, platform, reason, monkeypatch):
        pretend(monkeypatch, "9.0", "cuda 13000")
        assert re.search(reason, api.refusal(q, k, mask, softcap, platform))

    def test_only_compute_capability_nine(self, monkeypatch):
        pretend(monkeypatch, "9.0", "cuda 13000")
        assert api.refusal(like(), like(), Mask(causal=True), None, "gpu") is None
        pretend(monkeypatch, "10.0", "cuda 13000")
        assert "not 10.0" in api.refusal(like(), like(), None, None, "gpu")

    def test_a_compiler_known_to_be_wrong(self, monkeypatch):
        pretend(monkeypatch, "9.0", "PJRT C API\ncuda 12090")
        assert "12090" in api.refusal(like(), like(), Mask(causal=True), None, "gpu")
        assert api.refusal(like(), like(), Mask(), None, "gpu") is None

    def test_a_named_one_raises(self):
        x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
        with pytest.raises(NotImplementedError, match="pallas_gpu runs on an NVIDIA GPU"):
            attention(x, x, x, implementation="pallas_gpu")

    @pytest.mark.parametrize(
        ("scale", "values", "reason"),
        [(0.0, jnp.bfloat16, "positive scale"), (1.0, jnp.float16, "values of the keys' dtype")],
    )
    def test_what_only_the_call_shows(self, scale, values, reason):
        x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
        with pytest.raises(NotImplementedError, match=reason):
            v = x.astype(values)
            api.run(x, x, v, mask=Mask(), scale=scale, softcap=None, machine=Hopper())


def pretend(monkeypatch, capability, version):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(compute_capability=capability, client=client)
    monkeypatch.setattr(api.jax, "devices", lambda platform: [device])


def test_block_sizes_fit_the_padding():
    sizes = [backward_keys.BLOCK_K, *backward_keys.BLOCK_Q.values()]
    for module in (forward, backward_queries):
        sizes += [module.BLOCK_Q, module.BLOCK_K]
    assert all(api.BLOCK % size == 0 for size in sizes)
