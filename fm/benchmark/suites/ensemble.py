"""Many runs as one vmapped program (`fm.training.sweep`): a step of all members.

The peer takes the members' steps one after another. There a learning rate is a constant of the
program, so every rate is compiled; in a vmapped sweep it is data. The cases that count compilation
show what that saves. FLOPs are those of all members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.benchmark.core import BenchConfig, Candidate, Case
from fm.benchmark.suites.train_step import (
    ADAMW,
    CAUSAL_LM,
    compare_pretraining_shape,
    random_tokens,
    step_shape,
    whole_rows,
)
from fm.benchmark.timing import min_bytes, peak_memory, timed_compile
from fm.data.patches import patch_positions
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import presets
from fm.training import optimizer, sweep
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from fm.training.progress import Batch, step_cost
from fm.training.train_state import TrainState, init_train_state
from fm.training.train_step import Metrics, make_train_step

_NUM_STEPS = 100_000  # no schedule ends while a case is timed
_NUM_RATES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleProblem:
    """A model, objective and batches to train as an ensemble over seeds and learning rates."""

    name: str
    model: ModelConfig
    objective: PretrainingObjective
    optimizer_config: OptimizerConfig
    batches: list[Batch]

    @property
    def optimizer_configs(self) -> list[OptimizerConfig]:
        """Returns each member's optimizer config, cycling through four learning rates."""
        base = self.optimizer_config
        rates = [base.learning_rate * 0.5 ** (r % _NUM_RATES) for r in range(len(self.batches))]
        return [dataclasses.replace(base, learning_rate=rate) for rate in rates]

    @property
    def states(self) -> list[TrainState]:
        """Returns each member's train state before the first step."""
        return [
            init_train_state(
                init(jax.random.key(seed), self.model), optimizer.build(each, _NUM_STEPS)
            )
            for seed, each in enumerate(self.optimizer_configs)
        ]

    @property
    def token_weights_V(self) -> jax.Array | None:
        """Returns the token weights of the bag-of-words objective."""
        return jnp.ones(self.model.vocab_size) if self.objective.bag_of_words else None


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields cases that train an ensemble vmapped or one by one, of tiny and study-size models.

    Eight on a CPU, and as many as keep it busy on an accelerator.
    """
    found = problems(config)
    for problem in found:
        yield _step_case(problem)
    for problem in found if config.scale == "full" else found[:1]:
        yield _run_case(problem, num_steps=10 if config.quick else 200)


def problems(config: BenchConfig) -> list[EnsembleProblem]:
    """Returns a tiny problem and, unless config.quick, one per model of `fm compare`."""
    count = 3 if config.quick else 32 if config.on_accelerator else 8
    configs = [dataclasses.replace(config, seed=config.seed + r) for r in range(count)]
    tiny, large = step_shape(1, 32, 16, 4, 64), compare_pretraining_shape()
    batches = [whole_rows(random_tokens(tiny, each)) for each in configs]
    tiny_problem = EnsembleProblem(tiny.name, tiny.model, CAUSAL_LM, ADAMW, batches)
    if config.quick:
        return [tiny_problem]
    image, text = presets.image_recipe(), presets.text_recipe()
    model = dataclasses.replace(
        image.model, patch_dims=(("image", image.patch_size**2),), position_axes=2
    )
    images = [_noise_images(image.batch_size, image.patch_size, each) for each in configs]
    batches = [whole_rows(random_tokens(large, each)) for each in configs]
    return [
        tiny_problem,
        EnsembleProblem("digits, as compare", model, image.objective, image.optimizer, images),
        EnsembleProblem(
            f"{large.name}, as compare", large.model, text.objective, text.optimizer, batches
        ),
    ]


def _noise_images(batch_size: int, patch_size: int, config: BenchConfig, side: int = 8) -> Batch:
    """Gray noise, in patches."""
    positions = patch_positions(side, side, patch_size)
    rng = np.random.default_rng(config.seed)
    shape = (batch_size, len(positions), patch_size**2)
    return {
        "image": rng.integers(0, 256, shape).astype(np.uint8),
        "positions": np.tile(positions, (batch_size, 1, 1)),
        "segments": np.ones(shape[:2], np.int32),
    }


def _step_case(problem: EnsembleProblem) -> Case:
    costs = [step_cost(batch, problem.model, problem.objective) for batch in problem.batches]
    return Case(
        suite="ensemble",
        name=f"{len(costs)} members, {problem.name}",
        dtype=problem.model.dtype,
        candidates={"vmap": lambda: _sweep_candidate(problem)},
        peers={"jax": {"one after another": lambda: _separate_candidate(problem)}},
        flops=sum(each.flops for each in costs),
        num_tokens=sum(int(each.tokens) for each in costs),
    )


def _run_case(problem: EnsembleProblem, num_steps: int) -> Case:
    """From nothing compiled to `num_steps` steps."""

    def ours() -> Candidate:
        return Candidate(lambda: run_sweep(problem, num_steps), jax.block_until_ready)

    def theirs() -> Candidate:
        return Candidate(lambda: run_separately(problem, num_steps), jax.block_until_ready)

    count, rates = len(problem.batches), len(set(problem.optimizer_configs))
    return Case(
        suite="ensemble",
        name=f"{count} members, {rates} rates, {problem.name}, {num_steps} steps and compilation",
        dtype=problem.model.dtype,
        candidates={"vmap": ours},
        peers={"jax": {"one after another": theirs}},
    )


def _sweep_candidate(problem: EnsembleProblem) -> Candidate:
    """Steps of all members as one program."""
    do_step: Any = _sweep_step(problem)
    states, rest = _sweep_arguments(problem)
    n_R = np.zeros(len(problem.batches), np.int32)
    seconds, compiled = timed_compile(do_step, states, n_R, *rest)
    bytes_moved = min_bytes(do_step, states, n_R, *rest)
    current = [states, n_R]

    def call():
        current[0], metrics = do_step(*current, *rest)
        current[1] = current[1] + 1
        return metrics

    memory = peak_memory(compiled)
    return Candidate(call, jax.block_until_ready, True, seconds, memory, bytes_moved)


def _separate_candidate(problem: EnsembleProblem) -> Candidate:
    """A step of each member, one after another."""
    return Candidate(_separate_steps(problem), wait=jax.block_until_ready, chained=True)


def run_sweep(problem: EnsembleProblem, num_steps: int) -> Metrics:
    """Trains all members as one vmapped program; returns the metrics of the last step."""
    states, rest = _sweep_arguments(problem)
    n_R = np.zeros(len(problem.batches), np.int32)
    do_step, metrics = _sweep_step(problem), {}
    for n in range(num_steps):
        states, metrics = do_step(states, n_R + n, *rest)
    return metrics


def run_separately(problem: EnsembleProblem, num_steps: int) -> Metrics:
    """Trains the members one after another; returns their last metrics, stacked."""
    do_steps = _separate_steps(problem)
    return sweep.stack_trees([do_steps() for _ in range(num_steps)][-1])


def _sweep_step(problem: EnsembleProblem) -> sweep.SweepStepFn:
    # Past the cache of programs, so that compilation is measured anew each time.
    build = sweep.make_sweep_step.__wrapped__
    shared = sweep.shared_optimizer_config(problem.optimizer_config)
    return build(problem.model, problem.objective, shared, 1)


def _sweep_arguments(problem: EnsembleProblem) -> tuple[TrainState, tuple[Any, ...]]:
    """The stacked states, and the arguments of a step after its number."""
    count, weights_V = len(problem.batches), problem.token_weights_V
    rates = [sweep.learning_rates(each, _NUM_STEPS, 2)[1] for each in problem.optimizer_configs]
    weights_RV = None if weights_V is None else sweep.stack_trees([weights_V] * count)
    seeds_R = np.arange(count, dtype=np.uint32)
    rest = sweep.stack_trees(problem.batches), seeds_R, np.stack(rates), weights_RV
    return sweep.stack_trees(problem.states), rest


def _separate_steps(problem: EnsembleProblem) -> Callable[[], list[Metrics]]:
    """A function that takes one more step of every member and returns their metrics."""
    programs = {
        each: make_train_step.__wrapped__(problem.model, problem.objective, each, _NUM_STEPS)
        for each in problem.optimizer_configs
    }
    states, weights_V = problem.states, problem.token_weights_V

    def call():
        metrics = []
        for r, each in enumerate(problem.optimizer_configs):
            states[r], figures = programs[each](states[r], problem.batches[r], r, weights_V)
            metrics.append(figures)
        return metrics

    return call
