"""The attention mask of the rows of a batch, from what is known when a program is traced.

Fewer attention kernels take segments than take no mask or a length. So a mask has segments only
where rows may hold several documents; whether they may is read off a batch's keys and never off its
arrays, which are unknown when the program is traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fm.attention import Mask


def row_mask(batch: Mapping[str, Any], *, causal: bool) -> Mask:
    """Returns the mask under which tokens attend to their own document only.

    * Patches of one modality: a row is one whole example, and nothing is hidden.
    * A batch with `length`: a row is one document of `length` tokens, then padding. A causal token
      comes before all padding; otherwise `kv_length` hides it.
    * Other batches: rows are packed, and `segments` keep their documents apart.

    What padding attends to differs between the three and must not be read.

    Args:
      batch: arrays by name, as for `fm.training.multitask.loss`, or their shapes. Each of its
        `segments` is one run of consecutive positions.
      causal: as in `Mask`; a `prefix` of the batch is then visible to all of its document.
    """
    prefix = batch.get("prefix") if causal else None
    if "tokens" not in batch and "modality" not in batch:
        return Mask(causal=causal, prefix=prefix)
    if "length" in batch:
        needed = not causal or prefix is not None
        return Mask(causal=causal, prefix=prefix, kv_length=batch["length"] if needed else None)
    segments = batch["segments"]
    return Mask(
        causal=causal,
        prefix=prefix,
        q_segments=segments,
        kv_segments=segments,
        packed=True,
    )
