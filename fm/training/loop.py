"""A run from its start, or from where it was, to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import meshes, optimizer, processes, sharding, state
from fm.training.account import Account, Batch, Progress
from fm.training.checkpoint import Checkpoints
from fm.training.feeding import Batches
from fm.training.interrupt import listening
from fm.training.joint import Asked, plain
from fm.training.keeping import held, told_if_out_of_memory
from fm.training.optimizer import OptimizerConfig
from fm.training.run import RunConfig, Trained
from fm.training.telling import announce, progress_bar
from fm.training.trainer import Trainer
from fm.training.unit import Unit

# Parameters, or what makes them: then the run alone holds them.
Start = dict | Callable[[], dict]


def train(
    params: Start,
    batches: Batches,
    model: ModelConfig,
    objective: Asked,
    rule: OptimizerConfig,
    run: RunConfig,
    *,
    out: pathlib.Path | None,
    unit: Unit,
    token_weights: jax.Array | None = None,
    validation: Sequence[Batch] | None = None,
    label: str = "train",
    peak: float | None = None,
    identity: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """Trains, or goes on training, or says that it is done.

    Step n is dispatched before the metrics of step n - 1 are read. A run that was killed and is
    called again ends as if unbroken, to the bit.

    Args:
      params: to start from; left untouched. What makes them is called under `meshes.over`.
      batches: the data; its place is saved and set.
      model: architecture.
      objective: what is predicted; of a `Joint`, in batches of its groups.
      rule: optimiser and schedule.
      run: length and cadence.
      out: folder for checkpoints and metrics; None writes nothing.
      unit: what the curve is told in.
      token_weights: [V], for the bag objective.
      validation: batches held out; each weighs the same, and hides the same pieces every time.
      label: in front of the progress bar and of messages.
      peak: measured rate of matrix products, FLOP/s, for the log's share of it.
      identity: more JSON-able facts, such as the names of the data, that a resumed run must share.
      mesh: devices to spread over, of `fm.training.meshes`; that of `meshes.over` unless given,
        else the default device. A run may go on with another. Of several processes each calls this
        with the same arguments, and reads its own rows of the batches; a signal to one of them
        stops all.

    Raises:
      UserError: `out` holds a run with another config; the data ends early or stalls (all steps
        so far are saved then, but for a run of several processes); memory runs out (so they are if
        it does before a step begins); the loss or the gradient stops being finite (the last good
        checkpoint stays, and the batch is kept); a checkpoint cannot be written; the mesh does not
        divide the model, or the rows of a batch among several processes.
      OSError: the log cannot be written; names it.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    began, mesh = time.perf_counter(), mesh or meshes.chosen()
    if jax.process_count() > 1 and mesh is None:
        raise UserError(
            f"{label}: {jax.process_count()} processes train on a mesh over all devices"
        )
    with meshes.over(mesh):
        now = sharding.start(made(params), optimizer.build(rule, run.steps), mesh)
    config = facts(now["params"], model, objective, rule, run, unit, identity) if out else {}
    progress, store = Progress(), None
    with contextlib.ExitStack() as closing:
        if mesh is not None:
            closing.enter_context(jax.set_mesh(mesh))
            batches = batches.part(*processes.part(mesh))
            validation = validation and [sharding.shard_batch(each, mesh) for each in validation]
            if token_weights is not None:
                token_weights = sharding.replicate(token_weights, mesh)
        if out is not None:
            folder = pathlib.Path(out) / "checkpoints"
            store = closing.enter_context(Checkpoints(folder, keep_every=run.keep_every))
            restored = store.restore(now, config)
            if restored is not None:
                now, progress = restored.state, Progress(**restored.progress)
                batches.set_state(progress.data)
        earlier, first = progress.seconds, progress.step
        writes = out if processes.first() else None
        account = Account(run, unit, progress=progress, peak=peak, out=writes)
        closing.callback(account.close)
        if first:
            announce(label, first, run.steps, finished=account.finished)
        trainer = Trainer(
            label=label,
            model=model,
            objective=objective,
            rule=rule,
            run=run,
            unit=unit,
            state=now,
            batches=batches,
            validation=validation,
            token_weights=token_weights,
            account=account,
            store=store,
            config=config,
            out=out,
            mesh=mesh,
            signalled=closing.enter_context(listening()),
            bar=closing.enter_context(progress_bar(label, first, run.steps)),
            began=began,
            earlier=earlier,
        )
        closing.enter_context(processes.ending_together(label))
        closing.enter_context(told_if_out_of_memory(label, lambda: held(store)))
        trainer.train()
    spent = 0.0 if progress.step == first else time.perf_counter() - began
    after = trainer.state["params"]
    if mesh is not None:
        after = jax.tree.map(state.whole, after)
    return account.trained(after, earlier + spent)


def made(start: Start) -> dict:
    """The parameters."""
    return start if isinstance(start, dict) else start()


def facts(
    params: dict,
    model: ModelConfig,
    objective: Asked,
    rule: OptimizerConfig,
    run: RunConfig,
    unit: Unit,
    identity: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a resumed run must share with the one it goes on from, as JSON."""
    return {
        "model": dataclasses.asdict(model),
        "objective": plain(objective),
        "optimizer": dataclasses.asdict(rule),
        "run": {
            **{"steps": run.steps, "seed": run.seed, "accumulate": run.accumulate},
            **({"early_stop": run.early_stop} if run.early_stop else {}),
        },
        "unit": {"name": unit.name, **dataclasses.asdict(unit)},
        "start": state.params_digest(params),
        **(identity or {}),
    }
