"""Several formats in one step: a batch of groups, each of its own rows, length and objective.

A group's batch is what its format alone would have. Everything here takes one format as well: that
is one group without a name.
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
from fm.training.objectives import Batch, Objective, WeightedSum


@dataclasses.dataclass(frozen=True)
class MultitaskObjective:
    """What is asked of each group; a batch of it is a dict of batches, by name.

    Attributes:
      groups: name and objective of each.
      clip: norm that each group's gradient is scaled down to, before they are added up.
    """

    groups: tuple[tuple[str, Objective], ...]
    clip: float = 1.0

    def __post_init__(self):
        names = [name for name, _ in self.groups]
        if not names or len(set(names)) < len(names):
            raise UserError(f"groups of joint training {names} must be one or more, none twice")
        if self.clip <= 0:
            raise UserError(f"clip {self.clip:g} must be above 0")


AnyObjective = Objective | MultitaskObjective


def to_dict(objective: AnyObjective) -> dict[str, Any]:
    """As JSON; `from_plain` reads it back."""
    if isinstance(objective, Objective):
        return dataclasses.asdict(objective)
    groups = {name: dataclasses.asdict(each) for name, each in objective.groups}
    return {"groups": groups, "clip": objective.clip}


def from_dict(saved: dict[str, Any]) -> AnyObjective:
    """What `plain` made JSON of.

    Raises:
      UserError: a value is of the wrong kind.
    """
    if not isinstance(saved, dict) or "groups" not in saved:
        return parse(Objective, saved, "an objective")
    groups = saved["groups"]
    if not isinstance(groups, dict):
        raise UserError(f"groups of joint training are objectives by name, not {groups!r:.60}")
    asked = tuple((name, parse(Objective, each, name)) for name, each in groups.items())
    return MultitaskObjective(asked, parse(float, saved.get("clip"), "clip"))


def group_batches(
    batch: dict[str, Any], objective: AnyObjective
) -> list[tuple[str, Batch, Objective]]:
    """Each group: what leads the names of its figures, its batch, its objective."""
    if isinstance(objective, Objective):
        return [("", batch, objective)]
    return [(f"{name}/", batch[name], each) for name, each in objective.groups]


def group_rows(batch: dict[str, Any], objective: MultitaskObjective) -> dict[str, int]:
    """Rows of each group."""
    return {name: batch[name]["segments"].shape[0] for name, _ in objective.groups}


def add_mask_noise(
    batch: dict[str, Any], rng: jax.Array, objective: AnyObjective
) -> dict[str, Any]:
    """The batch with `noise` [B, L], which decides what is hidden, among each group's arrays."""
    if isinstance(objective, Objective):
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
    """`objectives.sums` of each group, as `GROUP/OBJECTIVE`; the batch comes from `with_noise`."""
    return {
        f"{lead}{kind}": nats
        for lead, rows, each in group_batches(batch, objective)
        for kind, nats in objectives.loss_sums(
            params, rows, rows["noise"], config, each, token_weights_V
        ).items()
    }


def mean_loss(
    nats: dict[str, WeightedSum],
    counts: dict[str, jax.Array],
    objective: AnyObjective,
    batch: dict[str, Any],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`objectives.mean`: over groups by their share of rows, with the `GROUP/loss` of each.

    Nats per token and per number are added up, so the total serves training alone.
    """
    if isinstance(objective, Objective):
        return objectives.mean_loss(nats, counts, objective, batch)
    total, metrics = jnp.zeros(()), {}
    rows_in = {lead: rows["segments"].shape[0] for lead, rows, _ in group_batches(batch, objective)}
    for lead, rows, each in group_batches(batch, objective):
        own = {name: value for name, value in nats.items() if name.startswith(lead)}
        loss_, figures = objectives.mean_loss(
            {name.removeprefix(lead): value for name, value in own.items()},
            {name.removeprefix(lead): counts[name] for name in own},
            each,
            rows,
        )
        metrics |= {f"{lead}{name}": value for name, value in {"loss": loss_, **figures}.items()}
        total += loss_ * rows_in[lead] / sum(rows_in.values())
    return total, metrics


def loss(
    params: dict,
    batch: dict[str, Any],
    rng: jax.Array,
    config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over objectives, by their share, of the mean nats per predicted piece.

    Args:
      params: of the model.
      batch: pieces as for `streams.embed`, with `positions` and `segments` int [B, L] (0 is
        padding; pieces of different segments do not see each other). With `answer` bool [B, L]
        only these pieces are predicted, or hidden; with `prefix` int [B] the pieces before it are
        seen by all of their segment, earlier ones too, in predicting the next. Of a `Joint`, such
        a batch for each group.
      rng: decides what is hidden.
      config: the model's.
      objective: see `Objective` and `Joint`.
      token_weights_V: weight of each token in a bag; needed where `Objective.bag` > 0.

    Returns:
      The loss, in nats per token or per number in a continuous piece, and the metrics `next_nats`,
      `masked_nats`, `bag_nats`: the mean of each objective that has a share; of a `Joint` these
      and `loss` with the group's name in front, as `image/next_nats`.
    """
    batch = add_mask_noise(batch, rng, objective)
    nats = loss_sums(params, batch, config, objective, token_weights_V)
    return mean_loss(nats, {name: count for name, (_, count) in nats.items()}, objective, batch)


def split_batch(batch: dict[str, Any], objective: AnyObjective, num_parts: int) -> dict[str, Any]:
    """A batch in parts, [count, B / count, ...], each with the same rows of every objective.

    Raises:
      UserError: if an objective's rows do not divide.
    """
    if isinstance(objective, MultitaskObjective):
        return {name: split_batch(batch[name], each, num_parts) for name, each in objective.groups}
    rows = objectives.objective_rows(objective, batch["segments"].shape[0])
    for name, at in rows.items():
        if (at.stop - at.start) % num_parts:
            raise UserError(
                f"accumulate={num_parts} does not divide the {at.stop - at.start} rows of a batch "
                f"that objective {name!r} takes; accepted are their common divisors"
            )

    def take(value):
        pieces = [value[at] for at in rows.values()]
        folded = [piece.reshape(num_parts, -1, *piece.shape[1:]) for piece in pieces]
        return jnp.concatenate(folded, axis=1)

    return jax.tree.map(take, batch)
