"""Arguments passed to cuDNN, where the XLA backend would tolerate more."""

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask, cudnn
from tests.attention.helpers_contract import Case, arrays, ints


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
