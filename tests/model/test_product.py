"""That the linear map's own derivative is JAX's, to the bit, and what it is there for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.model.layers import matmul


def arrays(dtype, *shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def gradients(product, x, kernel, dy):
    def value(x, kernel):
        return jnp.sum((product(x, kernel) * dy).astype(jnp.float32))

    return jax.jit(jax.grad(value, argnums=(0, 1)))(x, kernel)


def plain(x, kernel):
    return x @ kernel.astype(x.dtype).reshape(x.shape[-1], -1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [(24,), (3, 8), (3, 1)], ids=str)
def test_gradient_equals_that_derived_by_jax(rows, dtype):
    x, dy = arrays(dtype, (*rows, 32), (*rows, 48))
    (kernel,) = arrays(jnp.float32, (32, 6, 8))
    got = gradients(matmul, x, kernel, dy)
    want = gradients(plain, x, kernel, dy)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_gradient_of_many_kernels_at_once_is_that_of_each():
    x, dy, kernels = arrays(jnp.float32, (2, 3, 8, 32), (2, 3, 8, 48), (2, 32, 48))
    each = [gradients(matmul, *trial) for trial in zip(x, kernels, dy, strict=True)]
    together = jax.vmap(lambda *trial: gradients(matmul, *trial))(x, kernels, dy)
    for n, (dx, dkernel) in enumerate(each):
        np.testing.assert_allclose(together[0][n], dx, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(together[1][n], dkernel, rtol=1e-5, atol=1e-5)


def test_no_operand_is_stored_transposed_on_a_cpu():
    """The reason for the derivative: in a program with a nonlinear map before and after."""
    x, up, down = arrays(jnp.float32, (4, 64, 32), (32, 128), (128, 32))

    def value(up, down):
        return jnp.sum(jnp.sin(matmul(jnp.square(jax.nn.relu(matmul(x, up))), down)))

    program = jax.jit(jax.grad(value, argnums=(0, 1))).lower(up, down).compile().as_text()
    assert "f32[256,128]" in program
    assert "f32[128,256]" not in program
