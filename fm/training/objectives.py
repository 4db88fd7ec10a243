"""Training objectives: causal LM, masked LM and bag of words.

Each sequence takes one objective. Batches are already shuffled, so the first rows take one
objective and the next rows another: exact shares and static shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask
from fm.errors import UserError
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.cross_entropy import fused_linear_cross_entropy
from fm.model.layers import rms_norm
from fm.model.row_mask import row_mask
from fm.model.transformer import forward
from fm.parallel.mesh import constrain_batch, mesh_shard_counts

Batch = dict[str, Any]  # arrays [B, ...]; in multitask training such dicts by group
WeightedSum = tuple[jax.Array, jax.Array]  # weighted sum of nats, sum of weights


@dataclasses.dataclass(frozen=True)
class PretrainingObjective:
    """How causal LM, masked LM and bag-of-words losses are mixed in pretraining.

    The shares add up to 1.

    Attributes:
      causal_lm: share predicting every next token under causal attention. Gives a likelihood and
        samples.
      masked_lm: share predicting masked tokens in place, under bidirectional attention.
      bag_of_words: share (text only) predicting, from the mean output of the visible tokens,
        which tokens are masked, regardless of position (bag-of-words loss: Zhao et al. 2017,
        eq. 6). Masked tokens do not enter the model (He et al. 2021), so it costs
        1 - `mask_ratio` of the other objectives.
      mask_ratio: fraction of a sequence's tokens that are masked.
      frequency_exponent: tokens of a bag have weight frequency ** -exponent, as in word2vec's
        subsampling (Mikolov et al. 2013, eq. 5, with 0.5), so that commas do not dominate.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "next": "causal_lm",
        "masked": "masked_lm",
        "bag": "bag_of_words",
        "hide": "mask_ratio",
        "rarity": "frequency_exponent",
    }

    causal_lm: float = 0.0
    masked_lm: float = 1.0
    bag_of_words: float = 0.0
    mask_ratio: float = 0.5
    frequency_exponent: float = 0.5

    def __post_init__(self):
        shares = (self.causal_lm, self.masked_lm, self.bag_of_words)
        if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6 or not 0.0 < self.mask_ratio < 1.0:
            raise UserError(
                f"objective: causal_lm={self.causal_lm}, masked_lm={self.masked_lm} and "
                f"bag_of_words={self.bag_of_words} must add up to 1, and "
                f"mask_ratio={self.mask_ratio} lie between 0 and 1"
            )


def loss_sums(
    params: dict,
    batch: Batch,
    noise_BL: jax.Array,
    config: ModelConfig,
    objective: PretrainingObjective,
    token_weights_V: jax.Array | None = None,
) -> dict[str, WeightedSum]:
    """Returns (sum of weighted nats, sum of weights) by name of each loss that has batch rows.

    The noise, uniform in 0..1, is the only randomness, so a batch may be split and the sums of its
    parts added. On a mesh the rows of each objective are padded with empty ones of weight 0 until
    they divide. See `fm.training.multitask.loss` for the other arguments.
    """
    functions: dict[str, Callable[[Batch, jax.Array], WeightedSum]] = {
        "causal_lm": lambda rows, _: causal_lm_sums(params, rows, config),
        "masked_lm": lambda rows, noise: masked_lm_sums(
            params, rows, noise, config, objective.mask_ratio
        ),
        "bag_of_words": lambda rows, noise: bag_of_words_sums(
            params, rows, noise, config, objective.mask_ratio, token_weights_V
        ),
    }

    def take(array, rows):
        missing = -(rows.stop - rows.start) % mesh_shard_counts().batch
        padding = [(0, missing), *[(0, 0)] * (array.ndim - 1)]
        return constrain_batch(jnp.pad(array[rows], padding) if missing else array[rows])

    return {
        name: functions[name](
            jax.tree.map(lambda array, rows=rows: take(array, rows), batch), take(noise_BL, rows)
        )
        for name, rows in objective_rows(objective, noise_BL.shape[0]).items()
    }


def objective_rows(objective: PretrainingObjective, batch_size: int) -> dict[str, slice]:
    """Returns {objective: slice of its batch rows} of the objectives with a share.

    Raises:
      UserError: a share rounds to no row.
    """
    slices = _rounded_slices(objective, batch_size)
    empty = [name for name, rows in slices.items() if rows.start >= rows.stop]
    if empty:
        told = ", ".join(f"{name}={getattr(objective, name):g}" for name in slices)
        raise UserError(
            f"objective: of batch_size={batch_size} the shares {told} leave {' and '.join(empty)} "
            "no row; take a larger batch_size or larger shares, or a share of 0"
        )
    return slices


