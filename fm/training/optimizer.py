"""The optimiser: which rule each parameter follows, and the learning rate over time."""

from __future__ import annotations

import dataclasses

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from fm.errors import UserError

# Layer kernels are stacked (axis 0) and split by head: Muon is told which axes make the matrix.
# The vectors beside them (biases, gains and shifts) follow AdamW, like embeddings and heads.
_MUON_AXES = {
    "query": MuonDimensionNumbers((1,), (2, 3)),
    "key": MuonDimensionNumbers((1,), (2, 3)),
    "value": MuonDimensionNumbers((1,), (2, 3)),
    "attention_out": MuonDimensionNumbers((1, 2), (3,)),
    "up": MuonDimensionNumbers((1,), (2,)),
    "gate": MuonDimensionNumbers((1,), (2,)),
    "down": MuonDimensionNumbers((1,), (2,)),
}
_VECTOR = ("_bias", "_norm", "_shift")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule.

    Attributes:
      name: "muon" (Jordan et al. 2024; embeddings and heads follow AdamW) or "adamw".
      learning_rate: peak, of the layer kernels.
      adam_learning_rate: peak, of embeddings and heads under Muon; ignored by AdamW.
      weight_decay: decoupled, on layer kernels only.
      clip: global gradient norm is scaled down to this.
      b2: decay of AdamW's second moment.
      schedule: "cosine", or "wsd" (warm-up, stable, decay over the last fifth).
      warmup: share of the steps spent warming up linearly.
    """

    name: str = "muon"
    learning_rate: float = 0.02
    adam_learning_rate: float = 0.003
    weight_decay: float = 0.01
    clip: float = 1.0
    b2: float = 0.98
    schedule: str = "wsd"
    warmup: float = 0.05

    def __post_init__(self):
        for name, accepted in (("name", ("muon", "adamw")), ("schedule", ("cosine", "wsd"))):
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


def learning_rate_schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Learning rate by step, from 0 up to `peak` and down to 0 at `steps`."""
    warm = max(1, round(config.warmup * steps))
    if config.schedule == "cosine":
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


def muon_dimension_numbers(params: dict) -> dict:
    """Muon's matrix axes for every layer kernel, None (AdamW) for everything else.

    Raises:
      KeyError: for a layer kernel no rule covers.
    """

    def rule(path, _):
        return _MUON_AXES[path[-1].key] if _is_kernel(path) else None

    return jax.tree_util.tree_map_with_path(rule, params)


def _is_kernel(path: tuple) -> bool:
    """Whether a parameter is a matrix of the layers, which Muon turns and decay shrinks."""
    return any(key.key == "layers" for key in path) and not path[-1].key.endswith(_VECTOR)


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then the rule of the config, over `steps` steps."""
    peaks = config.learning_rate, config.adam_learning_rate
    return build_from_schedules(
        config, *(learning_rate_schedule(config, peak, steps) for peak in peaks)
    )


def build_from_schedules(
    config: OptimizerConfig, rate: optax.Schedule, adam_rate: optax.Schedule
) -> optax.GradientTransformation:
    """As `build`, under given learning rates by step; they may return traced values.

    Of the config, `learning_rate`, `adam_learning_rate`, `schedule` and `warmup` are not read.
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _is_kernel(path), params)

    if config.name == "adamw":
        rule = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay, mask=decayed)
    else:
        rule = muon(
            rate,
            weight_decay=config.weight_decay,
            adam_b2=config.b2,
            adam_learning_rate=adam_rate,  # pyright: ignore[reportArgumentType]
            muon_weight_dimension_numbers=muon_dimension_numbers,  # pyright: ignore[reportArgumentType]
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), rule)
