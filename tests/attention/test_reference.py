"""`attention_weights` times the values is the output of every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, attention
from fm.attention.api import IMPLEMENTATIONS
from fm.attention.reference import attention_weights
from tests.attention import helpers_textbook as textbook
from tests.attention.helpers_contract import CASES, arrays, assert_close, ints

EVERYWHERE = (
    "reference",
    "xla_tiled",
    "xla_chunked",
)  # the others may refuse a case, with a reason


def options(case):
    return {"mask": case.mask, "scale": case.scale, "softcap": case.softcap}


def compiled(case):
    return jax.jit(lambda q, k: attention_weights(q, k, **options(case)))


def assert_output_is_their_mean(name, case, dtype, rtol):
    """The implementation's output against the values under the weights, in float64."""
    q, k, v, _ = arrays(case, dtype)
    kernel = jax.jit(lambda q, k, v: attention(q, k, v, implementation=name, **options(case)))
    try:
        got = np.asarray(kernel(q, k, v), np.float64)
    except NotImplementedError as error:
        assert name not in EVERYWHERE, f"{name} must run everything: {error}"
        pytest.skip(str(error))
    w = np.asarray(compiled(case)(q, k), np.float64)
    v_BSHC = np.repeat(np.asarray(v, np.float64), case.H // case.K, axis=2)
    want = np.einsum("bhls,bshc->blhc", w, v_BSHC)
    size = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * size)


# The others are the textbook's, as these are (test_implementations.py): again for each is slow.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "xla_tiled" else pytest.mark.slow)
        for name in IMPLEMENTATIONS
    ],
)
class TestEveryImplementation:
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_weights_times_values_are_the_output(self, name, case):
        assert_output_is_their_mean(name, case, jnp.float32, case.rtol)

    @pytest.mark.parametrize("which", ["two key heads", "causal segments"])
    def test_bfloat16_is_accurate_to_its_precision(self, name, which):
        assert_output_is_their_mean(name, CASES[which], jnp.bfloat16, 3e-2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_sum_to_one_or_zero_and_hidden_keys_get_no_weight(case):
    q, k, _, _ = arrays(case)
    w = np.asarray(compiled(case)(q, k))
    assert w.shape == (case.B, case.H, case.L, case.S) and w.dtype == np.float32
    seen = textbook.visible(case.mask, case.B, case.L, case.S)[:, None]
    rows = np.broadcast_to(seen.any(-1), w.shape[:3])
    np.testing.assert_allclose(w.sum(-1), rows, atol=2e-6)
    assert w.min() >= 0 and not np.any(w[np.broadcast_to(~seen, w.shape)])


@pytest.mark.parametrize("which", ["causal segments", "softcap", "some rows see nothing"])
def test_gradients_match_the_textbook(which):
    case = CASES[which]
    q, k, v, do = arrays(case)

    def output(q, k, v):
        w_BHLS = attention_weights(q, k, **options(case))
        return jnp.einsum("BHLS,BSHC->BLHC", w_BHLS, v, precision="highest")

    @jax.jit
    def both(q, k, v, do):
        o, backward = jax.vjp(output, q, k, v)
        return o, *backward(do)

    seen = textbook.visible(case.mask, case.B, case.L, case.S)
    want = textbook.attend(q, k, v, do, seen, case.C**-0.5, case.softcap)
    assert_close(both(q, k, v, do), want, 2e-5)


def test_low_precision_inputs_give_float32_weights():
    q, k, _, _ = arrays(CASES["causal"], jnp.bfloat16)
    w = compiled(CASES["causal"])(q, k)
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(w).sum(-1), 1.0, atol=2e-6)


def test_by_hand():
    q, k = jnp.zeros((1, 2, 1, 4)), jnp.zeros((1, 3, 1, 4))
    mask = Mask(causal=True, q_start=ints(-1))
    np.testing.assert_array_equal(attention_weights(q, k, mask=mask)[0, 0], [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(attention_weights(q, k)[0, 0], np.full((2, 3), 1 / 3), rtol=1e-6)
    # Scores 0 and ln 3: a quarter and three quarters.
    k = k.at[0, 1, 0, 0].set(np.log(3.0))
    w = attention_weights(q.at[...].set(1.0), k, mask=Mask(kv_length=ints(2)), scale=1.0)
    np.testing.assert_allclose(w[0, 0, 0], [0.25, 0.75, 0.0], rtol=1e-6)
    # The default scale is the contract's, 1/sqrt(C): half of ln 3 here.
    w = attention_weights(q.at[...].set(1.0), k, mask=Mask(kv_length=ints(2)))
    np.testing.assert_allclose(w[0, 0, 0, 1] / w[0, 0, 0, 0], np.sqrt(3.0), rtol=1e-6)
