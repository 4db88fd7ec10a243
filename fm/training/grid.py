"""Many runs as one program: seeds and learning rates of one model, side by side.

Each member ends as `fm.training.loop.train` would end it alone, up to the order of summation.
Membership is fixed: a member whose steps are over, or whose loss is no longer finite, keeps its
place, so that shapes and the bits of the others stay. The whole stack is one checkpoint, and
each member's own folder ends as that of a separate run. On a mesh every member is spread over all
devices, as one alone would be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fm import kept
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import loop, members, optimizer, sharding, state, telling
from fm.training.account import Batch, Cost, due
from fm.training.checkpoint import Checkpoints
from fm.training.interrupt import Interrupted, listening
from fm.training.keeping import alive, keeping, last_one, told_if_out_of_memory
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.roster import Member, Roster, constants
from fm.training.run import Trained
from fm.training.step import Metrics

_WAY = "way.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The outcome of a grid.

    Attributes:
      trained: by member. Seconds are shared out evenly; one that stopped early has fewer `steps`
        and the parameters of its last good one.
      stopped: by member, why it stopped early, or None.
      way: see `fm.training.members.members_step`.
      seconds_per_step: by way, as measured; empty where the way was given.
    """

    trained: list[Trained]
    stopped: list[str | None]
    way: str
    seconds_per_step: dict[str, float]


@dataclasses.dataclass
class _Progress:
    """What a checkpoint holds beside the stack, as JSON; members as of `fm.training.account`."""

    step: int = 0
    way: str | None = None
    seconds_per_step: dict[str, float] = dataclasses.field(default_factory=dict)
    members: list[dict[str, Any]] | None = None
    stopped: list[str | None] | None = None


