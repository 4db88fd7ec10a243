"""The Hopper kernels: interpreted, lowered for CUDA, unsupported cases, and on a GPU if present."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, attention
from fm.attention.api import default_platform
from fm.attention.mosaic_gpu import backward_dkv, backward_dq, common, forward, op
from fm.attention.mosaic_gpu.common import HopperOps, InterpretedOps
from tests.attention import helpers_interpreter as interpreter
from tests.attention import helpers_textbook as textbook


def ints(*values):
    return np.array(values, np.int32)


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

    def both(self, ops):
        """(q, k, v, do, mask) -> output and gradients."""

        def value(q, k, v, mask):
            scale = self.C**-0.5
            return op.run(q, k, v, mask=mask, scale=scale, softcap=self.softcap, ops=ops)

        def both(q, k, v, do, mask):
            o, backward = jax.vjp(lambda q, k, v: value(q, k, v, mask), q, k, v)
            return o, *backward(do)

        return jax.jit(both)

    def expected(self, q, k, v, do):
        seen = textbook.visible(self.mask, self.B, self.L, self.S)
        return textbook.attend(q, k, v, do, seen, self.C**-0.5, self.softcap)


def in_runs(rows, length, run):
    return np.broadcast_to(np.arange(length) // run, (rows, length)).astype(np.int32)


ALL = Mask(
    causal=True,
    window=100,
    window_right=90,
    prefix=ints(40, 0),
    q_start=ints(120, -10),  # the second row's first queries see nothing
    kv_length=ints(250, 140),
    q_segments=in_runs(2, 140, 90),
    kv_segments=in_runs(2, 260, 120),
)
CASES = {
    "heads of 32, packed": Case(
        Mask(causal=True, q_segments=in_runs(1, 150, 60), kv_segments=in_runs(1, 150, 60)), C=32
    ),
    "heads of 80": Case(Mask(causal=True), L=200, S=200, C=80),
    "whole blocks, no mask": Case(Mask(), L=128, S=256, C=128),
    "causal, grouped": Case(Mask(causal=True), L=256, S=256, H=2),
    "short blocks": Case(Mask(), L=130, S=200),
    "window of one": Case(Mask(causal=True, window=1), C=128),
    "window ahead, capped, float16": Case(
        Mask(window=20), L=200, S=130, softcap=2.0, dtype=jnp.float16
    ),
    "window both ways, 64": Case(Mask(window=70, window_right=33), L=260, S=200),
    "segments, two key heads": Case(
        Mask(q_segments=in_runs(1, 150, 60), kv_segments=in_runs(1, 150, 60)), H=4, K=2
    ),
    "a row that sees nothing": Case(Mask(kv_length=ints(0, 100)), B=2, L=100, S=130),
    "all at once": Case(ALL, B=2, L=140, S=260, softcap=3.0),
}
TOLERANCE = {jnp.bfloat16: 1e-2, jnp.float16: 2e-3}


def check(case, ops):
    """Compares output and gradients with the textbook and returns them."""
    arrays = case.arrays()
    got = case.both(ops)(*arrays, case.mask)
    for name, left, right in zip(("o", "dq", "dk", "dv"), got, case.expected(*arrays), strict=True):
        assert left.dtype == case.dtype
        left = np.asarray(left, np.float64)
        size = max(1.0, np.abs(right).max())
        rtol = TOLERANCE[case.dtype]
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * size, err_msg=name)
        if case is CASES["a row that sees nothing"]:
            assert not np.any(left[0]) and np.any(left[1])
    return got


class TestInterpreted:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        interpreter.install(monkeypatch)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_value_and_gradients_match_the_textbook(self, case):
        check(case, InterpretedOps(interpreter.parameters()))

    @pytest.mark.slow
    def test_is_deterministic_and_free_of_races(self, capfd):
        """Copies, barriers and reads of shared memory, checked by their vector clocks."""
        mask = Mask(causal=True, q_segments=in_runs(1, 256, 99), kv_segments=in_runs(1, 640, 99))
        case = Case(mask, L=256, S=640)  # more blocks than slots
        run = case.both(InterpretedOps(interpreter.parameters(races=True)))
        arrays = case.arrays()
        once = run(*arrays, mask)
        assert "RACE DETECTED" not in capfd.readouterr().out
        for left, right in zip(once, run(*arrays, mask), strict=True):
            np.testing.assert_array_equal(left, right)

    @pytest.mark.slow
    def test_a_race_is_detected(self, monkeypatch, capfd):
        """The kernels without their waiting for copies."""
        monkeypatch.setattr(common.RingBuffer, "wait", common.RingBuffer.slot)
        case = Case(Mask(), L=128, S=128)
        run = case.both(InterpretedOps(interpreter.parameters(races=True)))
        jax.block_until_ready(run(*case.arrays(), case.mask))
        assert "RACE DETECTED" in capfd.readouterr().out


@pytest.mark.skipif(default_platform() != "gpu", reason="needs an NVIDIA GPU")
class TestOnGpu:
    @pytest.mark.parametrize("width", (32, *op.HEAD_DIMS))
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_value_and_gradients_match_the_textbook(self, case, width):
        check(case if width == case.C else dataclasses.replace(case, C=width), HopperOps())

    @pytest.mark.parametrize("width", op.HEAD_DIMS)
    def test_long_rows_are_deterministic(self, width):
        packed = in_runs(2, 2048, 300)
        mask = Mask(causal=True, q_segments=packed, kv_segments=packed)
        case = Case(mask, B=2, L=2048, S=2048, H=4, K=2, C=width)
        for left, right in zip(check(case, HopperOps()), check(case, HopperOps()), strict=True):
            np.testing.assert_array_equal(left, right)


SHAPES = {
    "no mask": Case(Mask(), L=256, S=256, H=4, K=2),
    "causal": Case(Mask(causal=True), L=256, S=256, H=4),
    "all at once": Case(ALL, B=2, L=140, S=260, H=2, softcap=30.0),
}


class TestLowered:
    """Lowering for CUDA on a CPU checks layouts, copies and shared memory (227 KB)."""

    @pytest.mark.parametrize("width", (32, *op.HEAD_DIMS))
    @pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
    def test_three_kernels(self, case, width):
        case = dataclasses.replace(case, C=width)
        traced = case.both(HopperOps()).trace(*case.arrays(), case.mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == 3

    def test_under_vmap(self):
        case = dataclasses.replace(SHAPES["causal"], dtype=jnp.float16)
        given = [jnp.stack([x, x]) for x in case.arrays()]
        mask = Mask(causal=True, kv_length=ints([100], [200]))
        traced = jax.jit(jax.vmap(case.both(HopperOps()))).trace(*given, mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == 3


def like(shape=(1, 128, 2, 64), dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


class TestUnsupported:
    @pytest.mark.parametrize(
        ("q", "k", "mask", "softcap", "platform", "reason"),
        [
            (like(), like(), Mask(), None, "cpu", "NVIDIA.*not on cpu"),
            (like(), like(), Mask(), None, "tpu", "not on tpu"),
            (like(dtype=jnp.float32), like(), Mask(), None, "gpu", "bfloat16 or float16.*float32"),
            (like(), like(dtype=jnp.float16), Mask(), None, "gpu", "float16 keys"),
            (
                like((1, 8, 2, 32)),
                like((1, 8, 2, 32)),
                Mask(),
                None,
                "gpu",
                "slower than plain XLA",
            ),
            (like((1, 8, 2, 136)), like((1, 8, 2, 136)), Mask(), None, "gpu", "up to 128, not 136"),
            (like(), like((1, 0, 2, 64)), Mask(), None, "gpu", "empty"),
            (like(), like(), Mask(window=0), None, "gpu", "window of 1 or more, not 0"),
            (like(), like(), Mask(window_right=-1), None, "gpu", "window of 1 or more, not -1"),
            (like(), like(), Mask(), 0.0, "gpu", "positive softcap"),
        ],
    )
    def test_reason(self, q, k, mask, softcap, platform, reason, monkeypatch):
        fake_gpu(monkeypatch, "9.0", "cuda 13000")
        assert re.search(reason, op.unsupported_reason(q, k, k, mask, softcap, platform))

    @pytest.mark.parametrize(
        ("length", "width", "taken"),
        [
            (256, 32, True),
            (100, 32, True),
            (64, 32, True),
            (48, 32, False),
            (128, 8, True),
            (256, 80, True),
            (200, 80, True),
            (70, 80, False),
            (16, 64, True),  # nothing to pad in the heads
        ],
    )
    def test_heads_are_padded_where_that_is_faster(self, length, width, taken, monkeypatch):
        fake_gpu(monkeypatch, "9.0", "cuda 13000")
        q = like((1, length, 2, width))
        assert (op.unsupported_reason(q, q, q, Mask(), None, "gpu") is None) == taken

    def test_only_compute_capability_9(self, monkeypatch):
        fake_gpu(monkeypatch, "9.0", "cuda 13000")
        assert op.unsupported_reason(like(), like(), like(), Mask(causal=True), None, "gpu") is None
        fake_gpu(monkeypatch, "10.0", "cuda 13000")
        assert "not 10.0" in op.unsupported_reason(like(), like(), like(), Mask(), None, "gpu")

    def test_a_miscompiling_ptxas(self, monkeypatch):
        fake_gpu(monkeypatch, "9.0", "PJRT C API\ncuda 12090")
        assert "12090" in op.unsupported_reason(
            like(), like(), like(), Mask(causal=True), None, "gpu"
        )
        assert op.unsupported_reason(like(), like(), like(), Mask(), None, "gpu") is None

    def test_a_named_implementation_raises(self):
        x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
        with pytest.raises(NotImplementedError, match="mosaic_gpu runs on an NVIDIA GPU"):
            attention(x, x, x, implementation="mosaic_gpu")

    @pytest.mark.parametrize(
        ("scale", "values", "reason"),
        [(0.0, jnp.bfloat16, "positive scale"), (1.0, jnp.float16, "values of the keys' dtype")],
    )
    def test_reasons_that_depend_on_the_call(self, scale, values, reason):
        x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
        with pytest.raises(NotImplementedError, match=reason):
            v = x.astype(values)
            op.run(x, x, v, mask=Mask(), scale=scale, softcap=None, ops=HopperOps())


def fake_gpu(monkeypatch, capability, version):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(compute_capability=capability, client=client)
    monkeypatch.setattr(op.jax, "devices", lambda platform: [device])


def test_block_sizes_fit_the_padding():
    sizes = [backward_dkv.BLOCK_K, *backward_dkv.BLOCK_Q.values()]
    for module in (forward, backward_dq):
        sizes += [module.BLOCK_Q, module.BLOCK_K]
    assert all(op.BLOCK_SIZE % size == 0 for size in sizes)
