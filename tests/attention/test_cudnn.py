"""Arguments passed to cuDNN, where the XLA backend would tolerate more."""

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask, cudnn
from tests.attention.helpers_contract import Case, arrays, ints


def test_heads_are_padded_to_a_multiple_of_8(monkeypatch):
    """With zeros; what comes back for them is cut off."""
    shapes = []

    def kernel(q, k, v, **_):
        shapes.extend(x.shape[-1] for x in (q, k, v))
        assert not np.any(np.asarray(q, np.float32)[..., 12:])
        return v + 1

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q, k, v, _ = arrays(Case(C=12), jnp.bfloat16)
    o = cudnn.attend(q, k, v, mask=Mask(), scale=0.5, softcap=None)
    assert shapes == [16, 16, 16]
    np.testing.assert_array_equal(o, v + 1)


def test_cudnn_never_sees_a_row_without_keys(monkeypatch):
    """Softmax over nothing is NaN in some versions: the row gets a key, and zeros after."""
    asked = {}

    def kernel(q, k, v, **rest):
        asked.update(rest)
        return jnp.ones_like(q)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q, k, v, _ = arrays(Case(B=3), jnp.bfloat16)
    mask = Mask(causal=True, kv_length=ints(-1, 5, 20))
    o = cudnn.attend(q, k, v, mask=mask, scale=0.5, softcap=None)
    assert asked.pop("key_value_seq_lengths").tolist() == [1, 5, 7]
    assert asked == {
        "scale": 0.5,
        "is_causal": True,
        "local_window_size": None,
        "implementation": "cudnn",
    }
    assert o.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(o, np.float32).max((1, 2, 3)), [0, 1, 1])
    np.testing.assert_array_equal(np.asarray(o, np.float32).min((1, 2, 3)), [0, 1, 1])
