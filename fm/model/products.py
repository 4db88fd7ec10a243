"""Products with a kernel, which may lie turned round for the sake of a few rows.

On a CPU a product with one row or a few is bound by the memory, and XLA reads a kernel that lies
[out, in] as the left side at up to twice the rate of one that lies [in, out] on the right, which
it rearranges first. A bfloat16 kernel it converts anew, whole, for every product: such a kernel is
therefore held in float32 (the same numbers; XLA:CPU multiplies in float32 either way).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Up to so many rows the kernel is the left side, in so many groups of outputs: of a single one XLA
# makes a product with the sides exchanged, to save turning the result.
_FEW, _GROUPS = 64, 4


class Turned(NamedTuple):
    """A kernel [in, out] that lies as [out, in]."""

    w_OI: jax.Array


Kernel = jax.Array | Turned


def turn(kernel_IO: jax.Array) -> Turned:
    """The same kernel turned round, in float32."""
    return Turned(jnp.asarray(kernel_IO.T, jnp.float32))


def times(x: jax.Array, kernel: Kernel) -> jax.Array:
    """x [..., in] times a kernel of any float dtype, in the dtype of x.

    Args:
      x: what is multiplied.
      kernel: `Turned`, or an array whose axes flatten to [in, out].
    """
    if not isinstance(kernel, Turned):
        return x @ kernel.astype(x.dtype).reshape(x.shape[-1], -1)
    O, I = kernel.w_OI.shape  # noqa: E741
    x_TI = x.reshape(-1, I).astype(kernel.w_OI.dtype)
    if len(x_TI) == 1 or len(x_TI) > _FEW or O % _GROUPS:
        y_TO = jnp.einsum("ti,oi->to", x_TI, kernel.w_OI)
    else:
        # G is a group of outputs, P an output in it.
        w_GPI = kernel.w_OI.reshape(_GROUPS, -1, I)
        y_GTP = jnp.einsum("ti,gpi->gtp", x_TI, w_GPI)
        y_TO = jnp.swapaxes(y_GTP, 0, 1).reshape(-1, O)
    return y_TO.reshape(*x.shape[:-1], O).astype(x.dtype)
