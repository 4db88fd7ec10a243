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

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import loop, members, meshes, optimizer, sharding, state, telling
from fm.training.checkpoint import Checkpoints
from fm.training.grid_trainer import GridProgress, GridTrainer, chosen_way
from fm.training.interrupt import listening
from fm.training.keeping import held, told_if_out_of_memory
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.roster import Member, Roster, constants
from fm.training.run import Trained


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
    """Trains all members, or goes on, or says that it is done; on the mesh of `meshes.over`.

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
    began, mesh = time.perf_counter(), meshes.chosen()
    if jax.process_count() > 1:
        raise UserError(f"{label}: a grid of runs takes one process; take one run at a time")
    rule, accumulate = _common(grid)
    if way is not None:
        members.known(way)
    steps = max(one.run.steps for one in grid)
    params = [loop.made(one.params) for one in grid]
    grid = [dataclasses.replace(one, params=made) for one, made in zip(grid, params, strict=True)]
    states = members.stack(
        [
            state.init(made, optimizer.build(one.rule, one.run.steps))
            for one, made in zip(grid, params, strict=True)
        ]
    )
    progress = GridProgress()

    def share() -> float:
        return (time.perf_counter() - began) / len(grid)

    with contextlib.ExitStack() as closing:
        if mesh is not None:
            closing.enter_context(jax.set_mesh(mesh))
            states = sharding.shard_members(states, mesh)
            grid = [_on(mesh, one) for one in grid]
        store, config = None, {}
        if out is not None:
            config = {str(r): one.facts(model, objective) for r, one in enumerate(grid)}
            store = closing.enter_context(Checkpoints(pathlib.Path(out) / "checkpoints"))
            restored = store.restore(states, config)
            if restored is not None:
                states, progress = restored.state, GridProgress(**restored.progress)
                finished = progress.step == steps
                telling.announce(label, progress.step, steps, finished=finished)
                if way not in (None, progress.way):
                    raise UserError(f"{out} holds a grid run by {progress.way!r}, not {way!r}")
        progress.way, first = progress.way or way or chosen_way(out), progress.step
        roster = Roster(
            grid,
            model,
            objective,
            progress=progress.members,
            stopped=progress.stopped,
            peak=peak,
        )
        closing.callback(roster.close)
        runs = any(roster.running(first))
        trainer = GridTrainer(
            label=label,
            model=model,
            objective=objective,
            rule=rule,
            accumulate=accumulate,
            steps=steps,
            checkpoint_every=min(one.run.checkpoint_every for one in grid),
            states=states,
            constants=constants(grid),
            roster=roster,
            progress=progress,
            store=store,
            config=config,
            out=out,
            mesh=mesh,
            signalled=closing.enter_context(listening()),
            bar=closing.enter_context(telling.progress_bar(label, first, steps)),
            share=share,
        )
        closing.enter_context(told_if_out_of_memory(label, lambda: held(store)))
        trainer.train()
        states = trainer.states
        if mesh is not None:
            states = jax.tree.map(lambda leaf: jnp.asarray(jax.device_get(leaf)), states)
        trained = roster.leave(states, share() if runs else 0.0)
    return Grid(trained, roster.stopped, progress.way or "", progress.seconds_per_step)


def _on(mesh: Mesh, one: Member) -> Member:
    """A member whose held-out batches and token weights lie on the mesh."""
    weights = one.token_weights
    return dataclasses.replace(
        one,
        token_weights=None if weights is None else sharding.replicate(weights, mesh),
        validation=[sharding.shard_batch(each, mesh) for each in one.validation],
    )


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
