"""The contract every implementation keeps."""

from __future__ import annotations

import math

import jax

from fm.attention.choice import choose, platform
from fm.attention.mask import Mask
from fm.attention.mesh import Ways, attend_by_parts, ways
from fm.attention.registry import IMPLEMENTATIONS


def attention(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Scaled dot-product attention.

    Head h reads key head ``h // (H // K)``. Rows that see no key give zeros, in value and
    gradient. Under a mesh each device attends for its own rows and heads (`fm.attention.mesh`).

    Args:
      q_BLHC: queries.
      k_BSKC: keys; K divides H.
      v_BSKC: values.
      mask: who sees whom; everyone everyone when None.
      scale: multiplies the scores, ``1/sqrt(C)`` when None.
      softcap: scores become ``softcap * tanh(scores / softcap)`` when given.
      implementation: a name, or None for the one `choose` picks.

    Returns:
      o_BLHC, in the dtype of the queries.

    Raises:
      ValueError: if shapes do not fit together.
      UserError: if a mesh does not divide the rows or heads.
      NotImplementedError: if the named implementation does not exist or cannot run this case.
    """
    if k_BSKC.shape != v_BSKC.shape or q_BLHC.shape[-1] != k_BSKC.shape[-1]:
        raise ValueError(
            f"attention takes k and v of one shape and one head width, not q {q_BLHC.shape}, "
            f"k {k_BSKC.shape}, v {v_BSKC.shape}"
        )
    if q_BLHC.shape[2] % k_BSKC.shape[2]:
        raise ValueError(f"{k_BSKC.shape[2]} key heads do not divide {q_BLHC.shape[2]} query heads")
    mask = mask or Mask()
    if ways() != Ways():
        return attend_by_parts(
            lambda q, k, v, mask: attention(
                q, k, v, mask=mask, scale=scale, softcap=softcap, implementation=implementation
            ),
            q_BLHC,
            k_BSKC,
            v_BSKC,
            mask,
        )
    name = implementation or choose(q_BLHC, k_BSKC, mask, softcap=softcap)
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"no attention implementation {name!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    chosen = IMPLEMENTATIONS[name]
    refused = chosen.refusal(q_BLHC, k_BSKC, v_BSKC, mask, softcap, platform())
    if refused is not None:
        raise NotImplementedError(f"attention implementation {name!r} cannot run this: {refused}")
    scale = 1.0 / math.sqrt(q_BLHC.shape[-1]) if scale is None else scale
    return chosen.attend(q_BLHC, k_BSKC, v_BSKC, mask=mask, scale=scale, softcap=softcap)
