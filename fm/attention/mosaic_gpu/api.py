"""The contract."""

from __future__ import annotations

import jax

from fm.attention.mask import Mask


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Same contract as the reference; memory beside the arrays B x H x L float32.

    Raises:
      NotImplementedError: for what `limits.refusal` names; for a scale that is not positive.
    """
    # Pallas takes a third of a second to import, which no other device should pay.
    from fm.attention.mosaic_gpu import machine, run

    chip = machine.HopperOps()
    return run.run(q_BLHC, k_BSKC, v_BSKC, mask=mask, scale=scale, softcap=softcap, machine=chip)