def with_a_row_each(objective: PretrainingObjective, batch_size: int) -> PretrainingObjective:
    """Returns the objective, its shares changed only where one would have no row of the batch.

    Such a share becomes one row, taken from the largest share.

    Raises:
      UserError: the largest share has no row to give.
    """
    slices = _rounded_slices(objective, batch_size)
    counts = {name: rows.stop - rows.start for name, rows in slices.items()}
    empty = [name for name, count in counts.items() if not count]
    largest = max(counts, key=lambda name: counts[name])
    if not empty or counts[largest] <= len(empty):
        objective_rows(objective, batch_size)
        return objective
    counts[largest] -= len(empty)
    counts |= dict.fromkeys(empty, 1)
    return dataclasses.replace(
        objective, **{name: count / batch_size for name, count in counts.items()}
    )


def _rounded_slices(objective: PretrainingObjective, batch_size: int) -> dict[str, slice]:
    """Returns {objective: slice of its batch rows, perhaps empty} of those with a share."""
    first = round(objective.causal_lm * batch_size)
    second = round((objective.causal_lm + objective.masked_lm) * batch_size)
    slices = {
        "causal_lm": slice(0, first),
        "masked_lm": slice(first, second),
        "bag_of_words": slice(second, batch_size),
    }
    return {name: rows for name, rows in slices.items() if getattr(objective, name)}


