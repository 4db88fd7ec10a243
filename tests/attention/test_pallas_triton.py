"""What JAX's Pallas Triton kernels are refused, and that they lower for a GPU."""

import types

import jax
import jax.numpy as jnp
import pytest

from fm.attention import Mask, pallas_triton
from tests.attention.helpers_contract import ints
from tests.attention.helpers_lowering import abstract_gpu


def like(B=2, L=128, H=4, C=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((B, L, H, C), dtype)


SEGMENTS = jnp.zeros((2, 128), jnp.int32)
PACKED = Mask(True, q_segments=SEGMENTS, kv_segments=SEGMENTS, packed=True)


def fake_gpu(monkeypatch, capability):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(pallas_triton.jax, "devices", lambda platform: [device])


@pytest.mark.parametrize(
    ("q", "k", "mask", "softcap", "platform", "words"),
    [
        (like(), like(), Mask(), None, "cpu", "NVIDIA GPU, not cpu"),
        (like(dtype=jnp.float32), like(), Mask(), None, "gpu", "bfloat16, float32"),
        (like(C=136), like(C=136), Mask(), None, "gpu", "up to 128, not 136"),
        (like(L=64), like(), Mask(), None, "gpu", "as many queries as keys, not 64 and 128"),
        (like(), like(), Mask(), 1.0, "gpu", "softcap"),
        (like(), like(), Mask(q_segments=SEGMENTS, kv_segments=SEGMENTS), None, "gpu", "packed"),
        (like(), like(), Mask(kv_length=ints(1, 2)), None, "gpu", "kv_length"),
        (like(), like(), Mask(True, window=3), None, "gpu", "window"),
        (like(), like(), Mask(window_right=3), None, "gpu", "window"),
        (like(), like(), Mask(True, prefix=ints(1, 2)), None, "gpu", "prefix"),
        (like(), like(), Mask(True, q_start=ints(1, 2)), None, "gpu", "q_start"),
        (like(C=32), like(C=32), PACKED, None, "gpu", None),
        (like(), like(H=2), Mask(), None, "gpu", None),
    ],
)
def test_unsupported_reason(q, k, mask, softcap, platform, words, monkeypatch):
    fake_gpu(monkeypatch, "8.6")
    reason = pallas_triton.unsupported_reason(q, k, k, mask, softcap, platform)
    assert reason is None if words is None else words in reason


def test_older_gpus_are_refused(monkeypatch):
    fake_gpu(monkeypatch, "7.5")
    reason = pallas_triton.unsupported_reason(like(), like(), like(), Mask(), None, "gpu")
    assert "8.0 or more, not 7.5" in reason


@pytest.mark.parametrize("C", [32, 64])
@pytest.mark.parametrize("L", [128, 200])
def test_value_and_gradients_lower_for_a_gpu(L, C):
    segments = jnp.arange(L)[None] // 50 + jnp.zeros((2, 1), jnp.int32)
    mask = Mask(True, q_segments=segments, kv_segments=segments, packed=True)

    def loss(q, k, v, mask):
        o = pallas_triton.attend(q, k, v, mask=mask, scale=0.1, softcap=None)
        return jnp.sum(o.astype(jnp.float32))

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    with abstract_gpu():
        traced = gradient.trace(like(L=L, C=C), like(L=L, H=2, C=C), like(L=L, H=2, C=C), mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @") >= 3  # forward, its sums for the gradient, and the gradient
