"""What a run is asked, and what it gives back."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and cadence of a run, in steps.

    Attributes:
      steps: in all.
      seed: of what is hidden; the order of the data has its own.
      checkpoint_every: steps between checkpoints; there is one at the end anyway.
      keep_period: checkpoints at its multiples all stay; else only the last two do.
      log_every: steps a record averages over.
      validate_every: steps between validations; None validates at the end only.
      early_stopping_patience: validations in a row without a new lowest loss after which the run ends, with the
        parameters it then has; None goes on to the end.
      grad_accum_steps: parts each batch is taken in.
      batch_timeout_seconds: seconds to wait for a batch before the run ends.
    """

    steps: int
    seed: int = 0
    checkpoint_every: int = 500
    keep_period: int | None = None
    log_every: int = 20
    validate_every: int | None = None
    early_stopping_patience: int | None = None
    grad_accum_steps: int = 1
    batch_timeout_seconds: float = 600.0

    def __post_init__(self):
        cadence = (self.steps, self.checkpoint_every, self.log_every, self.grad_accum_steps)
        asked = (self.validate_every, self.early_stopping_patience, self.keep_period)
        given = [each for each in asked if each is not None]
        if min(*cadence, *given) < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "steps, checkpoint_every, keep_every, log_every, validate_every, early_stop and "
                f"accumulate must be 1 or more and seed lie in 0..2**32 - 1, not {self}"
            )
        if not self.batch_timeout_seconds > 0:
            raise UserError(
                f"batch_timeout_seconds={self.batch_timeout_seconds:g} must be above 0 seconds"
            )


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
      params: after the last step; of a run on a mesh, on the host.
      curve: see `fm.training.metric_writer.learning_curve`.
      seconds: wall time, compilation and validation included, over all sittings.
      compile_seconds: of these, until the first step was under way.
      flops: spent on training steps, by `fm.model.flops`.
      steps: done in all.
      tokens: pieces seen, padding left out.
    """

    params: dict
    curve: dict[str, list[float]]
    seconds: float
    compile_seconds: float
    flops: float
    steps: int
    tokens: int


def check_same_config(folder: pathlib.Path, saved: dict, now: dict) -> None:
    """Sees that a run goes on as it began.

    Raises:
      UserError: the run in `folder` was another; names every field that differs.
    """
    found = config_differences(saved, now)
    if found:
        fields = ", ".join(
            f"{name}={was!r} (now {value!r})" for name, (was, value) in found.items()
        )
        raise UserError(f"{folder} holds a run with {fields}; take those values, or another folder")


def config_differences(saved: dict, now: dict) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, by dotted name: (saved, now); "absent" where there is none."""
    left, right = _flat(saved), _flat(json.loads(json.dumps(now)))
    return {
        name: (left.get(name, "absent"), right.get(name, "absent"))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, "absent") != right.get(name, "absent")
    }


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
