"""One step of many runs as one program: the members stacked, [R, ...], what differs is data.

Seeds, learning rates and token weights enter as arrays, so all members share one compiled
program, whose bits do not depend on who else is still running: a member that has stopped keeps
its place and its state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import optimizer, step
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.state import State
from fm.training.step import Metrics

WAYS = ("vmap", "map")
# A way is timed over about this long, so many times in turns.
_TURN_SECONDS, _TURNS = 0.1, 5

# (states, n_R, batches, seeds_R, rates_R2, token_weights_RV) -> (states, metrics)
MembersStep = Callable[..., tuple[State, Metrics]]


@functools.lru_cache(maxsize=64)
def members_step(
    model: ModelConfig,
    objective: Objective,
    rule: OptimizerConfig,
    accumulate: int = 1,
    way: str = "vmap",
) -> MembersStep:
    """The compiled step of all members; equal arguments give the same function.

    Args:
      model: architecture.
      objective: what is predicted.
      rule: optimiser; its rates and schedule are not read, use `shared` to share programs.
      accumulate: as for `fm.training.step.train_step`.
      way: "vmap" batches every operation over the members; "map" takes one member after another
        inside the program, each in its place in the stack.

    Returns:
      step(states, n_R, batches, seeds_R, rates_R2, token_weights_RV) -> (states, metrics). The
      given states, of `fm.training.state` with a leading R, are consumed. A member takes the step
      if it has done n steps (-1 for one that rests) and its loss and gradient are finite; any
      other keeps its state to the bit, so one that missed a step stays where it is. `rates_R2`
      are the learning rates of this step: of the layer kernels, and of embeddings and heads under
      Muon. Metrics are float32 [R].

    Raises:
      UserError: an unknown way.
    """
    known(way)

    def of_one(state, n, batch, seed, rates_2, token_weights_V):
        update = optimizer.follow(rule, lambda _: rates_2[0], lambda _: rates_2[1]).update
        metrics, gradient = step.measured_gradient(
            state, batch, seed, model, objective, token_weights_V, accumulate
        )
        metrics["learning_rate"] = rates_2[0]
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        moves = (state["step"] == n) & finite
        after = jax.lax.cond(
            moves,
            lambda state: step.apply_gradient(state, gradient, update),
            lambda state: state,
            state,
        )
        return after, metrics

    def in_turn(states, *data):
        # Carried, the stack is changed in place; as inputs and outputs of `lax.map` it would be
        # copied every step (0.84x against one run after another instead of 1.07x, images).
        def body(states, r):
            state, one = jax.tree.map(lambda leaf: leaf[r], (states, data))
            after, metrics = of_one(state, *one)
            put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=r, axis=0)
            return jax.tree.map(put, states, after), metrics

        return jax.lax.scan(body, states, jnp.arange(len(states["step"])))

    return jax.jit(jax.vmap(of_one) if way == "vmap" else in_turn, donate_argnums=0)


def known(way: str) -> None:
    """Raises UserError for an unknown way."""
    if way not in WAYS:
        raise UserError(f"way {way!r} is not known; accepted are {', '.join(WAYS)}")


def shared(rule: OptimizerConfig) -> OptimizerConfig:
    """The rule with all that enters as data left out: equal for members of one program."""
    return dataclasses.replace(
        rule, learning_rate=1.0, adam_learning_rate=1.0, schedule="cosine", warmup=0.0
    )


def rates(rule: OptimizerConfig, steps: int, length: int) -> np.ndarray:
    """Learning rates of a run's steps, float32 [length, 2], zero past the end.

    Columns: of the layer kernels, and of embeddings and heads under Muon.
    """
    peaks = rule.learning_rate, rule.adam_learning_rate
    columns = [optimizer.schedule(rule, peak, steps)(jnp.arange(length)) for peak in peaks]
    return np.where(np.arange(length)[:, None] < steps, np.stack(columns, -1), 0.0).astype(
        np.float32
    )


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, every leaf with a leading R; of numpy where they are."""

    def leaves(*each):
        return np.stack(each) if isinstance(each[0], np.ndarray) else jnp.stack(each)

    return jax.tree.map(leaves, *trees)


def member(states: Any, r: int) -> Any:
    """One member's part of a stack."""
    return jax.tree.map(lambda leaf: leaf[r], states)


def seconds_per_step(
    steps: dict[str, MembersStep], states: State, n_R: np.ndarray, *data: Any
) -> dict[str, float]:
    """Median seconds of a step by each way, warm, in turns; the states stay as they are.

    Args:
      steps: by way.
      states: where the members are.
      n_R: steps done, -1 for a member that rests.
      *data: the other arguments of a step.
    """
    now = {way: jax.tree.map(jnp.copy, states) for way in steps}
    done = dict.fromkeys(steps, n_R)

    def run(way: str, calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            now[way], metrics = steps[way](now[way], done[way], *data)
            jax.block_until_ready(metrics)
            done[way] = np.where(n_R < 0, n_R, done[way] + 1)
        return (time.perf_counter() - began) / calls

    for way in steps:
        run(way, 1)
    once = max(run(way, 1) for way in steps)
    calls = max(1, min(100, math.floor(_TURN_SECONDS / once)))
    turns = [{way: run(way, calls) for way in steps} for _ in range(_TURNS)]
    return {way: statistics.median(turn[way] for turn in turns) for way in steps}