def mean_loss(
    nats: dict[str, WeightedSum],
    counts: dict[str, jax.Array],
    objective: PretrainingObjective,
    batch: Batch,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss (mean nats per objective, weighted by share of rows) and its metrics.

    Args:
      nats: sums over the batch, or over one part of it.
      counts: sums of weights over the whole batch; the results of its parts then add up to the
        result of the whole.
      objective: what to predict.
      batch: the batch or part, for the shares of its rows.
    """
    B = batch["segments"].shape[0]
    total, metrics = jnp.zeros(()), {}
    for name, rows in objective_rows(objective, B).items():
        metrics[f"{name}_nats"] = nats[name][0] / jnp.maximum(counts[name], 1e-6)
        total += metrics[f"{name}_nats"] * (rows.stop - rows.start) / B
    return total, metrics


def causal_lm_sums(params: dict, batch: Batch, config: ModelConfig) -> WeightedSum:
    """Returns the summed next-token (or patch) loss in nats within segments, and target count.

    Continuous patches are preceded by a start patch, so that the first is predicted too; rows of
    several modalities contain their own. In text, a segment's first token is not predicted.
    """
    if "tokens" not in batch and "modality" not in batch:
        batch = embeddings.prepend_start_patch(batch)
    segments = batch["segments"]
    final_BLD = forward(params, batch, config, mask=row_mask(batch, causal=True))["final"]
    weights = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    if "answer" in batch:
        weights &= batch["answer"][:, 1:]
    targets = {key: batch[key][:, 1:] for key in (*config.modalities, "modality") if key in batch}
    return _weighted_nats(params, final_BLD[:, :-1], targets, weights, config)


def masked_lm_sums(
    params: dict, batch: Batch, noise_BL: jax.Array, config: ModelConfig, mask_ratio: float
) -> WeightedSum:
    """Returns (sum of nats, number) of masked tokens predicted from the rest of their segment.

    Devlin et al. 2018, section 3.1. The tokens of least noise are masked.
    """
    segments = batch["segments"]
    B, L = segments.shape
    k = max(1, round(mask_ratio * L))
    masked_Bk = True
    if "answer" in batch:
        answer_BL = batch["answer"] & (segments > 0)
        noise_BL = noise_BL + ~answer_BL
        num_answers_B1 = jnp.sum(answer_BL, axis=1, keepdims=True)
        masked_Bk = jnp.arange(k) < jnp.round(mask_ratio * num_answers_B1)
    index_Bk = jax.lax.top_k(-noise_BL, k)[1]
    masked_BL = jnp.zeros((B, L), bool).at[jnp.arange(B)[:, None], index_Bk].set(masked_Bk)
    mask = row_mask(batch, causal=False)
    final_BLD = forward(params, batch, config, mask=mask, masked_BL=masked_BL)["final"]
    h_BkD = jnp.take_along_axis(final_BLD, index_Bk[..., None], axis=1)
    targets = _gather(batch, index_Bk)
    return _weighted_nats(params, h_BkD, targets, (targets["segments"] > 0) & masked_Bk, config)


def bag_of_words_sums(
    params: dict,
    batch: Batch,
    noise_BL: jax.Array,
    config: ModelConfig,
    mask_ratio: float,
    token_weights_V: jax.Array | None,
) -> WeightedSum:
    """Returns (summed nats, summed weights) of masked tokens predicted from the mean of the others.

    Rows hold one segment each; the tokens of least noise are visible.
    """
    if "tokens" not in batch or "modality" in batch or token_weights_V is None:
        raise UserError(
            "the objective bag_of_words is for text alone; other modalities take causal_lm and "
            "masked_lm"
        )
    L = batch["segments"].shape[1]
    max_visible = _max_visible(mask_ratio, L)
    valid_BL = batch["segments"] > 0
    index_Bv = jax.lax.top_k(-(noise_BL + ~valid_BL), max_visible)[1]
    num_visible_B1 = jnp.maximum(
        1, jnp.round((1.0 - mask_ratio) * jnp.sum(valid_BL, axis=-1, keepdims=True))
    ).astype(jnp.int32)
    visible_Bv = jnp.arange(max_visible) < num_visible_B1
    inputs = _gather(batch, index_Bv)
    inputs["segments"] = jnp.where(visible_Bv, inputs["segments"], 0)
    mask = Mask(kv_length=num_visible_B1[:, 0])  # the visible tokens come first
    final_BvD = forward(params, inputs, config, mask=mask)["final"]
    weights_Bv = (inputs["segments"] > 0).astype(final_BvD.dtype)
    # Summed in float32 whatever the dtype of the layers.
    sum_BD = jnp.einsum("bv,bvd->bd", weights_Bv, final_BvD, preferred_element_type=jnp.float32)
    summary_BD = rms_norm(sum_BD, config.norm_eps).astype(final_BvD.dtype)
    logits_BV = embeddings.token_logits(params["streams"], summary_BD, config)
    rows_B1 = jnp.arange(valid_BL.shape[0])[:, None]
    visible_BL = jnp.zeros(valid_BL.shape, bool).at[rows_B1, index_Bv].set(visible_Bv)
    weights_BL = (valid_BL & ~visible_BL) * token_weights_V[batch["tokens"]]
    target_logits_BL = jnp.take_along_axis(logits_BV, batch["tokens"], axis=1)
    nats_BL = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True) - target_logits_BL
    return jnp.sum(nats_BL * weights_BL), jnp.sum(weights_BL)


def attention_inputs(
    batch: Batch, objective: PretrainingObjective
) -> dict[str, tuple[int, int, Mask]]:
    """Returns {objective: (rows, tokens in a row, mask)} of a step's attention.

    Args:
      batch: of one group; its arrays or their shapes.
      objective: what is predicted.
    """
    B, L = batch["segments"].shape
    start = int("tokens" not in batch and "modality" not in batch)  # the start patch
    visible = _max_visible(objective.mask_ratio, L)
    lengths: Any = np.zeros(B, np.int32)  # of the host: nothing is computed with them
    inputs = {
        "causal_lm": (L + start, row_mask(batch, causal=True)),
        "masked_lm": (L, row_mask(batch, causal=False)),
        "bag_of_words": (visible, Mask(kv_length=lengths)),
    }
    slices = objective_rows(objective, B)
    return {name: (rows.stop - rows.start, *inputs[name]) for name, rows in slices.items()}


def _max_visible(mask_ratio: float, L: int) -> int:
    """Returns the most tokens of a row that the bag-of-words objective leaves visible."""
    return max(1, round((1.0 - mask_ratio) * L))


def inverse_frequency_weights(counts_V: jax.Array, exponent: float) -> jax.Array:
    """Returns token weights, relative frequency ** -exponent, scaled to mean 1 over the corpus."""
    frequency = counts_V / jnp.sum(counts_V)
    weights = jnp.where(counts_V > 0, jnp.maximum(frequency, 1e-9) ** -exponent, 0.0)
    return weights / jnp.sum(weights * frequency)


def _gather(batch: Batch, index_Bk: jax.Array) -> Batch:
    """Returns the batch's tokens at the given positions of each row."""

    def take(array):
        index = index_Bk.reshape(*index_Bk.shape, *[1] * (array.ndim - 2))
        return jnp.take_along_axis(array, index, axis=1)

    return {key: take(array) for key, array in batch.items() if array.ndim > 1}


def _weighted_nats(
    params: dict, h_BkD: jax.Array, targets: Batch, weights_Bk: jax.Array, config: ModelConfig
) -> WeightedSum:
    """Returns the weighted sum of nats per token, or per number of a patch, and of weights.

    Each prediction uses the head of its target's modality.
    """
    h_TD = h_BkD.reshape(-1, h_BkD.shape[-1])
    weights_T = weights_Bk.reshape(-1).astype(jnp.float32)
    present = embeddings.modalities_in(targets, config)
    total = jnp.zeros(())
    for modality in present:
        own_T = weights_T
        if len(present) > 1:
            modality_T = targets["modality"].reshape(-1)
            own_T = weights_T * (modality_T == config.modalities.index(modality))
        if modality == "tokens":
            head_DV = embeddings.token_head_kernel(params["streams"])
            nats: jax.Array = fused_linear_cross_entropy(
                head_DV, h_TD, targets["tokens"].reshape(-1), own_T, config.arch.logit_softcap
            )
            total += nats
            continue
        P = config.patch_dim(modality)
        values_TP = embeddings.to_unit_range(targets[modality]).reshape(-1, P)
        nats_T = embeddings.gmm_nll(params["streams"], h_TD, values_TP, config, modality) / P
        total += jnp.sum(nats_T * own_T)
    return total, jnp.sum(weights_T)
