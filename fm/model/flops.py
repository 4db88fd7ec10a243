"""Analytic FLOPs of the model; a multiply-add counts as two.

Matrix products count (Kaplan et al. 2020, table 1, attention included), at the padded length and
without a causal discount, since that is what the kernels run; of sliding layers the keys within the
window count. Normalization, softmax and other
elementwise work does not, as is usual for MFU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.stems import CONVOLUTION_WIDTH, CONVOLUTIONS, EncoderConfig

TEXT_ONLY = ("tokens",)


def forward_flops(
    config: ModelConfig,
    length: int,
    *,
    num_predictions: int,
    modalities: Sequence[str] = TEXT_ONLY,
    causal: bool = True,
) -> float:
    """Returns the FLOPs of one forward pass over one sequence, its output heads included.

    Args:
      length: tokens that enter the layers (L).
      num_predictions: positions at which the heads are read.
      modalities: present in the batch; every position goes through the embedding and the head of
        each of them.
      causal: whether the window of sliding layers lies behind a query alone, or on both its sides.
    """
    D, F, L = config.d_model, config.mlp_dim, length
    H, K, C = config.num_heads, config.num_kv_heads, config.head_dim
    projections = 2 * L * D * C * (2 * H + 2 * K)
    window = config.arch.sliding_window * (1 if causal else 2) - (not causal)
    keys = {"full": L, "sliding": min(L, window)}
    scores = sum(4 * L * keys[kind] * H * C for kind in config.layer_kinds)
    mlp = (6 if config.arch.gated_mlp else 4) * L * D * F
    patch_dims = [config.patch_dim(name) for name in modalities if name != "tokens"]
    embedding = 2 * L * D * sum(patch_dims)
    head_dims = [config.num_mixtures * (2 * P + 1) for P in patch_dims]
    head_dims += [config.vocab_size] * ("tokens" in modalities)
    heads = 2 * num_predictions * D * sum(head_dims)
    return float(config.num_layers * (projections + mlp) + scores + embedding + heads)


def train_flops(config: ModelConfig, length: int, **options: Any) -> float:
    """Returns the FLOPs of one forward and backward pass over one sequence, 3x the forward pass.

    The options are those of `forward_flops`.
    """
    return 3.0 * forward_flops(config, length, **options)


def stem_flops(config: EncoderConfig) -> float:
    """Returns the FLOPs of an encoder's stem for one image or sound."""
    stem, D = config.stem, config.d_model
    if stem.kind == CONVOLUTIONS:
        frames = stem.input_shape[0]
        return 2.0 * CONVOLUTION_WIDTH * D * (frames * stem.channels + stem.num_patches * D)
    return 2.0 * stem.num_patches * stem.patch[0] * stem.patch[1] * stem.channels * D


def input_and_prediction_counts(
    objective: str, length: int, *, mask_ratio: float, has_start_patch: bool = False
) -> tuple[int, int]:
    """Returns (tokens that enter the layers, predictions made) for one training sequence.

    Args:
      objective: "causal_lm" predicts every token; "masked_lm" the masked ones, in place;
        "bag_of_words" all removed ones at once.
      length: tokens in the sequence (L).
      mask_ratio: fraction of tokens masked or removed.
      has_start_patch: whether a start patch precedes the sequence, as with continuous patches; the
        first token of a text is given and not predicted.

    Raises:
      UserError: unknown objective.
    """
    if objective == "causal_lm":
        return (length + 1, length) if has_start_patch else (length, length - 1)
    if objective == "masked_lm":
        return length, max(1, round(mask_ratio * length))
    if objective == "bag_of_words":
        return max(1, round((1.0 - mask_ratio) * length)), 1
    raise UserError(
        f"objective {objective!r} is unknown; accepted are causal_lm, masked_lm, bag_of_words"
    )
