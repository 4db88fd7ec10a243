"""Multitask training: one step on several groups of examples, each with its own objective.

A group is usually a modality or data set; its batch is the one it would have alone. All functions
also accept a single `PretrainingObjective` and its batch, which is one group without a name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fm.config_io import parse
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import objectives
from fm.training.objectives import Batch, PretrainingObjective, WeightedSum


@dataclasses.dataclass(frozen=True)
class MultitaskObjective:
    """One objective per group of examples, e.g. per modality; batches are dicts by group name.

    Attributes:
      groups: name and objective of each group.
      clip: norm that each group's gradient is scaled down to before the gradients are added.
    """

    groups: tuple[tuple[str, PretrainingObjective], ...]
    clip: float = 1.0

    def __post_init__(self):
        names = [name for name, _ in self.groups]
        if not names or len(set(names)) < len(names):
            raise UserError(f"groups of multitask training must be one or more, distinct: {names}")
        if self.clip <= 0:
            raise UserError(f"clip={self.clip:g} must be above 0")


AnyObjective = PretrainingObjective | MultitaskObjective


def to_dict(objective: AnyObjective) -> dict[str, Any]:
    """Returns the objective as a JSON-able dict, which `from_dict` reads."""
    if isinstance(objective, PretrainingObjective):
        return dataclasses.asdict(objective)
    groups = {name: dataclasses.asdict(each) for name, each in objective.groups}
    return {"groups": groups, "clip": objective.clip}


def from_dict(values: dict[str, Any]) -> AnyObjective:
    """Returns the objective described by a dict from `to_dict`.

    Raises:
      UserError: a value has the wrong type.
    """
    if not isinstance(values, dict) or "groups" not in values:
        return parse(PretrainingObjective, values, "an objective")
    groups = values["groups"]
    if not isinstance(groups, dict):
        raise UserError(f"groups of an objective must be an object by name, not {groups!r:.60}")
    parsed = tuple((name, parse(PretrainingObjective, each, name)) for name, each in groups.items())
    return MultitaskObjective(parsed, parse(float, values.get("clip"), "clip"))


def group_batches(
    batch: dict[str, Any], objective: AnyObjective
) -> list[tuple[str, Batch, PretrainingObjective]]:
    """Returns (metric name prefix, batch, objective) of each group; one triple if not multitask."""
    if isinstance(objective, PretrainingObjective):
        return [("", batch, objective)]
    return [(f"{name}/", batch[name], each) for name, each in objective.groups]


def num_rows_by_group(batch: dict[str, Any], objective: MultitaskObjective) -> dict[str, int]:
    """Returns the number of batch rows of each group, by group name."""
    return {name: batch[name]["segments"].shape[0] for name, _ in objective.groups}


def add_mask_noise(
    batch: dict[str, Any], rng: jax.Array, objective: AnyObjective
) -> dict[str, Any]:
    """Returns the batch with uniform random `noise` [B, L] added, from which masks are chosen."""
    if isinstance(objective, PretrainingObjective):
        return batch | {"noise": jax.random.uniform(rng, batch["segments"].shape)}
    return {
        name: add_mask_noise(batch[name], jax.random.fold_in(rng, n), each)
        for n, (name, each) in enumerate(objective.groups)
    }


def loss_sums(
    params: dict,
    batch: dict[str, Any],
    config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None = None,
) -> dict[str, WeightedSum]:
    """Returns (weighted loss sum in nats, sum of weights) for each objective of each group.

    The batch must have noise, see `add_mask_noise`.
    """
    return {
        f"{prefix}{name}": nats
        for prefix, group_batch, each in group_batches(batch, objective)
        for name, nats in objectives.loss_sums(
            params, group_batch, group_batch["noise"], config, each, token_weights_V
        ).items()
    }


def mean_loss(
    nats: dict[str, WeightedSum],
    counts: dict[str, jax.Array],
    objective: AnyObjective,
    batch: dict[str, Any],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean loss over batch groups, weighted by their number of rows, and all metrics.

    See `objectives.mean_loss` for the arguments. The total adds nats per token to nats per number
    of a patch, so it serves for training only.
    """
    if isinstance(objective, PretrainingObjective):
        return objectives.mean_loss(nats, counts, objective, batch)
    total, metrics = jnp.zeros(()), {}
    rows = num_rows_by_group(batch, objective)
    for prefix, group_batch, each in group_batches(batch, objective):
        own = {name: value for name, value in nats.items() if name.startswith(prefix)}
        group_loss, group_metrics = objectives.mean_loss(
            {name.removeprefix(prefix): value for name, value in own.items()},
            {name.removeprefix(prefix): counts[name] for name in own},
            each,
            group_batch,
        )
        group_metrics = {"loss": group_loss, **group_metrics}
        metrics |= {f"{prefix}{name}": value for name, value in group_metrics.items()}
        total += group_loss * rows[prefix.removesuffix("/")] / sum(rows.values())
    return total, metrics


def loss(
    params: dict,
    batch: dict[str, Any],
    rng: jax.Array,
    config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of a batch (mean nats per prediction, objectives weighted) and its metrics.

    Args:
      params: of the model.
      batch: tokens and patches as for `embeddings.embed`, with int `positions` and `segments`
        [B, L] (0 is padding; different segments do not attend to each other). With int `length`
        [B] each row is one segment of that many tokens, then padding. With bool `answer`
        [B, L] only those tokens are predicted or masked; with int `prefix` [B] the tokens before
        it are visible to the whole segment in causal LM. Of a `MultitaskObjective`, such a batch
        by group.
      rng: decides what is masked.
      config: of the model.
      objective: what to predict.
      token_weights_V: weight of each token in the bag-of-words loss, needed for that objective.

    Returns:
      The loss in nats per token, or per number of a continuous patch, and the mean of each
      objective with a share: `causal_lm_nats`, `masked_lm_nats`, `bag_of_words_nats`. In a
      multitask run also `loss` of each group, and the group's name in front: `image/loss`.
    """
    batch = add_mask_noise(batch, rng, objective)
    nats = loss_sums(params, batch, config, objective, token_weights_V)
    return mean_loss(nats, {name: count for name, (_, count) in nats.items()}, objective, batch)


def split_batch(batch: dict[str, Any], objective: AnyObjective, num_parts: int) -> dict[str, Any]:
    """Returns a batch as [num_parts, B / num_parts, ...] with equal objective shares in each part.

    Raises:
      UserError: the rows of an objective do not divide.
    """
    if isinstance(objective, MultitaskObjective):
        return {name: split_batch(batch[name], each, num_parts) for name, each in objective.groups}
    slices = objectives.objective_rows(objective, batch["segments"].shape[0])
    for name, rows in slices.items():
        if (rows.stop - rows.start) % num_parts:
            raise UserError(
                f"grad_accum_steps={num_parts} does not divide the {rows.stop - rows.start} rows "
                f"of a batch for objective {name!r}; accepted are their common divisors"
            )

    def split(array):
        parts = [array[rows] for rows in slices.values()]
        folded = [part.reshape(num_parts, -1, *part.shape[1:]) for part in parts]
        return jnp.concatenate(folded, axis=1)

    return jax.tree.map(split, batch)
