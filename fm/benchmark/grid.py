"""Many runs as one program, through `fm.training.members`: a step of all members, in both ways.

The peer takes the members' steps one after another through `fm.training.step`. There a learning
rate is a constant of the program, so every rate is compiled; in a grid it is data. What that
saves is in the cases that count compilation, where ours is also timed with the measurement that
picks the way. FLOPs are those of all members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.benchmark.case import Case
from fm.benchmark.programs import compiled_in, least_bytes, peak_memory
from fm.benchmark.settings import Setting
from fm.benchmark.step import ADAMW, NEXT, compare_size, size, tokens, whole_rows
from fm.benchmark.timing import Side
from fm.data.pieces import patch_positions
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import recipes
from fm.training import members, optimizer, state
from fm.training.account import Batch, cost
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.step import train_step

# Long enough that no schedule ends while a case is timed.
_LENGTH = 100_000
_RATES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What the members train: seeds differ from one to the next, learning rates too."""

    name: str
    model: ModelConfig
    objective: Objective
    rule: OptimizerConfig
    batches: list[Batch]

    @property
    def rules(self) -> list[OptimizerConfig]:
        """By member: four learning rates, each with as many seeds as it takes."""
        rates = [self.rule.learning_rate * 0.5 ** (r % _RATES) for r in range(len(self.batches))]
        return [dataclasses.replace(self.rule, learning_rate=rate) for rate in rates]

    @property
    def states(self) -> list[state.State]:
        """By member, at its start."""
        return [
            state.init(init(jax.random.key(seed), self.model), optimizer.build(rule, _LENGTH))
            for seed, rule in enumerate(self.rules)
        ]

    @property
    def weights_V(self) -> jax.Array | None:
        """Of the bag objective."""
        return jnp.ones(self.model.vocab) if self.objective.bag else None


def cases(setting: Setting) -> Iterator[Case]:
    """Members where dispatch dominates, and of the sizes `compare` pretrains.

    Eight on a CPU, and as many as keep it busy on an accelerator.
    """
    found = problems(setting)
    for problem in found:
        yield _steps(problem)
    for problem in found if setting.scale == "full" else found[:1]:
        yield _whole(problem, steps=10 if setting.quick else 200)


def problems(setting: Setting) -> list[Problem]:
    """The tiny one, then images and text as `compare` has them."""
    count = 3 if setting.quick else 32 if setting.accelerator else 8
    seeds = [dataclasses.replace(setting, seed=setting.seed + r) for r in range(count)]
    small = size(1, 32, 16, 4, 64)
    rows = [whole_rows(tokens(small, each)) for each in seeds]
    tiny = Problem(small.name, small.model, NEXT, ADAMW, rows)
    if setting.quick:
        return [tiny]
    image, text, large = recipes.image(), recipes.text(), compare_size()
    model = dataclasses.replace(image.model, continuous=(("image", image.patch**2),), axes=2)
    pictures = [_pictures(image.batch_size, image.patch, each) for each in seeds]
    rows = [whole_rows(tokens(large, each)) for each in seeds]
    return [
        tiny,
        Problem("digits, as compare", model, image.objective, image.optimizer, pictures),
        Problem(f"{large.name}, as compare", large.model, text.objective, text.optimizer, rows),
    ]


def _pictures(batch_size: int, patch: int, setting: Setting, side: int = 8) -> Batch:
    """Grey noise, in patches."""
    place = patch_positions(side, side, patch)
    rng = np.random.default_rng(setting.seed)
    return {
        "image": rng.integers(0, 256, (batch_size, len(place), patch**2)).astype(np.uint8),
        "positions": np.tile(place, (batch_size, 1, 1)),
        "segments": np.ones((batch_size, len(place)), np.int32),
    }


def _steps(problem: Problem) -> Case:
    costs = [cost(batch, problem.model, problem.objective) for batch in problem.batches]
    return Case(
        what="grid",
        name=f"{len(costs)} members, {problem.name}",
        dtype=problem.model.dtype,
        ours={way: lambda way=way: grid_side(problem, way) for way in members.WAYS},
        peers={"jax": {"one after another": lambda: separate_side(problem)}},
        flops=sum(each.flops for each in costs),
        tokens=sum(int(each.tokens) for each in costs),
    )


