"""The Hopper kernels' pure functions: the blocks visited and the mathematics of a tile."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.attention import Mask
from fm.attention.mosaic_gpu import block_ranges, common, op
from tests.attention import helpers_textbook as textbook


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
        window_right=draw(st.none() | st.integers(1, 9)),
        prefix=maybe(0, 22, rows),
        q_start=maybe(-6, 12, rows),
        kv_length=maybe(0, 24, rows),
        **segments,
    )
    return rows, length, keys, mask


def by_block(seen, block_q, block_k, whole):
    """[rows, L, S] to [rows, query blocks, block_q, key blocks, block_k], short ones filled."""
    rows, length, keys = seen.shape
    more = ((0, 0), (0, -length % block_q), (0, 0))
    seen = np.pad(seen, more, constant_values=whole)
    seen = np.pad(seen, ((0, 0), (0, 0), (0, -keys % block_k)))
    return seen.reshape(rows, -(-length // block_q), block_q, -(-keys // block_k), block_k)


class TestBlocks:
    @pytest.mark.slow
    @given(cases(), st.sampled_from([(4, 4), (4, 8), (8, 4), (3, 5)]))
    @settings(max_examples=60)
    def test_block_visibility_matches_the_mask(self, case, sizes):
        rows, length, keys, mask = case
        some, every = block_ranges.any_and_all_visible(mask, rows, length, keys, *sizes)
        seen = textbook.visible(mask, rows, length, keys)
        want_some = by_block(seen, *sizes, whole=False).any((2, 4))
        want_every = by_block(seen, *sizes, whole=True).all((2, 4))
        if mask.q_segments is None:
            np.testing.assert_array_equal(some, want_some)
            np.testing.assert_array_equal(every, want_every)
        else:  # segments go by their extremes: may visit more, never less
            assert not np.any(want_some & ~np.asarray(some))
            assert not np.any(np.asarray(every) & ~want_every)

    @pytest.mark.slow
    @given(cases(), st.sampled_from([(4, 4), (4, 8), (8, 4)]), st.booleans())
    @settings(max_examples=30)
    def test_visiting_the_blocks_covers_exactly_the_visible_pairs(self, case, sizes, by_keys):
        """Every block in the order of `block_at_step`, masked where it says so."""
        rows, length, keys, mask = case
        tables = block_ranges.any_and_all_visible(mask, rows, length, keys, *sizes)
        if by_keys:
            tables = [table.swapaxes(1, 2) for table in tables]
        spans = np.asarray(block_ranges.block_ranges(*tables))
        rule = dataclasses.replace(op.kernel_spec(mask, keys, 1.0, None), has_kv_length=True)
        got = np.zeros((rows, length, keys), int)
        for b, outer in np.ndindex(*spans.shape[:2]):
            span = tuple(int(n) for n in spans[b, outer])
            for step in range(span[3] - span[0]):
                inner = int(block_ranges.block_at_step(span, step))
                at_q, at_k = (inner, outer) if by_keys else (outer, inner)
                i = np.arange(at_q * sizes[0], min((at_q + 1) * sizes[0], length))
                j = np.arange(at_k * sizes[1], min((at_k + 1) * sizes[1], keys))
                seen = None
                if step < block_ranges.num_masked_steps(span):
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
        if rule.has_segments:
            q_segments = mask.q_segments[b][i][:, None] + wide
            k_segments = mask.kv_segments[b][j] + wide
        at = i[:, None] + of(mask.q_start, 0) + wide
        prefix = of(mask.prefix, 0)
        return common.visible_tile(rule, at, j + wide, prefix, valid, q_segments, k_segments)

    def test_block_ranges_by_hand(self):
        def bits(*rows):
            return jnp.array([[c == "1" for c in row] for row in rows])

        got = block_ranges.block_ranges(
            bits("01111", "00000", "11111"), bits("00110", "00000", "11111")
        )
        assert got.tolist() == [[1, 2, 4, 5], [0, 0, 0, 0], [0, 0, 5, 5]]

    def test_causal_skips_half_and_masks_the_diagonal_only(self):
        spans = block_ranges.block_ranges(
            *block_ranges.any_and_all_visible(Mask(causal=True), 1, 1024, 1024, 128, 128)
        )
        assert spans[0].tolist() == [[0, 0, n, n + 1] for n in range(8)]

    def test_window_keeps_work_constant(self):
        mask = Mask(causal=True, window=128)
        spans = block_ranges.block_ranges(
            *block_ranges.any_and_all_visible(mask, 1, 4096, 4096, 128, 128)
        )
        assert int(jnp.max(spans[0, :, 3] - spans[0, :, 0])) == 2


class TestTiles:
    @pytest.mark.parametrize("softcap", [None, 1.5])
    def test_online_softmax_over_tiles_is_a_softmax(self, softcap):
        rng = np.random.default_rng(0)
        products = rng.normal(size=(6, 40)) * 30
        seen = rng.random((6, 40)) < 0.4
        seen[1] = False  # sees nothing
        seen[2, :30] = False  # nothing in the first tiles
        rule = op.kernel_spec(Mask(), 128, 0.3, softcap)
        scores = 0.3 * products
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.where(seen, np.exp(scores), 0.0)
        sums = jnp.zeros((6, 40))
        top, total = jnp.full((6,), -jnp.inf), jnp.zeros((6,))
        for at in range(0, 40, 10):
            here = slice(at, at + 10)
            logits, _ = common.softcap_logits(rule, jnp.asarray(products[:, here], jnp.float32))
            logits = common.mask_logits(logits, seen[:, here])
            w, shrink, top, total = common.online_softmax_step(rule, logits, top, total)
            sums = (sums * shrink[:, None]).at[:, here].set(w)
        inverse, lse = common.finish_softmax(top, total)
        whole = weights.sum(1)
        want = weights / np.where(whole == 0, 1, whole)[:, None]
        np.testing.assert_allclose(sums * inverse[:, None], want, atol=1e-5)
        assert lse[1] == np.inf
        rest = np.arange(6) != 1
        np.testing.assert_allclose(lse[rest], np.log2(whole[rest]), rtol=1e-5)

    def test_squash_is_tanh_to_float32_and_its_slope(self):
        x = np.concatenate([np.linspace(-200, 200, 999), np.linspace(-1e-3, 1e-3, 99), [1e30]])
        rule = op.kernel_spec(Mask(), 128, 0.5, 7.0)
        got, slope = common.softcap_logits(rule, jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(got, np.tanh(x * 0.5 / 7), atol=3e-7)
        np.testing.assert_allclose(slope, 1 - np.tanh(x * 0.5 / 7) ** 2, atol=6e-7)
