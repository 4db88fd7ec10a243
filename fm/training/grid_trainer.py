"""A grid under way: as `fm.training.trainer`, of the whole stack of members."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from fm import kept
from fm.model.config import ModelConfig
from fm.training import members, sharding
from fm.training.account import Batch, Cost, due
from fm.training.checkpoint import Checkpoints
from fm.training.interrupt import Interrupted
from fm.training.keeping import keeping, rescued
from fm.training.members import MembersStep
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.roster import Constants, Roster
from fm.training.state import State
from fm.training.step import Metrics
from fm.training.telling import how_to_resume

_WAY = "way.json"


@dataclasses.dataclass
class GridProgress:
    """What a checkpoint holds beside the stack, as JSON; members as of `fm.training.account`."""

    step: int = 0
    way: str | None = None
    seconds_per_step: dict[str, float] = dataclasses.field(default_factory=dict)
    members: list[dict[str, Any]] | None = None
    stopped: list[str | None] | None = None


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step of all members whose metrics have not been read."""

    metrics: Metrics
    batches: Batch
    costs: list[Cost | None]


@dataclasses.dataclass(kw_only=True)
class GridTrainer:
    """What a grid has at hand, and where it is.

    Attributes:
      rule: what the members' have in common, as is `accumulate`.
      steps: of the longest run.
      checkpoint_every: of the one that asks most often.
      states: the members', stacked, after the last step taken; a step consumes them.
      constants: of the members.
      roster: of the steps read.
      progress: of the last checkpoint; its way is chosen here where it is not given.
      store: of checkpoints, if any are written, of a grid with this `config`.
      out: folder of the grid, if it has one.
      mesh: devices the states lie on; None is the default one.
      signalled: name of the signal that came, if one did.
      bar: of steps.
      share: seconds since this process began, of one member.
    """

    label: str
    model: ModelConfig
    objective: Objective
    rule: OptimizerConfig
    accumulate: int
    steps: int
    checkpoint_every: int
    states: State
    constants: Constants
    roster: Roster
    progress: GridProgress
    store: Checkpoints | None
    config: dict[str, Any]
    out: pathlib.Path | None
    mesh: Mesh | None
    signalled: Callable[[], str | None]
    bar: tqdm
    share: Callable[[], float]
    _pending: _Taken | None = None
    _step: MembersStep | None = None

    def train(self) -> None:
        """Takes the steps that are left.

        Raises:
          UserError: see `fm.training.grid.train`.
          Interrupted: after a signal, once saved.
        """
        n = self.progress.step
        while any(self.roster.running(n)):
            begins, taken = self._step is None, self._take(n)
            if begins:
                self.roster.started(self.share())
            n += 1
            self._settle()
            self._pending = taken
            signal = self.signalled()
            saves = signal or n == self.steps or due(n, self.checkpoint_every)
            if not (saves or self.roster.validates(n)):
                continue
            self._settle()
            with self.roster.paused():
                self.roster.validate(self.states, n)
                if saves:
                    self._save(n, self.roster.places())
            if signal and n < self.steps:
                raise Interrupted(how_to_resume(self.label, signal, n, self.steps, self.out))

    def _take(self, n: int) -> _Taken:
        """Dispatches the step after `n` of them."""
        places = self.roster.places()
        with keeping(self.label, n + 1, lambda: self._rescue(n, places)):
            batches, costs = self.roster.take(n)
            n_R = np.where(self.roster.running(n), n, -1).astype(np.int32)
            placed = batches
            if self.mesh is not None:
                placed = sharding.shard_batch(batches, self.mesh, axis=1)
            seeds_R, weights_RV, rates_SR2 = self.constants
            data = n_R, placed, seeds_R, rates_SR2[n], weights_RV
            if self._step is None:
                self._step = self._compiled(*data)
            self.states, metrics = self._step(self.states, *data)
        return _Taken(metrics, batches, costs)

    def _compiled(self, *data: Any) -> MembersStep:
        """The step by the way there is, or by the faster one, which is kept."""
        ways = (self.progress.way,) if self.progress.way else members.WAYS
        programs = {
            way: members.members_step(self.model, self.objective, self.rule, self.accumulate, way)
            for way in ways
        }
        if self.progress.way is None:
            timings = members.seconds_per_step(programs, self.states, *data)
            self.progress.seconds_per_step = timings
            self.progress.way = min(timings, key=timings.__getitem__)
            if self.out is not None:
                kept.keep(pathlib.Path(self.out) / _WAY, self.progress.way)
        return programs[self.progress.way]

    def _settle(self) -> None:
        """Reads the metrics of the step that waits, if one does: this waits for it."""
        if self._pending is None:
            return
        taken, self._pending = self._pending, None
        figures = self.roster.settle(taken.metrics, taken.batches, taken.costs)
        self.bar.update()
        if figures:
            self.bar.set_postfix_str(f"{min(figures):.3f} to {max(figures):.3f}", refresh=False)

    def _save(self, n: int, places: list[dict[str, Any]]) -> None:
        """The `n` steps read, which must be all there are, and the places in the data then."""
        if self.store is None:
            return
        self.progress.step, self.progress.stopped = n, self.roster.stopped
        self.progress.members = self.roster.save(self.share(), places)
        self.store.save(n, self.states, dataclasses.asdict(self.progress), self.config)

    def _rescue(self, n: int, places: list[dict[str, Any]]) -> str:
        """Saves the `n` steps before one that could not be taken; what is kept."""
        return rescued(self.store, self.states, n, self._settle, lambda: self._save(n, places))


def chosen_way(out: pathlib.Path | None) -> str | None:
    """The way of a run that was killed before its first checkpoint; None where none was chosen."""
    path = None if out is None else pathlib.Path(out) / _WAY
    if path is None or not path.exists():
        return None
    return kept.read(path)
