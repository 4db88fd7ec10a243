"""What pretraining asks of the model: the next piece, the hidden ones, or the bag of them.

The objective is drawn per sequence. Rows reach this file already shuffled, so the first rows of
a batch take one objective and the following ones another: exact shares, static shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fm.attention import Mask
from fm.errors import UserError
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.cross_entropy import fused_linear_cross_entropy
from fm.model.layers import rms_norm
from fm.model.transformer import forward
from fm.parallel.mesh import constrain_batch, mesh_shards

Batch = dict[str, jax.Array]
WeightedSum = tuple[jax.Array, jax.Array]  # weighted sum of nats, sum of weights


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which predictions are asked for; the shares of sequences add up to 1.

    Attributes:
      causal_lm: share predicting every next piece under causal attention. Gives a likelihood and
        samples.
      masked_lm: share predicting hidden pieces in place, under bidirectional attention.
      bag_of_words: share (text only) predicting, from the mean of the visible pieces alone, which tokens
        are hidden, wherever they stand (bag-of-words loss: Zhao et al. 2017, eq. 6). Hidden
        pieces do not enter the model (He et al. 2021), so it costs 1 - `mask_ratio` of the others.
      mask_ratio: share of a sequence's pieces that are hidden.
      frequency_exponent: a bag's tokens weigh frequency ** -rarity, as in word2vec's subsampling (Mikolov et
        al. 2013, eq. 5, with 0.5), so the bag is not all commas.
    """

    causal_lm: float = 0.0
    masked_lm: float = 1.0
    bag_of_words: float = 0.0
    mask_ratio: float = 0.5
    frequency_exponent: float = 0.5

    def __post_init__(self):
        shares = (self.causal_lm, self.masked_lm, self.bag_of_words)
        if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6 or not 0.0 < self.mask_ratio < 1.0:
            raise UserError(
                f"objective shares causal_lm={self.causal_lm}, masked_lm={self.masked_lm}, bag_of_words={self.bag_of_words} must "
                f"add up to 1, and mask_ratio={self.mask_ratio} lie between 0 and 1"
            )


def loss_sums(
    params: dict,
    batch: Batch,
    noise_BL: jax.Array,
    config: ModelConfig,
    objective: Objective,
    token_weights_V: jax.Array | None = None,
) -> dict[str, WeightedSum]:
    """Sum of nats and sum of weights of each objective that has rows in the batch.

    The noise, uniform in 0..1, is the only source of chance, so rows may be taken apart and
    their sums added up: nothing changes. Other arguments as for `fm.training.multitask.loss`.
    On a mesh the rows of each objective are filled up with empty ones, which weigh nothing, until
    they divide.
    """
    tasks: dict[str, Callable[[Batch, jax.Array], WeightedSum]] = {
        "next": lambda rows, _: causal_lm_sums(params, rows, config),
        "masked": lambda rows, noise: masked_lm_sums(
            params, rows, noise, config, objective.mask_ratio
        ),
        "bag": lambda rows, noise: bag_of_words_sums(
            params, rows, noise, config, objective.mask_ratio, token_weights_V
        ),
    }

    def rows(value, at):
        over = -(at.stop - at.start) % mesh_shards().batch
        empty = [(0, over), *[(0, 0)] * (value.ndim - 1)]
        return constrain_batch(jnp.pad(value[at], empty) if over else value[at])

    return {
        name: tasks[name](
            jax.tree.map(lambda value, at=at: rows(value, at), batch), rows(noise_BL, at)
        )
        for name, at in objective_rows(objective, noise_BL.shape[0]).items()
    }


def objective_rows(objective: Objective, batch_size: int) -> dict[str, slice]:
    """Which rows of a batch each objective takes; one without a row is left out."""
    first = round(objective.causal_lm * batch_size)
    second = round((objective.causal_lm + objective.masked_lm) * batch_size)
    rows = {
        "next": slice(0, first),
        "masked": slice(first, second),
        "bag": slice(second, batch_size),
    }
    return {name: at for name, at in rows.items() if at.start < at.stop}


