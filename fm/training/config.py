"""Configuration and result of a training run, and comparison of two configurations."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from fm.errors import UserError

# Of an open-ended run: how much of it is spent on the fall of the learning rate.
COOLDOWN_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of a run, its seed, and how often it logs, validates and saves, in steps.

    Attributes:
      steps: total number of steps.
      seed: seed of the masking noise; the data order has its own seed.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_period: checkpoints at multiples of this are kept for good; of the others the last two.
      log_every: steps averaged in one log record.
      validate_every: steps between validations; None validates at the end only.
      early_stopping_patience: the run ends after this many validations in a row without a new
        lowest loss, with the parameters it then has; None trains all steps.
      min_improvement: fraction of the lowest loss by which a new lowest one is below it.
      max_seconds: the run ends after this much wall time, over all resumptions; None for no limit.
      warmup_steps: makes the schedule open-ended: the learning rate rises over so many steps, stays
        constant until `early_stopping_patience`, `max_seconds` or `steps` says that the run ends,
        and falls to 0 over the last fifth of the run, which counts as part of `max_seconds` and
        `steps` (Hägele et al. 2024, constant learning rate and cooldown). None follows the
        optimizer's schedule over `steps`.
      grad_accum_steps: number of microbatches each batch is split into.
      batch_timeout_seconds: the run ends if a batch takes longer than this to arrive.
      extended_from: lengths of the finished runs that this one continues, ascending. The learning
        rate follows the schedule over `steps` from the last checkpoint on.
      profile_steps: first and last step of which a profile is written, counted from 1; None for no
        profile.
    """

    steps: int
    seed: int = 0
    checkpoint_every: int = 500
    keep_period: int | None = None
    log_every: int = 20
    validate_every: int | None = None
    early_stopping_patience: int | None = None
    min_improvement: float = 0.0
    max_seconds: float | None = None
    warmup_steps: int | None = None
    grad_accum_steps: int = 1
    batch_timeout_seconds: float = 600.0
    extended_from: tuple[int, ...] = ()
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self):
        required = (self.steps, self.checkpoint_every, self.log_every, self.grad_accum_steps)
        optional = (
            *(self.validate_every, self.early_stopping_patience, self.keep_period),
            self.warmup_steps,
        )
        given = [value for value in optional if value is not None]
        if min(*required, *given) < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "steps, checkpoint_every, keep_period, log_every, validate_every, "
                "early_stopping_patience, warmup_steps and grad_accum_steps must be 1 or more, and "
                f"seed between 0 and 2**32 - 1, not {self}"
            )
        first, last = self.profile_steps or (2, 2)
        if not 1 < first <= last:
            raise UserError(
                f"profile_steps={first}:{last}: must be the first and the last step, from 2 on ("
                "the first step of a run is compiled)"
            )
        if not 0 <= self.min_improvement < 1:
            raise UserError(f"min_improvement={self.min_improvement}: must be from 0 to under 1")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UserError(f"max_seconds={self.max_seconds:g}: must be above 0 seconds")
        if not self.batch_timeout_seconds > 0:
            raise UserError(
                f"batch_timeout_seconds={self.batch_timeout_seconds:g} must be above 0 seconds"
            )

    @property
    def is_open_ended(self) -> bool:
        """Whether the learning rate falls only once the run is about to end."""
        return self.warmup_steps is not None

    @property
    def last_cooldown_start(self) -> int:
        """The step at which the learning rate of an open-ended run begins to fall at the latest."""
        return max(1, round((1 - COOLDOWN_SHARE) * self.steps))


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Result of a training run: final parameters, learning curve, and time, FLOPs and tokens used.

    Attributes:
      params: after the last step; on the host if the run was on a mesh.
      curve: see `fm.training.metric_writer.learning_curve`.
      seconds: wall time including compilation and validation, summed over all resumptions.
      cpu_seconds: CPU time of the process in that time.
      compile_seconds: part of `seconds` until the first step was dispatched.
      flops: of all training steps, counted by `fm.model.flops`.
      steps: number of steps taken.
      tokens: tokens and patches seen, without padding.
      stopped_because: "steps" if all were taken, "flat" if the validation loss fell no more, "time"
        if the time was over.
    """

    params: dict
    curve: dict[str, list[float]]
    seconds: float
    cpu_seconds: float
    compile_seconds: float
    flops: float
    steps: int
    tokens: int
    stopped_because: str = "steps"


def check_same_config(folder: pathlib.Path, saved: dict, current: dict) -> None:
    """Raises UserError unless the run saved in `folder` has the configuration `current`.

    A run that continues the saved one to more steps has the same but for its length.

    Raises:
      UserError: it has another; names every field that differs.
    """
    was, now = saved.get("run") or {}, current.get("run") or {}
    if "steps" in was and now.get("extended_from") == [
        *was.get("extended_from", []),
        was["steps"],
    ]:
        length = {name: now[name] for name in ("steps", "extended_from")}
        saved = saved | {"run": was | length}
    differences = config_differences(saved, current)
    if differences:
        fields = ", ".join(
            f"{name}={was!r} (now {value!r})" for name, (was, value) in differences.items()
        )
        raise UserError(f"{folder} holds a run with {fields}; use those values or another folder")


def config_differences(saved: dict, current: dict) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted name: (saved, current)} of the fields that differ, "absent" if missing."""
    left, right = _flatten(saved), _flatten(json.loads(json.dumps(current)))
    return {
        name: (left.get(name, "absent"), right.get(name, "absent"))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, "absent") != right.get(name, "absent")
    }


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
