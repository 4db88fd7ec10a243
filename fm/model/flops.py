"""Floating-point operations of the model, counted by hand: a multiply-add is two.

Counted are the matrix products (Kaplan et al. 2020, table 1, attention included), at the
padded length and without a causal discount, since that is what the kernels run. Normalisation,
softmax and other work per element is left out, as is usual for the share of a peak rate.
"""

from __future__ import annotations

from collections.abc import Sequence

from fm.errors import UserError
from fm.model.config import ModelConfig

TEXT_ONLY = ("tokens",)


def forward_flops(
    config: ModelConfig, length: int, *, num_predictions: int, modalities: Sequence[str] = TEXT_ONLY
) -> float:
    """Of one sequence.

    Args:
      config: the model's.
      length: pieces that enter the layers (L).
      num_predictions: places at which the head is read.
      modalities: of the pieces; each place goes through the embedding and the head of every one.
    """
    D, F, L = config.d_model, config.mlp_dim, length
    H, K, C = config.num_heads, config.num_kv_heads, config.head_dim
    projections = 2 * L * D * C * (2 * H + 2 * K)
    scores = 4 * L * L * H * C
    feed_forward = (6 if config.arch.gated_mlp else 4) * L * D * F
    numbers = [config.patch_dim(name) for name in modalities if name != "tokens"]
    enter = 2 * L * D * sum(numbers)
    heads = [config.num_mixtures * (2 * P + 1) for P in numbers] + [config.vocab_size] * (
        "tokens" in modalities
    )
    leave = 2 * num_predictions * D * sum(heads)
    return float(config.num_layers * (projections + scores + feed_forward) + enter + leave)


def train_flops(
    config: ModelConfig, length: int, *, num_predictions: int, modalities: Sequence[str] = TEXT_ONLY
) -> float:
    """Of one sequence, forward and backward: each product's two gradients cost it once each."""
    return 3.0 * forward_flops(
        config, length, num_predictions=num_predictions, modalities=modalities
    )


def sequence_cost(
    objective: str, length: int, *, mask_ratio: float, has_start_patch: bool = False
) -> tuple[int, int]:
    """Pieces that enter the layers and predictions made, for one training sequence.

    Args:
      objective: "next" predicts every piece; "masked" the hidden ones, in place; "bag" all hidden
        ones at once, which do not enter.
      length: pieces in the sequence (L).
      mask_ratio: share of pieces hidden.
      has_start_patch: whether a start piece leads it, as it does continuous ones; of text, the first token is
        given.

    Raises:
      UserError: for an objective that is not one of these.
    """
    if objective == "next":
        return (length + 1, length) if has_start_patch else (length, length - 1)
    if objective == "masked":
        return length, max(1, round(mask_ratio * length))
    if objective == "bag":
        return max(1, round((1.0 - mask_ratio) * length)), 1
    raise UserError(f"objective {objective!r} is not known; accepted are next, masked, bag")
