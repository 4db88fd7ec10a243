"""Who is in a grid, and how far each has come: data in, figures out, nothing compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import broken, loop, members, telling
from fm.training.account import Account, Batch, Cost, Figures, Progress, cost, due, finite
from fm.training.checkpoint import Checkpoints
from fm.training.feeding import Batches, next_batch
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.run import RunConfig, Trained
from fm.training.state import State
from fm.training.step import Metrics
from fm.training.trainer import validate
from fm.training.unit import Unit

Constants = tuple[np.ndarray, jax.Array | None, np.ndarray]  # see `constants`


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One run of a grid: what `fm.training.loop.train` takes, meaning the same.

    Members may differ in all of it but for the shapes of parameters and batches, whether there
    are token weights, and, of `rule` and `run`, what is neither a learning rate, a schedule, a
    seed, a number of steps nor a cadence.
    """

    params: loop.Start
    batches: Batches
    rule: OptimizerConfig
    run: RunConfig
    unit: Unit
    out: pathlib.Path | None = None
    token_weights: jax.Array | None = None
    validation: Sequence[Batch] = ()
    label: str = "train"
    identity: Mapping[str, Any] | None = None

    def facts(self, model: ModelConfig, objective: Objective) -> dict[str, Any]:
        """What a resumed run must share: the same as of a separate run."""
        return loop.facts(
            loop.made(self.params), model, objective, self.rule, self.run, self.unit, self.identity
        )


class Roster:
    """The members of a grid.

    Attributes:
      stopped: by member, why it stopped early, or None. Once stopped, a member stays so.
    """

    def __init__(
        self,
        grid: Sequence[Member],
        model: ModelConfig,
        objective: Objective,
        *,
        progress: Sequence[dict[str, Any]] | None,
        stopped: Sequence[str | None] | None,
        peak: float | None,
    ):
        """Goes on from the `progress` and the `stopped` of a checkpoint, or from the start."""
        self._grid, self._model, self._objective = grid, model, objective
        self.stopped = list(stopped or [None] * len(grid))
        self._accounts: list[Account] = []
        self._seconds: list[float] = []
        for r, one in enumerate(grid):
            past = Progress(**progress[r]) if progress else Progress()
            if progress:
                one.batches.set_state(past.data)
            self._accounts.append(Account(one.run, one.unit, progress=past, peak=peak, out=one.out))
            self._seconds.append(past.seconds)

    def running(self, n: int) -> list[bool]:
        """By member, whether it takes a step after `n` of them."""
        return [
            stopped is None and n < one.run.steps
            for one, stopped in zip(self._grid, self.stopped, strict=True)
        ]

    def take(self, n: int) -> tuple[Batch, list[Cost | None]]:
        """The next batch of each member after `n` steps, stacked, and the cost of its step.

        Who does not run takes no batch of its own but a stand-in, at no cost.

        Raises:
          UserError: the data of a member ends, or stalls.
        """
        taken = [
            _batch(one, n) if runs else None
            for one, runs in zip(self._grid, self.running(n), strict=True)
        ]
        stand_in = next(batch for batch in taken if batch is not None)
        costs = [
            None if batch is None else cost(batch, self._model, self._objective) for batch in taken
        ]
        return members.stack([stand_in if batch is None else batch for batch in taken]), costs

    def started(self, seconds: float) -> None:
        """Notes that compiling is done, each member's share of it having taken `seconds`."""
        for account in self._accounts:
            account.compiled(seconds)

    def settle(self, metrics: Metrics, batches: Batch, costs: Sequence[Cost | None]) -> list[float]:
        """Counts a step of all members from its metrics, [R]; stops whose are not finite.

        The batches, as `take` gave them, are there to keep what a member broke on.

        Returns:
          The figure of every record that was due.
        """
        read = jax.device_get(metrics)
        records = []
        for r, spent in enumerate(costs):
            # One that stopped may have been sent one more step before that was known.
            if spent is None or self.stopped[r] is not None:
                continue
            one, account = self._grid[r], self._accounts[r]
            figures = {name: float(each[r]) for name, each in read.items()}
            if finite(figures):
                records.append((one.unit.name, account.count(figures, spent)))
            else:
                self._stop(r, account.progress.step + 1, figures, members.member(batches, r))
        return [record[unit] for unit, record in records if record is not None]

    def validates(self, n: int) -> list[int]:
        """The members whose validation is due after `n` steps."""
        return [
            r
            for r, one in enumerate(self._grid)
            if one.validation and self.stopped[r] is None and n <= one.run.steps
            if n == one.run.steps or due(n, one.run.validate_every)
        ]

    def validate(self, states: State, n: int) -> None:
        """Records the validation of the members it is due for; stops whose is not finite.

        The metrics of all steps so far must have been settled.
        """
        for r in self.validates(n):
            one, params = self._grid[r], members.member(states["params"], r)
            figures = validate(
                params, one.validation, self._model, self._objective, one.token_weights
            )
            if finite(figures):
                self._accounts[r].validated(figures)
            else:
                self._stop(r, n, figures)

    def _stop(self, r: int, n: int, figures: Figures, batch: Batch | None = None) -> None:
        one, kept = self._grid[r], "this member stays where it was"
        if batch is not None and one.out is not None:
            kept += f", {broken.keep(batch, pathlib.Path(one.out), n)}"
        self.stopped[r] = telling.not_finite(one.label, n, figures, one.rule, kept)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the pace."""
        with contextlib.ExitStack() as pauses:
            for account in self._accounts:
                pauses.enter_context(account.meter.paused())
            yield

    def places(self) -> list[dict[str, Any]]:
        """Where each member is in its data."""
        return [one.batches.get_state() for one in self._grid]

    def save(self, seconds: float, places: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The progress of every member, of whom each took `seconds` more; logs on disk."""
        return [
            account.save(earlier + seconds, place)
            for account, earlier, place in zip(self._accounts, self._seconds, places, strict=True)
        ]

    def leave(self, states: State, seconds: float) -> list[Trained]:
        """The outcome of every member; in its own folder, the checkpoint of a separate run.

        A member that stopped early leaves none.
        """
        progress = self.save(seconds, self.places())
        for r, one in enumerate(self._grid):
            if one.out is None or self.stopped[r] is not None:
                continue
            with contextlib.closing(Checkpoints(pathlib.Path(one.out) / "checkpoints")) as store:
                if not store.holds(one.run.steps):
                    config = one.facts(self._model, self._objective)
                    store.save(one.run.steps, members.member(states, r), progress[r], config)
        return [
            account.trained(members.member(states["params"], r), progress[r]["seconds"])
            for r, account in enumerate(self._accounts)
        ]

    def close(self) -> None:
        """Closes the logs."""
        for account in self._accounts:
            account.close()


def _batch(one: Member, n: int) -> Batch:
    """A member's next batch, after `n` of them."""
    try:
        return next_batch(one.batches, n, one.run)
    except UserError as error:
        raise UserError(f"{one.label}: {error}") from error


def constants(grid: Sequence[Member]) -> Constants:
    """What stays the same from step to step: seeds [R], token weights [R, V] or None, and the
    learning rates of all steps [S, R, 2]."""
    steps = max(one.run.steps for one in grid)
    seeds_R = np.array([one.run.seed for one in grid], np.uint32)
    weights = [one.token_weights for one in grid]
    rates = [members.rates(one.rule, one.run.steps, steps) for one in grid]
    return seeds_R, None if weights[0] is None else members.stack(weights), np.stack(rates, axis=1)
