"""The contract for each implementation; kernels of other devices in their interpreters."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from fm.attention import cudnn, pallas_triton, splash, tokamax, xla_chunked, xla_tiled
from fm.attention.api import Implementation, default_platform
from tests.attention.helpers_contract import Contract, as_users_do


class TestReference(Contract):
    implementation = "reference"


class TestXlaTiled(Contract):
    implementation = "xla_tiled"
    compiled = staticmethod(as_users_do)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several batch rows, heads, blocks and spans, and a few blocks to a span."""
    monkeypatch.setattr(xla_tiled, "_TILE_SCORES", 32)
    monkeypatch.setattr(xla_tiled, "_TILE_ROWS", 2)
    monkeypatch.setattr(xla_tiled, "_MAX_SPANS", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
class TestXlaTiledInSmallTiles(Contract):
    implementation = "xla_tiled in small tiles"
    override = Implementation(xla_tiled.attend)


class TestXlaChunkedInSmallBlocks(Contract):
    implementation = "xla_chunked by 4"
    override = Implementation(functools.partial(xla_chunked.attend, block_size=4))


class TestDecode(Contract):
    implementation = "decode"


@pytest.mark.slow
class TestSplashInterpreted(Contract):
    implementation = "splash, interpreted"
    override = Implementation(
        functools.partial(splash.attend, block_size=128, interpret=True),
        lambda q, k, v, mask, softcap, _: splash.unsupported_reason(q, k, v, mask, softcap, "tpu"),
    )

    def unsupported(self, case):
        mask = case.mask
        if mask.causal and mask.prefix is not None:
            return "prefix"
        return "q_start" if mask.q_start is not None and mask.is_positional() else None


def _halves(*arrays):
    return [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in arrays]


@pytest.mark.slow
class TestPallasTritonInterpreted(Contract):
    """The kernels that JAX has, step by step; in float32, to see what they compute."""

    implementation = "pallas_triton, interpreted"
    repeated = "packed, causal"
    # It takes no key lengths.
    test_a_row_without_visible_keys_is_zero_in_value_and_gradient = None
    test_hidden_keys_get_no_gradient = None
    test_values_of_hidden_keys_do_not_matter = None
    override = Implementation(
        functools.partial(pallas_triton.attend, interpret=True),
        lambda q, k, v, mask, softcap, _: pallas_triton.unsupported_inputs(
            *_halves(q, k, v), mask, softcap
        ),
    )

    def unsupported(self, case):
        mask = case.mask
        if case.L != case.S:
            return "as many queries as keys"
        if case.softcap is not None:
            return "softcap"
        if mask.q_segments is not None and not mask.packed:
            return "same segments"
        if mask.kv_length is not None:
            return "kv_length"
        if mask.window is not None or mask.window_right is not None:
            return "window"
        if mask.causal and mask.prefix is not None:
            return "prefix"
        return "q_start" if mask.causal and mask.q_start is not None else None


@pytest.mark.skipif(importlib.util.find_spec("tokamax") is None, reason="needs tokamax")
class TestTokamaxMapping(Contract):
    """The ranges of keys passed to tokamax, run by its plain XLA implementation."""

    implementation = "tokamax, by xla"
    override = Implementation(
        functools.partial(tokamax.attend, kernel="xla"),
        lambda q, k, v, mask, softcap, _: tokamax.unsupported_inputs(
            *_halves(q, k, v), mask, softcap, "triton" if softcap is None else "mosaic_gpu"
        ),
    )

    def unsupported(self, case):
        segments = case.mask.q_segments is not None and not case.mask.packed
        return "packed" if segments else None


def _as_if_16_bit(q, k, v, mask, softcap, _):
    q, k, v = _halves(q, k, v)
    return cudnn.unsupported_reason(q, k, v, mask, softcap, "gpu")


class CudnnContract(Contract):
    def supported(self, case):
        if case.mask.q_segments is not None:
            return case
        return dataclasses.replace(case, L=case.L + case.L % 2, S=case.S + case.S % 2)

    def unsupported(self, case):
        mask = case.mask
        if case.L % 2 or case.S % 2:
            return "even lengths"
        if case.softcap is not None:
            return "softcap"
        if mask.q_segments is not None:
            return "segments"
        if mask.causal and mask.prefix is not None:
            return "prefix"
        if mask.q_start is not None and mask.is_positional():
            return "q_start"
        if mask.window_right:
            return "window_right"
        if mask.window and not mask.causal:
            return "without causality"
        if mask.window and (mask.kv_length is not None or case.L > case.S):
            return "a key for every query"
        return None


class TestCudnnMapping(CudnnContract):
    """The arguments passed to cuDNN, run by the XLA backend of the same function."""

    implementation = "cudnn, by xla"
    override = Implementation(functools.partial(cudnn.attend, backend="xla"), _as_if_16_bit)


@pytest.mark.skipif(default_platform() != "gpu", reason="needs an NVIDIA GPU")
class TestCudnn(CudnnContract):
    implementation = "cudnn"
    dtype = jnp.bfloat16
