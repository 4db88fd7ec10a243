"""What a run is asked, and what it gives back."""

from __future__ import annotations

import dataclasses

from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Length and cadence of a run, in steps.

    Attributes:
      steps: in all.
      seed: of what is hidden; the order of the data has its own.
      checkpoint_every: steps between checkpoints; there is one at the end anyway.
      keep_every: checkpoints at its multiples all stay; else only the last two do.
      log_every: steps a record averages over.
      validate_every: steps between validations; None validates at the end only.
      early_stop: validations in a row without a new lowest loss after which the run ends, with the
        parameters it then has; None goes on to the end.
      accumulate: parts each batch is taken in.
      patience: seconds to wait for a batch before the run ends.
    """

    steps: int
    seed: int = 0
    checkpoint_every: int = 500
    keep_every: int | None = None
    log_every: int = 20
    validate_every: int | None = None
    early_stop: int | None = None
    accumulate: int = 1
    patience: float = 600.0

    def __post_init__(self):
        cadence = (self.steps, self.checkpoint_every, self.log_every, self.accumulate)
        asked = (self.validate_every, self.early_stop, self.keep_every)
        given = [each for each in asked if each is not None]
        if min(*cadence, *given) < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "steps, checkpoint_every, keep_every, log_every, validate_every, early_stop and "
                f"accumulate must be 1 or more and seed lie in 0..2**32 - 1, not {self}"
            )
        if not self.patience > 0:
            raise UserError(f"patience={self.patience:g} must be above 0 seconds")


@dataclasses.dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
      params: after the last step; of a run on a mesh, on the host.
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