def _whole(problem: Problem, steps: int) -> Case:
    """From nothing compiled to so many steps."""

    def ours(way: str | None) -> Side:
        return Side(call=lambda: run_grid(problem, way, steps), wait=jax.block_until_ready)

    def theirs() -> Side:
        return Side(call=lambda: run_separately(problem, steps), wait=jax.block_until_ready)

    count, rates = len(problem.batches), len(set(problem.rules))
    return Case(
        what="grid",
        name=f"{count} members, {rates} rates, {problem.name}, {steps} steps and compilation",
        dtype=problem.model.dtype,
        ours={"vmap": lambda: ours("vmap"), "as measured": lambda: ours(None)},
        peers={"jax": {"one after another": theirs}},
    )


def grid_side(problem: Problem, way: str) -> Side:
    """Steps of all members as one program."""
    do_step: Any = _program(problem, way)
    states, rest = _start(problem)
    n_R = np.zeros(len(problem.batches), np.int32)
    seconds, compiled = compiled_in(do_step, states, n_R, *rest)
    least = least_bytes(do_step, states, n_R, *rest)
    now = [states, n_R]

    def call():
        now[0], metrics = do_step(*now, *rest)
        now[1] = now[1] + 1
        return metrics

    return Side(call, jax.block_until_ready, True, seconds, peak_memory(compiled), least)


def separate_side(problem: Problem) -> Side:
    """A step of each member, one after another."""
    advance = _separately(problem)
    return Side(call=advance, wait=jax.block_until_ready, chained=True)


def run_grid(problem: Problem, way: str | None, steps: int) -> members.Metrics:
    """Compiles, picks the way if none is given, and takes so many steps; the last metrics."""
    states, rest = _start(problem)
    n_R = np.zeros(len(problem.batches), np.int32)
    programs = {each: _program(problem, each) for each in ([way] if way else members.WAYS)}
    if way is None:
        seconds = members.seconds_per_step(programs, states, n_R, *rest)
        way = min(seconds, key=seconds.__getitem__)
    metrics = {}
    for n in range(steps):
        states, metrics = programs[way](states, n_R + n, *rest)
    return metrics


def run_separately(problem: Problem, steps: int) -> members.Metrics:
    """Compiles and takes so many steps of every member; the last metrics, stacked."""
    advance = _separately(problem)
    last = [advance() for _ in range(steps)][-1]
    return members.stack(last)


def _program(problem: Problem, way: str) -> members.MembersStep:
    # Past the cache of programs, so that compilation is measured anew each time.
    build = members.members_step.__wrapped__
    return build(problem.model, problem.objective, members.shared(problem.rule), 1, way)


def _start(problem: Problem) -> tuple[state.State, tuple[Any, ...]]:
    """The stacked states, and the arguments of a step after its number."""
    count, weights_V = len(problem.batches), problem.weights_V
    rates = [members.rates(rule, _LENGTH, 2)[1] for rule in problem.rules]
    weights_RV = None if weights_V is None else members.stack([weights_V] * count)
    seeds_R = np.arange(count, dtype=np.uint32)
    rest = members.stack(problem.batches), seeds_R, np.stack(rates), weights_RV
    return members.stack(problem.states), rest


def _separately(problem: Problem) -> Callable[[], list[members.Metrics]]:
    """A function that takes one more step of every member, and gives their metrics."""
    programs = {
        rule: train_step.__wrapped__(problem.model, problem.objective, rule, _LENGTH)
        for rule in problem.rules
    }
    now, weights_V = problem.states, problem.weights_V

    def advance():
        metrics = []
        for r, rule in enumerate(problem.rules):
            now[r], figures = programs[rule](now[r], problem.batches[r], r, weights_V)
            metrics.append(figures)
        return metrics

    return advance
