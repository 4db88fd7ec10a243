"""The loop round the step: cadence, curves, checkpoints, and stopping well."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from fm.errors import UserError
from fm.model import flops
from fm.model.config import ModelConfig
from fm.training import log, optimizer, state, step
from fm.training.checkpoint import Checkpoints
from fm.training.interrupt import Interrupted, listening
from fm.training.objectives import Objective, rows_of
from fm.training.optimizer import OptimizerConfig
from fm.training.unit import Unit, value

Batch = Mapping[str, np.ndarray]


class Batches(Protocol):
    """What the loop asks of a pipeline (`fm.data.batches.Batches`)."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The place, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any], /) -> None:
        """Goes to a place."""
        ...


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Length and cadence of a run, in steps.

    Attributes:
      steps: in all.
      seed: of what is hidden; the order of the data has its own.
      checkpoint_every: steps between checkpoints; there is one at the end anyway.
      log_every: steps a record averages over.
      validate_every: steps between validations; None validates at the end only.
      accumulate: parts each batch is taken in.
    """

    steps: int
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    validate_every: int | None = None
    accumulate: int = 1

    def __post_init__(self):
        cadence = (self.steps, self.checkpoint_every, self.log_every, self.accumulate)
        if min(*cadence, self.validate_every or 1) < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "steps, checkpoint_every, log_every, validate_every and accumulate must be 1 or "
                f"more and seed lie in 0..2**32 - 1, not {self}"
            )


@dataclasses.dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
      params: after the last step.
      curve: see `fm.training.log.curve`.
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
