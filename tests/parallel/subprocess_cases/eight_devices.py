"""Eight devices against one; `test_sharding` runs each test in a process with eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation.finetune import FinetuneConfig, finetune, predict_logits
from fm.data.batches import BatchesByGroup, patch_batches
from fm.errors import UserError
from fm.model import ModelConfig
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.training import MultitaskObjective, PretrainingObjective, optimizer, train_state, train_step
from tests.adaptation import helpers_models as transfer
from tests.parallel.helpers_eight_devices import (
    HALVES,
    MUON,
    TEXT,
    TINY,
    WEIGHTS,
    close,
    compiled,
    gradient_of,
    mesh_of,
    shard,
    text,
)
from tests.training.helpers_models import ADAM, VOCAB, params

JOINT = ModelConfig(
    num_layers=2, d_model=24, num_heads=4, num_kv_heads=4, mlp_dim=32, vocab_size=VOCAB,
    position_axes=3, num_mixtures=2, scan_layers=True,
    patch_dims=(("image", 6), ("audio", 5), ("video", 4)), attention="reference",
)  # fmt: skip
POSITIONS = {
    "image": np.array(list(np.ndindex(2, 3)), np.int32),
    "audio": np.arange(7, dtype=np.int32)[:, None],
    "video": np.array(list(np.ndindex(2, 2, 1)), np.int32),
}
JOINT_OBJECTIVE = MultitaskObjective(
    (
        ("text", HALVES),
        *((name, PretrainingObjective(causal_lm=1.0, masked_lm=0.0)) for name in POSITIONS),
    )
)
CASES = (
    ("text", "fsdp:8"),
    ("text", "data:2,tensor:4"),
    ("joint", "data:2,fsdp:2,tensor:2"),
)


def formats(seed=0):
    rng = np.random.default_rng(0)

    def of(name):
        shape = (24, len(POSITIONS[name]), JOINT.patch_dim(name))
        drawn = rng.integers(0, 256, shape).astype(np.uint8)
        return patch_batches([drawn], POSITIONS[name], batch_size=8, seed=seed, modality=name)

    return BatchesByGroup({"text": text(seed=seed), **{name: of(name) for name in POSITIONS}})


PROBLEMS = {"text": (TEXT, HALVES, text), "joint": (JOINT, JOINT_OBJECTIVE, formats)}


@functools.cache
def alone(name):
    """On one device: metrics and gradient, then those of ten steps and the parameters after."""
    config, objective, batches = PROBLEMS[name]
    data, start = batches(), jax.tree.map(jnp.asarray, params(config))
    first = next(data)
    gradient = gradient_of(start, first, jax.random.key(0), config, objective, WEIGHTS, 1)
    rule = optimizer.build(MUON, 10)
    do_step = train_step.make_train_step(config, objective, MUON, 10)
    now, losses = train_state.init_train_state(start, rule), []
    for n in range(10):
        now, metrics = do_step(now, first if n == 0 else next(data), 0, WEIGHTS)
        losses.append(jax.device_get(metrics))
    return jax.device_get((gradient, losses, now.params))


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_a_mesh_agrees_with_one_device(name, sizes):
    config, objective, batches = PROBLEMS[name]
    data = batches()
    mesh, start, first = shard(sizes, params=params(config), batch=next(data))
    gradient, losses, after = alone(name)
    rule = optimizer.build(MUON, 10)
    do_step = train_step.make_train_step(config, objective, MUON, 10)
    with jax.set_mesh(mesh):
        found = gradient_of(start, first, jax.random.key(0), config, objective, WEIGHTS, 1)
        close(gradient, found, 1e-5)
        now = train_state.init_sharded_train_state(params(config), rule, mesh)
        for n in range(10):
            batch = first if n == 0 else sharding.shard_batch(next(data), mesh)
            now, metrics = do_step(now, batch, 0, WEIGHTS)
            close(losses[n], metrics, 1e-4)
    close(after, now.params, 1e-4)
    # Nothing has moved.
    jax.tree.map(
        lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
        now, sharding.state_shardings(now, mesh),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "sizes"),
    [(TEXT, "fsdp:8"), (JOINT, "data:2,fsdp:2,tensor:2"), (JOINT, "tensor:2")],
)
def test_parameters_are_created_where_they_stay(config, sizes):
    mesh, key = mesh_of(sizes), jax.random.key(3)
    expected = train_state.init_sharded(key, config)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(expected))
    with meshes.default_mesh(mesh):
        created = train_state.init_sharded(key, config)
    close(expected, created, 0)
    assert train_state.params_digest(created) == train_state.params_digest(expected)
    shardings = sharding.state_shardings(created, mesh)
    now = train_state.init_sharded_train_state(created, optimizer.build(ADAM, 10), mesh)
    for each in (created, now.params, sharding.shard_state(created, mesh)):
        jax.tree.map(
            lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
            each, shardings,
        )  # fmt: skip
    # A step consumes the state, not what it was started from.
    jax.tree.map(lambda leaf: leaf.delete(), now)
    close(expected, created, 0)


def test_memory_of_init_falls_with_devices():
    model = dataclasses.replace(
        TEXT, d_model=128, mlp_dim=512, vocab_size=1024, num_heads=8, num_kv_heads=8
    )
    memory = {
        sizes: train_state.make_sharded_init(mesh_of(sizes), model)
        .lower(jax.random.key(0))
        .compile()
        .memory_analysis()
        for sizes in ("data:8", "fsdp:8", "tensor:8", "data:2,fsdp:4")
    }
    whole = memory.pop("data:8")
    for sizes, each in memory.items():
        parts = 4 if sizes.startswith("data") else 8
        assert each.output_size_in_bytes < 1.1 * whole.output_size_in_bytes / parts
        assert each.temp_size_in_bytes < 1.2 * whole.temp_size_in_bytes / parts


def test_memory_per_device_falls():
    model = ModelConfig(
        num_layers=2, d_model=64, num_heads=8, num_kv_heads=8, mlp_dim=256, vocab_size=256,
        scan_layers=True, attention="reference",
    )  # fmt: skip
    memory = {
        sizes: compiled(model, sizes).memory_analysis()
        for sizes in (None, "data:8", "fsdp:8", "tensor:8")
    }
    held = {sizes: each.argument_size_in_bytes for sizes, each in memory.items()}
    used = {sizes: each.temp_size_in_bytes for sizes, each in memory.items()}
    # The state is all but the batch, a few kB, and vectors.
    assert held["data:8"] > 0.95 * held[None]
    assert held["fsdp:8"] < held[None] / 7
    assert held["tensor:8"] < held[None] / 7
    # What a step works with falls too: activations with the rows or heads, a gradient with both.
    assert used["data:8"] < used[None] / 3
    assert used["fsdp:8"] < used[None] / 4
    assert used["tensor:8"] < used[None] / 2


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.1, 0.6, 0.3)])
def test_rows_that_do_not_divide(shares):
    objective = PretrainingObjective(*shares)
    batch, key = next(text(10)), jax.random.key(0)
    expected = gradient_of(params(TINY), batch, key, TINY, objective, WEIGHTS, 1)
    mesh, start, batch = shard("data:4,tensor:2", params=params(TINY), batch=batch)
    with jax.set_mesh(mesh):
        close(expected, gradient_of(start, batch, key, TINY, objective, WEIGHTS, 1), 1e-5)


@pytest.mark.parametrize("sizes", ["data:2,fsdp:2,tensor:2"])
def test_adapting_agrees_with_one_device(sizes):
    rows, labels = transfer.separable(20)
    tuning = FinetuneConfig(learning_rate=1e-2, min_steps=6, batch_size=8, tokens_kept=3)

    def adapted():
        tuned = finetune(
            transfer.params(),
            rows,
            labels,
            transfer.MODEL,
            tuning,
            num_classes=2,
            seed=0,
            pad_to=20,
        )
        return tuned, predict_logits(
            tuned, rows, transfer.MODEL, feature_config=tuning.feature_config, batch_size=16
        )

    alone, expected = adapted()
    with jax.set_mesh(mesh_of(sizes)):
        sharded, found = adapted()
    assert len(sharded["head"]["kernel"].sharding.device_set) == 8
    close(alone, sharded, 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_mesh_must_use_every_device():
    with pytest.raises(UserError, match=r"--mesh=data:4,.* takes 4 devices, not the 8 there are"):
        meshes.parse_mesh("data:4").build()
