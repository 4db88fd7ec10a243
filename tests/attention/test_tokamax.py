"""What is passed to tokamax, what is refused, and its kernel lowered for a GPU."""

import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, tokamax
from tests.attention import helpers_textbook as textbook
from tests.attention.helpers_contract import CASES, ints
from tests.attention.helpers_lowering import abstract_gpu

there = importlib.util.find_spec("tokamax") is not None


def like(B=2, L=128, H=4, C=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((B, L, H, C), dtype)


SIMPLE = {name for name, case in CASES.items() if case.mask.q_segments is None or case.mask.packed}


@pytest.mark.parametrize("which", sorted(SIMPLE))
def test_ranges_say_all_that_a_mask_can(which):
    case = CASES[which]
    B, L, S = case.B, case.L, case.S
    first, end = tokamax.key_ranges(case.mask, L, S)
    seen = np.ones((B, L, S), bool)
    if first is not None and end is not None:
        j = np.arange(S)
        seen &= (j >= np.asarray(first)[..., None]) & (j < np.asarray(end)[..., None])
    if tokamax._only_causal(case.mask):
        seen &= np.arange(S) <= np.arange(L)[:, None]
    np.testing.assert_array_equal(seen, textbook.visible(case.mask, B, L, S))


@pytest.mark.parametrize("mask", [Mask(), Mask(causal=True), Mask(prefix=ints(1, 2))])
def test_the_commonest_masks_take_no_array(mask):
    assert tokamax.key_ranges(mask, 4, 4) == (None, None)


def fake(monkeypatch, capability, installed=True):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(tokamax.jax, "devices", lambda platform: [device])
    monkeypatch.setattr(
        tokamax.importlib.util, "find_spec", lambda name: object() if installed else None
    )


SEGMENTS = jnp.zeros((2, 128), jnp.int32)


@pytest.mark.parametrize(
    ("q", "mask", "softcap", "platform", "capability", "words"),
    [
        (like(), Mask(), None, "tpu", "8.0", "NVIDIA GPU, not tpu"),
        (like(), Mask(), None, "gpu", "7.5", "8.0 or more, not 7.5"),
        (like(dtype=jnp.float32), Mask(), None, "gpu", "8.0", "not float32"),
        (like(C=256), Mask(), None, "gpu", "10.0", "up to 128, not 256"),
        (like(), Mask(q_segments=SEGMENTS, kv_segments=SEGMENTS), None, "gpu", "8.0", "packed"),
        (like(), Mask(), 2.0, "gpu", "8.0", "no softcap"),
        (like(), Mask(), 2.0, "gpu", "12.0", "no softcap"),
        (like(), Mask(), 2.0, "gpu", "10.0", None),
        (
            like(C=32),
            Mask(True, q_segments=SEGMENTS, kv_segments=SEGMENTS, packed=True),
            None,
            "gpu",
            "8.6",
            None,
        ),
        (
            like(),
            Mask(True, window=3, prefix=ints(1, 2), kv_length=ints(3, 4)),
            None,
            "gpu",
            "9.0",
            None,
        ),
    ],
)
def test_unsupported_reason(q, mask, softcap, platform, capability, words, monkeypatch):
    fake(monkeypatch, capability)
    reason = tokamax.unsupported_reason(q, q, q, mask, softcap, platform)
    assert reason is None if words is None else words in reason


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    fake(monkeypatch, "8.0", installed=False)
    reason = tokamax.unsupported_reason(like(), like(), like(), Mask(), None, "gpu")
    assert 'pip install "fm[tokamax]"' in reason


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("8.0", "triton"),
        ("8.9", "triton"),
        ("9.0", "mosaic_gpu"),
        ("10.0", "mosaic_gpu"),
        ("12.0", "triton"),
    ],
)
def test_kernel_name(capability, name):
    assert tokamax.kernel_name(capability) == name


@pytest.mark.skipif(not there, reason="needs tokamax")
@pytest.mark.parametrize("C", [32, 64])
@pytest.mark.parametrize(
    "mask",
    [
        Mask(causal=True),
        Mask(causal=True, q_segments=SEGMENTS, kv_segments=SEGMENTS, packed=True),
        Mask(window=16, window_right=16, kv_length=ints(100, 128)),
    ],
    ids=["causal", "packed", "window both ways"],
)
def test_the_triton_kernel_lowers_for_a_gpu(mask, C):
    """Value and gradients, on a machine without one."""
    import tokamax as library

    def loss(q, k, v, mask):
        o = tokamax.attend(q, k, v, mask=mask, scale=0.1, softcap=None, kernel="triton")
        return jnp.sum(o.astype(jnp.float32))

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    with abstract_gpu(), library.config.cross_compile(True):
        traced = gradient.trace(like(C=C), like(H=2, C=C), like(H=2, C=C), mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text