def mean_loss(
    nats: dict[str, WeightedSum], counts: dict[str, jax.Array], objective: Objective, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its metrics from `sums`.

    Args:
      nats: sums over the batch, or over a part of one.
      counts: sums of weights over the whole batch; the results of its parts then add up to the
        result of the whole.
      objective: see `Objective`.
      batch: the batch or part, for the shares of its rows.
    """
    B = batch["segments"].shape[0]
    total, metrics = jnp.zeros(()), {}
    for name, at in objective_rows(objective, B).items():
        metrics[f"{name}_nats"] = nats[name][0] / jnp.maximum(counts[name], 1e-6)
        total += metrics[f"{name}_nats"] * (at.stop - at.start) / B
    return total, metrics


def causal_lm_sums(params: dict, batch: Batch, config: ModelConfig) -> WeightedSum:
    """Nats of every piece given those before it in its segment.

    Continuous pieces are led by a start piece, so that the first of them is predicted too; rows
    of several streams bring their own. Of text, a segment's first token (BOS, or the first of a
    later chunk) is given.
    """
    if "tokens" not in batch and "modality" not in batch:
        batch = embeddings.prepend_start_patch(batch)
    segments, prefix = batch["segments"], batch.get("prefix")
    mask = Mask(causal=True, prefix=prefix, q_segments=segments, kv_segments=segments)
    final_BLD = forward(params, batch, config, mask=mask)["final"]
    weights = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    if "answer" in batch:
        weights &= batch["answer"][:, 1:]
    targets = {key: batch[key][:, 1:] for key in (*config.modalities, "modality") if key in batch}
    return _nats(params, final_BLD[:, :-1], targets, weights, config)


def masked_lm_sums(
    params: dict, batch: Batch, noise_BL: jax.Array, config: ModelConfig, mask_ratio: float
) -> WeightedSum:
    """Nats of the hidden pieces given all others of the segment (Devlin et al. 2018, sec. 3.1).

    Hidden are the pieces of least noise.
    """
    segments = batch["segments"]
    B, L = segments.shape
    k = max(1, round(mask_ratio * L))
    hidden_Bk = True
    if "answer" in batch:
        asked_BL = batch["answer"] & (segments > 0)
        noise_BL = noise_BL + ~asked_BL
        hidden_Bk = jnp.arange(k) < jnp.round(mask_ratio * jnp.sum(asked_BL, axis=1, keepdims=True))
    places_Bk = jnp.argsort(noise_BL, axis=-1)[:, :k]
    hidden_BL = jnp.zeros((B, L), bool).at[jnp.arange(B)[:, None], places_Bk].set(hidden_Bk)
    mask = Mask(q_segments=segments, kv_segments=segments)
    final_BLD = forward(params, batch, config, mask=mask, masked_BL=hidden_BL)["final"]
    h_BkD = jnp.take_along_axis(final_BLD, places_Bk[..., None], axis=1)
    targets = _at(batch, places_Bk)
    return _nats(params, h_BkD, targets, (targets["segments"] > 0) & hidden_Bk, config)


def bag_of_words_sums(
    params: dict,
    batch: Batch,
    noise_BL: jax.Array,
    config: ModelConfig,
    mask_ratio: float,
    token_weights_V: jax.Array | None,
) -> WeightedSum:
    """Nats of the hidden tokens given the mean of the visible ones' outputs.

    Rows hold one segment each; visible are its pieces of least noise.
    """
    if "tokens" not in batch or "modality" in batch or token_weights_V is None:
        raise UserError("the bag objective is for text alone; other formats take next and masked")
    L = batch["segments"].shape[1]
    visible = max(1, round((1.0 - mask_ratio) * L))
    filled_BL = batch["segments"] > 0
    # Of the noise's order only its head is needed: a whole sort would run on one core.
    places_Bv = jax.lax.top_k(-(noise_BL + ~filled_BL), visible)[1]
    shown_B1 = jnp.maximum(
        1, jnp.round((1.0 - mask_ratio) * jnp.sum(filled_BL, axis=-1, keepdims=True))
    ).astype(jnp.int32)
    shown_Bv = jnp.arange(visible) < shown_B1
    seen = _at(batch, places_Bv)
    seen["segments"] = jnp.where(shown_Bv, seen["segments"], 0)
    mask = Mask(q_segments=seen["segments"], kv_segments=seen["segments"])
    final_BvD = forward(params, seen, config, mask=mask)["final"]
    weights_Bv = (seen["segments"] > 0).astype(final_BvD.dtype)
    summary_BD = rms_norm(jnp.einsum("bv,bvd->bd", weights_Bv, final_BvD), config.norm_eps)
    logits_BV = embeddings.token_logits(params["streams"], summary_BD)
    rows_B1 = jnp.arange(filled_BL.shape[0])[:, None]
    given_BL = jnp.zeros(filled_BL.shape, bool).at[rows_B1, places_Bv].set(shown_Bv)
    weights_BL = (filled_BL & ~given_BL) * token_weights_V[batch["tokens"]]
    picked_BL = jnp.take_along_axis(logits_BV, batch["tokens"], axis=1)
    nats_BL = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True) - picked_BL
    return jnp.sum(nats_BL * weights_BL), jnp.sum(weights_BL)


def inverse_frequency_weights(counts_V: jax.Array, exponent: float) -> jax.Array:
    """Weight of each token in a bag: relative frequency ** -rarity, mean 1 over the corpus."""
    frequency = counts_V / jnp.sum(counts_V)
    weights = jnp.where(counts_V > 0, jnp.maximum(frequency, 1e-9) ** -exponent, 0.0)
    return weights / jnp.sum(weights * frequency)


def _at(batch: Batch, places_Bk: jax.Array) -> Batch:
    """The pieces at the given places of every row."""

    def pick(value):
        index = places_Bk.reshape(*places_Bk.shape, *[1] * (value.ndim - 2))
        return jnp.take_along_axis(value, index, axis=1)

    return {key: pick(value) for key, value in batch.items() if value.ndim > 1}


def _nats(
    params: dict, h_BkD: jax.Array, targets: Batch, weights_Bk: jax.Array, config: ModelConfig
) -> WeightedSum:
    """Sums over predictions of weighted nats per token, or per number in a piece, and weights.

    Each is made by the head of the target's stream.
    """
    h_TD = h_BkD.reshape(-1, h_BkD.shape[-1])
    weights_T = weights_Bk.reshape(-1).astype(jnp.float32)
    present = embeddings.modalities_in(targets, config)
    total = jnp.zeros(())
    for stream in present:
        of_T = weights_T
        if len(present) > 1:
            modality_T = targets["modality"].reshape(-1)
            of_T = weights_T * (modality_T == config.modalities.index(stream))
        if stream == "tokens":
            head_DV = embeddings.token_head(params["streams"])
            total += fused_linear_cross_entropy(head_DV, h_TD, targets["tokens"].reshape(-1), of_T)
            continue
        P = config.patch_dim(stream)
        values_TP = embeddings.to_unit_range(targets[stream]).reshape(-1, P)
        nats_T = embeddings.gmm_nll(params["streams"], h_TD, values_TP, config, stream) / P
        total += jnp.sum(nats_T * of_T)
    return total, jnp.sum(weights_T)
