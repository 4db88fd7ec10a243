"""Many runs as one program, through `fm.training.sweep`: a step of all members, in both ways.

The peer takes the members' steps one after another through `fm.training.train_step`. There a learning
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

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.step import ADAMW, CAUSAL_LM, compare_shape, step_shape, tokens, whole_rows
from fm.benchmark.timing import Candidate, min_bytes, peak_memory, timed_compile
from fm.data.patches import patch_positions
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import presets
from fm.training import optimizer, sweep, train_state
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.progress import Batch, step_cost
from fm.training.train_step import make_train_step

# Long enough that no schedule ends while a case is timed.
_LENGTH = 100_000
_RATES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleProblem:
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
    def states(self) -> list[train_state.TrainState]:
        """By member, at its start."""
        return [
            train_state.init_train_state(
                init(jax.random.key(seed), self.model), optimizer.build(rule, _LENGTH)
            )
            for seed, rule in enumerate(self.rules)
        ]

    @property
    def weights_V(self) -> jax.Array | None:
        """Of the bag objective."""
        return jnp.ones(self.model.vocab_size) if self.objective.bag_of_words else None


def cases(setting: BenchConfig) -> Iterator[Case]:
    """Members where dispatch dominates, and of the sizes `compare` pretrains.

    Eight on a CPU, and as many as keep it busy on an accelerator.
    """
    found = problems(setting)
    for problem in found:
        yield _steps(problem)
    for problem in found if setting.scale == "full" else found[:1]:
        yield _whole(problem, steps=10 if setting.quick else 200)


def problems(setting: BenchConfig) -> list[EnsembleProblem]:
    """The tiny one, then images and text as `compare` has them."""
    count = 3 if setting.quick else 32 if setting.on_accelerator else 8
    seeds = [dataclasses.replace(setting, seed=setting.seed + r) for r in range(count)]
    small = step_shape(1, 32, 16, 4, 64)
    rows = [whole_rows(tokens(small, each)) for each in seeds]
    tiny = EnsembleProblem(small.name, small.model, CAUSAL_LM, ADAMW, rows)
    if setting.quick:
        return [tiny]
    image, text, large = presets.image_recipe(), presets.text_recipe(), compare_shape()
    model = dataclasses.replace(
        image.model, patch_dims=(("image", image.patch_size**2),), position_axes=2
    )
    pictures = [_pictures(image.batch_size, image.patch_size, each) for each in seeds]
    rows = [whole_rows(tokens(large, each)) for each in seeds]
    return [
        tiny,
        EnsembleProblem("digits, as compare", model, image.objective, image.optimizer, pictures),
        EnsembleProblem(
            f"{large.name}, as compare", large.model, text.objective, text.optimizer, rows
        ),
    ]


def _pictures(batch_size: int, patch: int, setting: BenchConfig, side: int = 8) -> Batch:
    """Grey noise, in patches."""
    place = patch_positions(side, side, patch)
    rng = np.random.default_rng(setting.seed)
    return {
        "image": rng.integers(0, 256, (batch_size, len(place), patch**2)).astype(np.uint8),
        "positions": np.tile(place, (batch_size, 1, 1)),
        "segments": np.ones((batch_size, len(place)), np.int32),
    }


def _steps(problem: EnsembleProblem) -> Case:
    costs = [step_cost(batch, problem.model, problem.objective) for batch in problem.batches]
    return Case(
        suite="grid",
        name=f"{len(costs)} members, {problem.name}",
        dtype=problem.model.dtype,
        candidates={way: lambda way=way: grid_side(problem, way) for way in sweep.BATCHING_MODES},
        peers={"jax": {"one after another": lambda: separate_side(problem)}},
        flops=sum(each.flops for each in costs),
        num_tokens=sum(int(each.tokens) for each in costs),
    )


def _whole(problem: EnsembleProblem, steps: int) -> Case:
    """From nothing compiled to so many steps."""

    def ours(way: str | None) -> Candidate:
        return Candidate(call=lambda: run_grid(problem, way, steps), wait=jax.block_until_ready)

    def theirs() -> Candidate:
        return Candidate(call=lambda: run_separately(problem, steps), wait=jax.block_until_ready)

    count, rates = len(problem.batches), len(set(problem.rules))
    return Case(
        suite="grid",
        name=f"{count} members, {rates} rates, {problem.name}, {steps} steps and compilation",
        dtype=problem.model.dtype,
        candidates={"vmap": lambda: ours("vmap"), "as measured": lambda: ours(None)},
        peers={"jax": {"one after another": theirs}},
    )


def grid_side(problem: EnsembleProblem, way: str) -> Candidate:
    """Steps of all members as one program."""
    do_step: Any = _program(problem, way)
    states, rest = _start(problem)
    n_R = np.zeros(len(problem.batches), np.int32)
    seconds, compiled = timed_compile(do_step, states, n_R, *rest)
    least = min_bytes(do_step, states, n_R, *rest)
    now = [states, n_R]

    def call():
        now[0], metrics = do_step(*now, *rest)
        now[1] = now[1] + 1
        return metrics

    return Candidate(call, jax.block_until_ready, True, seconds, peak_memory(compiled), least)


def separate_side(problem: EnsembleProblem) -> Candidate:
    """A step of each member, one after another."""
    advance = _separately(problem)
    return Candidate(call=advance, wait=jax.block_until_ready, chained=True)


def run_grid(problem: EnsembleProblem, way: str | None, steps: int) -> sweep.Metrics:
    """Compiles, picks the way if none is given, and takes so many steps; the last metrics."""
    states, rest = _start(problem)
    n_R = np.zeros(len(problem.batches), np.int32)
    programs = {each: _program(problem, each) for each in ([way] if way else sweep.BATCHING_MODES)}
    if way is None:
        seconds = sweep.seconds_per_step(programs, states, n_R, *rest)
        way = min(seconds, key=seconds.__getitem__)
    metrics = {}
    for n in range(steps):
        states, metrics = programs[way](states, n_R + n, *rest)
    return metrics


def run_separately(problem: EnsembleProblem, steps: int) -> sweep.Metrics:
    """Compiles and takes so many steps of every member; the last metrics, stacked."""
    advance = _separately(problem)
    last = [advance() for _ in range(steps)][-1]
    return sweep.stack_trees(last)


def _program(problem: EnsembleProblem, way: str) -> sweep.SweepStepFn:
    # Past the cache of programs, so that compilation is measured anew each time.
    build = sweep.make_sweep_step.__wrapped__
    return build(
        problem.model, problem.objective, sweep.shared_optimizer_config(problem.rule), 1, way
    )


def _start(problem: EnsembleProblem) -> tuple[train_state.TrainState, tuple[Any, ...]]:
    """The stacked states, and the arguments of a step after its number."""
    count, weights_V = len(problem.batches), problem.weights_V
    rates = [sweep.learning_rates(rule, _LENGTH, 2)[1] for rule in problem.rules]
    weights_RV = None if weights_V is None else sweep.stack_trees([weights_V] * count)
    seeds_R = np.arange(count, dtype=np.uint32)
    rest = sweep.stack_trees(problem.batches), seeds_R, np.stack(rates), weights_RV
    return sweep.stack_trees(problem.states), rest


def _separately(problem: EnsembleProblem) -> Callable[[], list[sweep.Metrics]]:
    """A function that takes one more step of every member, and gives their metrics."""
    programs = {
        rule: make_train_step.__wrapped__(problem.model, problem.objective, rule, _LENGTH)
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
