"""Helpers of the tests on eight devices, which `test_sharding` runs in subprocesses."""

import dataclasses

import jax
import numpy as np
from jax.sharding import NamedSharding

from fm.data.batches import text_batches
from fm.model import ModelConfig
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.training import (
    OptimizerConfig,
    PretrainingObjective,
    TrainConfig,
    optimizer,
    train_state,
    train_step,
)
from tests.training.helpers_models import ADAM, VOCAB, params

HALVES = PretrainingObjective(causal_lm=0.5, masked_lm=0.5)
MUON = OptimizerConfig()
WEIGHTS = np.linspace(0.5, 2.0, VOCAB).astype(np.float32)
RUN = TrainConfig(steps=6, checkpoint_every=3, log_every=2, validate_every=3)
TEXT = ModelConfig(
    num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, mlp_dim=32, vocab_size=VOCAB
)
TINY = dataclasses.replace(TEXT, num_layers=1, attention="reference")
gradient_of = jax.jit(train_step.loss_and_gradient, static_argnums=(3, 4, 6))


def text(rows=16, seed=0):
    pieces = [np.arange(n, n + 3 + n % 9, dtype=np.int32) % VOCAB for n in range(80)]
    return text_batches([pieces], batch_size=rows, length=12, seed=seed)


def mesh_of(sizes):
    config = meshes.parse_mesh(sizes)
    return config.build(jax.devices()[: config.num_devices])


def shard(sizes, *, params, batch):
    mesh = mesh_of(sizes)
    return mesh, sharding.shard_state(params, mesh), sharding.shard_batch(batch, mesh)


def close(expected, found, tolerance):
    def check(path, a, b):
        scale = tolerance * max(1.0, float(np.abs(a).max(initial=0.0)))
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), 0, scale, err_msg=name)

    jax.tree_util.tree_map_with_path(check, expected, found)


def compiled(model, sizes, rows=16, length=32, objective=HALVES):
    """The step's program, made of shapes alone."""
    rule = optimizer.build(ADAM, 10)
    shapes = jax.eval_shape(lambda: train_state.init_train_state(params(model), rule))
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), np.int32)
        for name in ("tokens", "positions", "segments")
    }
    do_step = train_step.make_train_step(model, objective, ADAM, 10)
    if sizes is None:
        return do_step.lower(shapes, batch, 0, None).compile()
    mesh = mesh_of(sizes)
    rows_over = NamedSharding(mesh, sharding.batch_spec())

    def placed(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    shapes = jax.tree.map(placed, shapes, sharding.state_shardings(shapes, mesh))
    batch = jax.tree.map(lambda leaf: placed(leaf, rows_over), batch)
    with jax.set_mesh(mesh):
        return do_step.lower(shapes, batch, 0, None).compile()
