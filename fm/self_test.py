"""Known miscompiled programs, compiled and run to see whether this machine gets them right."""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError

# Relative; a right float32 result differs by less than 1e-5, the known faults by 2e-3 or more.
_TOLERANCE = 1e-4


@functools.cache
def check_reductions() -> None:
    """Compares reductions that a jaxlib release got wrong with NumPy's in float64, once a process.

    Raises:
      UserError: a result is wrong, so no result of this installation can be trusted.
    """
    for name, error in reduction_errors().items():
        if not error < _TOLERANCE:
            raise UserError(
                f"JAX {jax.__version__} computes {name} wrongly here (relative error "
                f"{error:.1g}, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}); "
                "leave --xla_cpu_experimental_ynn_fusion_type unset or empty, or use another jaxlib"
            )


def reduction_errors() -> dict[str, float]:
    """Returns the largest relative error of each known case on the default device, by name."""
    rng = np.random.default_rng(0)
    # jax issue 39103: in jaxlib 0.10.2 wrong from 32,769 rows on.
    rows = rng.uniform(1.0, 2.0, (32_769, 3)).astype(np.float32)
    matrix = rng.uniform(1.0, 2.0, (3, 3)).astype(np.float32)
    norms = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    expected = np.square(rows.astype(np.float64) @ matrix.T.astype(np.float64)).sum(-1)
    return {
        "squared norms of 32,769 matrix-vector products": float(
            np.max(np.abs(np.asarray(norms, np.float64) / expected - 1.0))
        )
    }