def train(
    grid: Sequence[Member],
    model: ModelConfig,
    objective: Objective,
    *,
    out: pathlib.Path | None,
    way: str | None = None,
    label: str = "grid",
    peak: float | None = None,
) -> Grid:
    """Trains all members, or goes on, or says that it is done; on the mesh of `sharding.over`.

    A grid that was killed and is called again ends as if unbroken, to the bit: the way, once
    chosen, is kept in `out`/way.json before the first step, and is part of the checkpoint.

    Args:
      grid: see `Member`.
      model: architecture.
      objective: what is predicted.
      out: folder for the checkpoint of the stack; None writes none.
      way: "vmap" or "map"; the faster by measurement if not given.
      label: in front of the progress bar and of messages.
      peak: measured rate of matrix products, FLOP/s, for the logs' share of it.

    Raises:
      UserError: members that cannot share a program; an unknown way; `out` holds another grid,
        or the same by another way; the data of a member ends early or stalls, or memory runs
        out (what was done is saved, as of one run); there are several processes; the mesh does
        not divide the model; a checkpoint cannot be written.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    began, mesh = time.perf_counter(), sharding.chosen()
    if jax.process_count() > 1:
        raise UserError(f"{label}: a grid of runs takes one process; take one run at a time")
    rule, accumulate = _common(grid)
    if way is not None:
        members.known(way)
    steps = max(one.run.steps for one in grid)
    every = min(one.run.checkpoint_every for one in grid)
    params = [loop.made(one.params) for one in grid]
    grid = [dataclasses.replace(one, params=made) for one, made in zip(grid, params, strict=True)]
    states = members.stack(
        [
            state.init(made, optimizer.build(one.rule, one.run.steps))
            for one, made in zip(grid, params, strict=True)
        ]
    )
    progress = _Progress()
    with contextlib.ExitStack() as closing:
        if mesh is not None:
            closing.enter_context(jax.set_mesh(mesh))
            states = sharding.shard_members(states, mesh)
            grid = [_on(mesh, one) for one in grid]
        seeds_R, weights_RV, rates_SR2 = constants(grid)
        store, config = None, {}
        if out is not None:
            config = {str(r): one.facts(model, objective) for r, one in enumerate(grid)}
            store = closing.enter_context(Checkpoints(pathlib.Path(out) / "checkpoints"))
            restored = store.restore(states, config)
            if restored is not None:
                states, progress = restored.state, _Progress(**restored.progress)
                finished = progress.step == steps
                telling.announce(label, progress.step, steps, finished=finished)
                if way not in (None, progress.way):
                    raise UserError(f"{out} holds a grid run by {progress.way!r}, not {way!r}")
        roster = Roster(
            grid,
            model,
            objective,
            progress=progress.members,
            stopped=progress.stopped,
            peak=peak,
        )
        closing.callback(roster.close)
        signalled = closing.enter_context(listening())
        bar = closing.enter_context(telling.progress_bar(label, progress.step, steps))

        def share() -> float:
            return (time.perf_counter() - began) / len(grid)

        def settle(metrics: Metrics, batches: Batch, costs: list[Cost | None]) -> None:
            figures = roster.settle(metrics, batches, costs)
            bar.update()
            if figures:
                bar.set_postfix_str(f"{min(figures):.3f} to {max(figures):.3f}", refresh=False)

        def held() -> str:
            return last_one(store.latest() if store else None)

        def save(places: list[dict[str, Any]]) -> None:
            assert store is not None
            progress.step, progress.stopped = n, roster.stopped
            progress.members = roster.save(share(), places)
            store.save(n, states, dataclasses.asdict(progress), config)

        def rescue(places: list[dict[str, Any]]) -> str:
            """Saves what was done before a step that could not be taken."""
            nonlocal pending
            if store is None:
                return "nothing was saved"
            if n == 0 or not alive(states):
                return held()
            if pending is not None:
                unsettled, pending = pending, None
                settle(*unsettled)
            if n != store.latest():
                save(places)
            store.wait()
            return f"step {n} is saved, and the same command goes on from there"

        n, pending, do_step = progress.step, None, None
        progress.way = progress.way or way or _chosen(out)
        closing.enter_context(told_if_out_of_memory(label, held))
        while any(roster.running(n)):
            places = roster.places()
            with keeping(label, n + 1, lambda places=places: rescue(places)):
                batches, costs = roster.take(n)
                n_R = np.where(roster.running(n), n, -1).astype(np.int32)
                placed = batches if mesh is None else sharding.shard_batch(batches, mesh, axis=1)
                arguments = n_R, placed, seeds_R, rates_SR2[n], weights_RV
                begins = do_step is None
                if do_step is None:
                    programs = {
                        each: members.members_step(model, objective, rule, accumulate, each)
                        for each in ((progress.way,) if progress.way else members.WAYS)
                    }
                    if progress.way is None:
                        timings = members.seconds_per_step(programs, states, *arguments)
                        progress.seconds_per_step = timings
                        progress.way = min(timings, key=timings.__getitem__)
                        if out is not None:
                            kept.keep(pathlib.Path(out) / _WAY, progress.way)
                    do_step = programs[progress.way]
                states, metrics = do_step(states, *arguments)
            if begins:
                roster.started(share())
            n += 1
            if pending is not None:
                settle(*pending)
            pending = metrics, batches, costs

            signal = signalled()
            saves = signal or n == steps or due(n, every)
            if not (saves or roster.validates(n)):
                continue
            settle(*pending)
            pending = None
            with roster.paused():
                roster.validate(states, n)
                if saves and store is not None:
                    save(roster.places())
            if signal and n < steps:
                raise Interrupted(telling.how_to_resume(label, signal, n, steps, out))
        if mesh is not None:
            states = jax.tree.map(lambda leaf: jnp.asarray(jax.device_get(leaf)), states)
        trained = roster.leave(states, share() if do_step else 0.0)
    return Grid(trained, roster.stopped, progress.way or "", progress.seconds_per_step)


def _on(mesh: Mesh, one: Member) -> Member:
    """A member whose held-out batches and token weights lie on the mesh."""
    weights = one.token_weights
    return dataclasses.replace(
        one,
        token_weights=None if weights is None else sharding.replicate(weights, mesh),
        validation=[sharding.shard_batch(each, mesh) for each in one.validation],
    )


def _chosen(out: pathlib.Path | None) -> str | None:
    """The way of a run that was killed before its first checkpoint; None where none was chosen."""
    path = None if out is None else pathlib.Path(out) / _WAY
    if path is None or not path.exists():
        return None
    return kept.read(path)


def _common(grid: Sequence[Member]) -> tuple[OptimizerConfig, int]:
    """The rule and the parts of a batch that all members share.

    Raises:
      UserError: there are none, or they differ in what is part of the program.
    """
    if not grid:
        raise UserError("a grid takes at least one member")
    if any(one.run.early_stop for one in grid):
        raise UserError("early_stop is for one run at a time, a grid's members run to their end")
    found = {
        (members.shared(one.rule), one.run.accumulate, one.token_weights is None) for one in grid
    }
    if len(found) > 1:
        raise UserError(
            "members of a grid may differ in seed, steps, learning rates and schedule, not in "
            f"{len(found)} kinds of optimiser, accumulate or use of token weights"
        )
    rule, accumulate, _ = found.pop()
    return rule, accumulate
