"""Measures one training step of a recipe on this machine: parameters, tokens, time and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from fm.data.datasets import Split
from fm.data.media import PatchLayout, layout_of
from fm.data.packing import NUM_POSITION_AXES
from fm.model.config import ModelConfig
from fm.parallel import distributed
from fm.parallel.mesh import current_mesh, default_device
from fm.planning import memory
from fm.study.config import JointRecipe, Recipe
from fm.study.joint_pretraining import Source, layouts_by_modality, modality_batch_sizes
from fm.training import optimizer
from fm.training.multitask import AnyObjective, MultitaskObjective
from fm.training.objectives import Batch
from fm.training.optimizer import OptimizerConfig
from fm.training.progress import step_cost
from fm.training.runtime import gemm_flops_per_second
from fm.training.train_state import init_sharded, init_sharded_train_state
from fm.training.train_step import make_train_step

# A step that would take longer, or whose state would fill the memory, is not run but estimated from
# the measured rate of matrix products, of which training reaches about this share.
_MAX_STEP_SECONDS, _GEMM_SHARE = 10.0, 0.4
_NUM_STEPS = 3
# Parameters, gradient and the optimizer's state, which is as large as two copies at most.
_STATE_SHARE_OF_MEMORY = 0.3


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """What a training step takes.

    Attributes:
      num_params: parameters of the model, embeddings and heads included.
      tokens: tokens or patches of a batch, if no row is padded.
      flops: counted by `fm.model.flops`.
      seconds: of one step once compiled.
      compile_seconds: of compiling it; 0 if it was not compiled.
      memory_bytes: of the train state and of what the step needs besides, on all devices.
      state_bytes: of the train state, which is what a checkpoint holds.
      measured: whether the time is that of this step, or of a similar one, as it was run here.
    """

    num_params: int
    tokens: int
    flops: float
    seconds: float
    compile_seconds: float
    memory_bytes: int
    state_bytes: int
    measured: bool

    @property
    def flops_per_second(self) -> float:
        """Returns the rate at which the step computes."""
        return self.flops / self.seconds


def recipe_step(
    recipe: Recipe, modality: str, corpus: Split | None, rate: float | None = None
) -> StepEstimate:
    """Returns what a pretraining step of a recipe takes on a corpus of one modality.

    Texts are random tokens of the recipe's vocabulary, since no tokenizer is trained; their corpus
    is not read, and may be None.
    """
    if modality == "text":
        model = dataclasses.replace(recipe.model, vocab_size=recipe.vocab_size)
        batch = text_batch(recipe.batch_size, recipe.seq_len, recipe.vocab_size)
    else:
        assert corpus is not None
        shape = np.asarray(corpus.inputs([0])).shape[1:]
        layout = layout_of(modality, shape, rate, recipe.patch_size, raster=recipe.raster)
        model = dataclasses.replace(
            recipe.model,
            patch_dims=((modality, layout.patch_dim),),
            position_axes=layout.num_axes,
        )
        batch = _patch_batch(corpus, layout, recipe.batch_size)
    return estimate_step(model, recipe.objective, recipe.optimizer, batch, recipe.grad_accum_steps)


def joint_step(
    recipe: JointRecipe, sources: Sequence[Source], *, flops_per_second: float | None = None
) -> StepEstimate:
    """Returns what a step of pretraining on several sources takes, captions left out.

    Args:
      recipe: of the model.
      sources: of its batches.
      flops_per_second: rate of a step of a similar model, to run none; None measures it.
    """
    layouts, batch = layouts_by_modality(sources), {}
    for modality, rows in modality_batch_sizes(sources, recipe.batch_size).items():
        if modality == "text":
            batch[modality] = text_batch(rows, recipe.seq_len, recipe.vocab_size)
        else:
            corpus = next(each.corpus for each in sources if each.modality == modality)
            batch[modality] = _patch_batch(corpus, layouts[modality], rows)
    model = dataclasses.replace(
        recipe.model,
        vocab_size=recipe.vocab_size if "text" in batch else 0,
        patch_dims=tuple((name, layout.patch_dim) for name, layout in layouts.items()),
        position_axes=NUM_POSITION_AXES,
    )
    objectives = dict(recipe.objectives)
    objective = MultitaskObjective(tuple((name, objectives[name]) for name in batch))
    if flops_per_second is not None:
        return _from_rate(model, objective, recipe.optimizer, batch, flops_per_second)
    return estimate_step(model, objective, recipe.optimizer, batch, recipe.grad_accum_steps)


_estimated: dict[Any, StepEstimate] = {}


def estimate_step(
    model: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    batch: Batch,
    grad_accum_steps: int = 1,
) -> StepEstimate:
    """Returns what a training step takes, from a few steps run once in this process.

    A step too large to try is estimated from its FLOPs and the rate of matrix products.
    """
    mesh = current_mesh()
    shapes = tuple((jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in _leaves(batch))
    key = model, objective, optimizer_config, shapes, grad_accum_steps, mesh
    if key not in _estimated:
        _estimated[key] = _estimate(model, objective, optimizer_config, batch, grad_accum_steps)
    return _estimated[key]


def _estimate(
    model: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    batch: Batch,
    grad_accum_steps: int,
) -> StepEstimate:
    rate = _GEMM_SHARE * gemm_flops_per_second(model.dtype)
    rough = _from_rate(model, objective, optimizer_config, batch, rate)
    is_large = rough.state_bytes > _STATE_SHARE_OF_MEMORY * _memory_bytes()
    if is_large or rough.seconds > _MAX_STEP_SECONDS:
        return dataclasses.replace(rough, measured=False)
    seconds, compile_seconds, temporary = _run_steps(
        model, objective, optimizer_config, batch, grad_accum_steps
    )
    return dataclasses.replace(
        rough,
        seconds=seconds,
        compile_seconds=compile_seconds,
        memory_bytes=rough.state_bytes + temporary,
    )


def _from_rate(
    model: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    batch: Batch,
    flops_per_second: float,
) -> StepEstimate:
    """Returns what a step takes at a rate of FLOPs that is known; nothing is run."""
    state = memory.state_shapes(model, optimizer_config)
    state_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    num_params = memory.num_elements(state.params)
    cost = step_cost(batch, model, objective)
    return StepEstimate(
        num_params=num_params,
        tokens=int(cost.tokens),
        flops=cost.flops,
        seconds=cost.flops / flops_per_second,
        compile_seconds=0.0,
        # The gradient is as large as the parameters.
        memory_bytes=state_bytes + 4 * num_params,
        state_bytes=state_bytes,
        measured=True,
    )


def _run_steps(
    model: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    batch: Batch,
    grad_accum_steps: int,
) -> tuple[float, float, int]:
    """Returns the seconds of a step, those of compiling it, and the bytes it needs for itself."""
    mesh = current_mesh()
    init = functools.partial(init_sharded, jax.random.key(0), model)
    state = init_sharded_train_state(init(), optimizer.build(optimizer_config, 100), mesh)
    if mesh is not None:
        batch = distributed.make_global_batch(batch, mesh)
    weights = jnp.ones(model.vocab_size, jnp.float32) if model.vocab_size else None
    step = make_train_step(model, objective, optimizer_config, 100, grad_accum_steps)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        began = time.perf_counter()
        compiled = step.lower(state, batch, np.int32(0), weights).compile()  # pyright: ignore
        compile_seconds = time.perf_counter() - began
        timings = []
        for _ in range(1 + _NUM_STEPS):  # the first touches its memory for the first time
            began = time.perf_counter()
            state, metrics = compiled(state, batch, np.int32(0), weights)
            jax.block_until_ready((state, metrics))
            timings.append(time.perf_counter() - began)
    analysis = compiled.memory_analysis()
    temporary = getattr(analysis, "temp_size_in_bytes", 0) or 0
    return float(np.median(timings[1:])), compile_seconds, int(temporary)


def _memory_bytes() -> int:
    """Returns the memory that a step may use: of the device, or on a CPU what is free."""
    device = default_device()
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) * jax.device_count()
    return int(psutil.virtual_memory().available)


def _leaves(batch: Batch) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(batch)


def text_batch(rows: int, length: int, vocab_size: int) -> Batch:
    """Returns random tokens, each row a text of the whole length."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length), dtype=np.int32)
    return {
        "tokens": tokens,
        "segments": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }


def _patch_batch(corpus: Split, layout: PatchLayout, rows: int) -> Batch:
    """Returns patches of the first examples of a corpus."""
    patches = layout.to_patches(np.asarray(corpus.inputs(np.arange(rows) % len(corpus))))
    positions = layout.positions().astype(np.int32)
    return {
        layout.modality: np.asarray(patches),
        "segments": np.ones((rows, len(positions)), np.int32),
        "positions": np.tile(positions, (rows, 1, 1)),
    }
