"""Optimizer (Muon or AdamW) and learning-rate schedule."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from fm.errors import UserError

# Layer kernels are stacked along axis 0 and split by head; these axes form Muon's matrix. Vectors
# of the layers (biases, norm scales), embeddings and heads follow AdamW.
_MUON_AXES = {
    "query": MuonDimensionNumbers((1,), (2, 3)),
    "key": MuonDimensionNumbers((1,), (2, 3)),
    "value": MuonDimensionNumbers((1,), (2, 3)),
    "attention_out": MuonDimensionNumbers((1, 2), (3,)),
    "up": MuonDimensionNumbers((1,), (2,)),
    "gate": MuonDimensionNumbers((1,), (2,)),
    "down": MuonDimensionNumbers((1,), (2,)),
}
OPTIMIZERS, SCHEDULES = ("muon", "adamw"), ("cosine", "wsd")
_VECTOR_SUFFIXES = ("_bias", "_norm", "_shift")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer (Muon or AdamW), its learning rates and schedule, weight decay and clipping.

    Attributes:
      name: "muon" (Jordan et al. 2024; embeddings and heads follow AdamW) or "adamw".
      learning_rate: peak, of the layer kernels.
      adam_learning_rate: peak, of embeddings and heads under Muon; ignored by AdamW.
      weight_decay: decoupled, on layer kernels only.
      clip: the global gradient norm is scaled down to this.
      b2: decay of AdamW's second moment.
      schedule: "cosine", or "wsd" (warm-up, stable, decay over the last fifth).
      warmup: fraction of the steps spent on linear warm-up.
      warmup_steps: number of these steps, instead of the fraction; None for the fraction.
    """

    ADDED_FIELDS: ClassVar[tuple[str, ...]] = ("warmup_steps",)

    name: str = "muon"
    learning_rate: float = 0.02
    adam_learning_rate: float = 0.003
    weight_decay: float = 0.01
    clip: float = 1.0
    b2: float = 0.98
    schedule: str = "wsd"
    warmup: float = 0.05
    warmup_steps: int | None = None

    def __post_init__(self):
        for name, accepted in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in accepted:
                raise UserError(
                    f"optimizer: {name}={value!r} is not known; accepted are {', '.join(accepted)}"
                )
        for name in ("learning_rate", "adam_learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"optimizer: {name}={getattr(self, name)} must be above 0")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"optimizer: weight_decay={self.weight_decay} must be at least 0")
        for name in ("b2", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"optimizer: {name}={getattr(self, name)} must be from 0 to under 1"
                )

        if self.warmup_steps is not None and self.warmup_steps < 1:
            raise UserError(f"optimizer: warmup_steps={self.warmup_steps} must be at least 1")

    def num_warmup_steps(self, steps: int) -> int:
        """Returns the steps of linear warm-up of a run of `steps` steps, at least 1."""
        return self.warmup_steps or max(1, round(self.warmup * steps))

    def with_learning_rate(self, learning_rate: float) -> OptimizerConfig:
        """Returns the config with another `learning_rate`; both groups' rates keep their ratio.

        Raises:
          UserError: the rate is not a number above 0.
        """
        factor = learning_rate / self.learning_rate
        return dataclasses.replace(
            self, learning_rate=learning_rate, adam_learning_rate=factor * self.adam_learning_rate
        )


def learning_rate_schedule(
    optimizer_config: OptimizerConfig, peak: float, steps: int
) -> optax.Schedule:
    """Returns a function from step to learning rate: 0 up to `peak`, then down to 0 at `steps`."""
    warm = optimizer_config.num_warmup_steps(steps)
    if optimizer_config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(steps, warm + 1))
    stable = max(warm + 1, round(0.8 * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warm),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, max(1, steps - stable)),
        ],
        [warm, stable],
    )


def open_ended_learning_rates(
    optimizer_config: OptimizerConfig,
    step: int,
    *,
    warmup_steps: int,
    cooldown_from: int | None,
    total_steps: int,
) -> np.ndarray:
    """Returns the rates of the layer kernels, and of embeddings and heads, at a step, float32 [2].

    They rise from 0 over `warmup_steps`, stay at their peaks, and fall to 0 between `cooldown_from`
    (None if not yet) and `total_steps`: the schedule "wsd" whose end is not known beforehand.
    """
    share = min(1.0, step / warmup_steps)
    if cooldown_from is not None:
        share *= min(1.0, max(0.0, (total_steps - step) / max(1, total_steps - cooldown_from)))
    peaks = optimizer_config.learning_rate, optimizer_config.adam_learning_rate
    return (share * np.array(peaks)).astype(np.float32)


def muon_dimension_numbers(params: dict) -> dict:
    """Returns Muon's matrix axes of every layer kernel, and None (AdamW) of other parameters.

    Raises:
      KeyError: for a layer kernel without an entry in the table.
    """

    def axes(path, _):
        return _MUON_AXES[path[-1].key] if _is_layer_kernel(path) else None

    return jax.tree_util.tree_map_with_path(axes, params)


def _is_layer_kernel(path: tuple) -> bool:
    """Returns whether a parameter is a matrix of the layers, subject to Muon and weight decay."""
    in_layers = any(key.key == "layers" for key in path)
    return in_layers and not path[-1].key.endswith(_VECTOR_SUFFIXES)


@functools.lru_cache(maxsize=64)
def build(optimizer_config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer: gradient clipping, then Muon or AdamW, scheduled over `steps`.

    Equal arguments give the same object, so what is compiled for it is compiled once.
    """
    peaks = optimizer_config.learning_rate, optimizer_config.adam_learning_rate
    return build_from_schedules(
        optimizer_config,
        *(learning_rate_schedule(optimizer_config, peak, steps) for peak in peaks),
    )


def build_from_schedules(
    optimizer_config: OptimizerConfig, rate: optax.Schedule, adam_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer (clipping, then Muon or AdamW) with the given learning rate schedules.

    The config's learning rates, schedule and warm-up are not used.
    """

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _is_layer_kernel(path), params)

    if optimizer_config.name == "adamw":
        optimizer = optax.adamw(
            rate,
            b2=optimizer_config.b2,
            weight_decay=optimizer_config.weight_decay,
            mask=decay_mask,
        )
    else:
        optimizer = muon(
            rate,
            weight_decay=optimizer_config.weight_decay,
            adam_b2=optimizer_config.b2,
            adam_learning_rate=adam_rate,  # pyright: ignore[reportArgumentType]
            muon_weight_dimension_numbers=muon_dimension_numbers,  # pyright: ignore
        )
    return optax.chain(optax.clip_by_global_norm(optimizer_config.clip), optimizer)
