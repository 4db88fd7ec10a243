"""Tests that need eight devices; `test_sharding.py` runs each in a process that has them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fm.data.batches import piece_batches, text_batches
from fm.data.groups import Grouped
from fm.errors import UserError
from fm.model import ModelConfig
from fm.training import (
    BitsPerByte,
    Joint,
    Objective,
    OptimizerConfig,
    RunConfig,
    grid,
    members,
    optimizer,
    sharding,
    state,
    step,
    train,
)
from fm.training.checkpoint import Checkpoints
from fm.training.roster import Member
from fm.transfer.finetune import FinetuneConfig, finetune, scores
from tests.training.problems import ADAM, VOCAB, params
from tests.transfer import problems as transfer

HALVES = Objective(next=0.5, masked=0.5)
MUON = OptimizerConfig()
WEIGHTS = np.linspace(0.5, 2.0, VOCAB).astype(np.float32)
TEXT = ModelConfig(depth=2, width=16, heads=4, kv_heads=2, hidden=32, vocab=VOCAB)
JOINT = ModelConfig(
    depth=2, width=24, heads=4, kv_heads=4, hidden=32, vocab=VOCAB, axes=3, mixtures=2, scan=True,
    continuous=(("image", 6), ("audio", 5), ("video", 4)), attention="reference",
)  # fmt: skip
PLACES = {
    "image": np.array(list(np.ndindex(2, 3)), np.int32),
    "audio": np.arange(7, dtype=np.int32)[:, None],
    "video": np.array(list(np.ndindex(2, 2, 1)), np.int32),
}
ASKED = Joint((("text", HALVES), *((name, Objective(next=1.0, masked=0.0)) for name in PLACES)))
CASES = (
    *(("text", sizes) for sizes in ("data:8", "fsdp:8", "data:2,tensor:4")),
    ("joint", "data:2,fsdp:2,tensor:2"),
)


def text(rows=16, seed=0):
    pieces = [np.arange(n, n + 3 + n % 9, dtype=np.int32) % VOCAB for n in range(80)]
    return text_batches([pieces], batch_size=rows, length=12, seed=seed)


def formats(seed=0):
    rng = np.random.default_rng(0)

    def of(name):
        shape = (24, len(PLACES[name]), JOINT.piece(name))
        drawn = rng.integers(0, 256, shape).astype(np.uint8)
        return piece_batches([drawn], PLACES[name], batch_size=8, seed=seed, stream=name)

    return Grouped({"text": text(seed=seed), **{name: of(name) for name in PLACES}})


PROBLEMS = {"text": (TEXT, HALVES, text), "joint": (JOINT, ASKED, formats)}


def mesh_of(sizes):
    config = sharding.parse(sizes)
    return config.build(jax.devices()[: config.size])


def spread(sizes, *, params, batch):
    mesh = mesh_of(sizes)
    return mesh, sharding.shard(params, mesh), sharding.shard_batch(batch, mesh)


def close(wanted, found, tolerance):
    def check(path, a, b):
        scale = tolerance * max(1.0, float(np.abs(a).max(initial=0.0)))
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), 0, scale, err_msg=name)

    jax.tree_util.tree_map_with_path(check, wanted, found)


@functools.cache
def alone(name):
    """On one device: metrics and gradient, then those of ten steps and the parameters after."""
    config, asked, batches = PROBLEMS[name]
    data, start = batches(), jax.tree.map(jnp.asarray, params(config))
    first = next(data)
    gradient = _gradient(start, first, jax.random.key(0), config, asked, WEIGHTS, 1)
    rule = optimizer.build(MUON, 10)
    do_step = step.train_step(config, asked, MUON, 10)
    now, losses = state.init(start, rule), []
    for n in range(10):
        now, metrics = do_step(now, first if n == 0 else next(data), 0, WEIGHTS)
        losses.append(jax.device_get(metrics))
    return jax.device_get((gradient, losses, now["params"]))


_gradient = jax.jit(step.value_and_gradient, static_argnums=(3, 4, 6))


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_a_mesh_agrees_with_one_device(name, sizes):
    config, asked, batches = PROBLEMS[name]
    data = batches()
    mesh, start, first = spread(sizes, params=params(config), batch=next(data))
    gradient, losses, after = alone(name)
    rule = optimizer.build(MUON, 10)
    do_step = step.train_step(config, asked, MUON, 10)
    with jax.set_mesh(mesh):
        found = _gradient(start, first, jax.random.key(0), config, asked, WEIGHTS, 1)
        close(gradient, found, 1e-5)
        now = sharding.start(params(config), rule, mesh)
        for n in range(10):
            batch = first if n == 0 else sharding.shard_batch(next(data), mesh)
            now, metrics = do_step(now, batch, 0, WEIGHTS)
            close(losses[n], metrics, 1e-4)
    close(after, now["params"], 1e-4)
    # Nothing has moved.
    jax.tree.map(
        lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
        now, sharding.shardings(now, mesh),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "sizes"),
    [(TEXT, "fsdp:8"), (JOINT, "data:2,fsdp:2,tensor:2"), (JOINT, "tensor:2")],
)
def test_parameters_are_born_where_they_stay(config, sizes):
    mesh, key = mesh_of(sizes), jax.random.key(3)
    wanted = sharding.fresh(key, config)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(wanted))
    with sharding.over(mesh):
        born = sharding.fresh(key, config)
    close(wanted, born, 0)
    assert state.params_digest(born) == state.params_digest(wanted)
    places = sharding.shardings(born, mesh)
    now = sharding.start(born, optimizer.build(ADAM, 10), mesh)
    for each in (born, now["params"], sharding.shard(born, mesh)):
        jax.tree.map(
            lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
            each, places,
        )  # fmt: skip
    # A step consumes the state, not what it was started from.
    jax.tree.map(lambda leaf: leaf.delete(), now)
    close(wanted, born, 0)


def test_memory_of_making_parameters_falls():
    model = dataclasses.replace(TEXT, width=128, hidden=512, vocab=1024, heads=8, kv_heads=8)
    memory = {
        sizes: sharding.fresh_on(mesh_of(sizes), model)
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


RUN = RunConfig(steps=6, checkpoint_every=3, log_every=2, validate_every=3)
TINY = dataclasses.replace(TEXT, depth=1, attention="reference")


class PowerCut(Exception):
    pass


class Pipeline:
    """The text, read until the power goes before batch `at`."""

    def __init__(self, at=None, batches=None):
        self._batches, self._at, self._taken = batches or text(), at, 0

    def __next__(self):
        self._taken += 1
        if self._taken == self._at:
            raise PowerCut
        return next(self._batches)

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, place):
        self._batches.set_state(place)

    def part(self, index, count):
        return Pipeline(self._at, self._batches.part(index, count))


def trained(out, sizes, at=None, rows=16):
    validation = text(rows, seed=1)
    return train(
        params(TINY), Pipeline(at, text(rows)), TINY, HALVES, ADAM, RUN, out=out,
        unit=BitsPerByte(1.0), mesh=sizes and mesh_of(sizes), validation=[next(validation)],
    )  # fmt: skip


@pytest.mark.parametrize("then", [None, "data:4", "data:4,tensor:2"])
def test_a_run_goes_on_with_another_mesh(tmp_path, then):
    wanted = trained(tmp_path / "whole", None)
    with pytest.raises(PowerCut):
        trained(tmp_path / "cut", "fsdp:8", at=5)
    done = trained(tmp_path / "cut", then)
    close(wanted.params, done.params, 1e-4)
    assert (done.tokens, done.flops) == (wanted.tokens, wanted.flops)
    for name in wanted.curve:
        if name not in ("seconds", "tokens_per_second", "share_of_peak"):
            np.testing.assert_allclose(done.curve[name], wanted.curve[name], rtol=1e-4)


def member(seed, validation):
    rule = dataclasses.replace(ADAM, learning_rate=0.01 / (1 + seed))
    return Member(
        params(TINY, seed), text(seed=seed), rule,
        dataclasses.replace(RUN, seed=seed, steps=6 - seed), BitsPerByte(1.0 + seed),
        validation=[next(text(seed=9))] if validation else (), token_weights=jnp.asarray(WEIGHTS),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "way"), [("data:8", "vmap"), ("data:2,fsdp:2,tensor:2", "vmap"), ("fsdp:8", "map")]
)
def test_a_grid_on_a_mesh_is_as_on_one_device(tmp_path, sizes, way):
    asked = Objective(next=0.25, masked=0.25, bag=0.5)

    def ran(out):
        return grid.train([member(n, n < 2) for n in range(3)], TINY, asked, out=out, way=way)

    wanted = ran(None)
    with sharding.over(mesh_of(sizes)):
        found, again = ran(tmp_path / "grid"), ran(tmp_path / "grid")
    for one, other in zip(wanted.trained, found.trained, strict=True):
        close(one.params, other.params, 1e-4)
        for name in set(one.curve) - {"seconds", "tokens_per_second", "share_of_peak"}:
            np.testing.assert_allclose(other.curve[name], one.curve[name], rtol=1e-4)
    close(found.trained[0].params, again.trained[0].params, 0)


@pytest.mark.parametrize("way", members.WAYS)
def test_the_members_of_a_grid_stay_where_they_were_spread(way):
    mesh, rule = mesh_of("data:2,fsdp:2,tensor:2"), optimizer.build(ADAM, 5)
    states = members.stack([state.init(params(TINY, n), rule) for n in range(3)])
    do_step = members.members_step(TINY, HALVES, ADAM, 1, way)
    with jax.set_mesh(mesh):
        before = sharding.shard_members(states, mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, before)
        batch = sharding.shard_batch(members.stack([next(text(seed=n)) for n in range(3)]), mesh, 1)
        assert batch["tokens"].addressable_shards[0].data.shape == (3, 4, 12)
        rates = np.full((3, 2), 0.01, np.float32)
        data = np.zeros(3, np.int32), batch, np.arange(3, dtype=np.uint32), rates, None
        after, _ = do_step(before, *data)
    query = after["params"]["layers"]["query"]
    assert query.addressable_shards[0].data.size * 4 == query.size
    jax.tree.map(
        lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
        after, places,
    )  # fmt: skip


@pytest.mark.parametrize("wide", ["fsdp:8", "data:2,fsdp:2,tensor:2"])
def test_a_checkpoint_comes_back_on_other_devices(tmp_path, wide):
    rule, places = optimizer.build(MUON, 10), (wide, "fsdp:4", None, wide)
    started = {
        where: sharding.start(params(TEXT, n), rule, where and mesh_of(where))
        for n, where in enumerate(places)
    }
    now = wanted = started[wide]
    for n, where in enumerate(places[1:], start=1):
        store = Checkpoints(tmp_path)
        store.save(n, now, {}, {})
        store.close()
        store, like = Checkpoints(tmp_path), started[where]
        now = store.restore(like, {}).state
        store.close()
        close(wanted, now, 0)
        for leaf, other in zip(jax.tree.leaves(now), jax.tree.leaves(like), strict=True):
            assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)


def compiled(model, sizes, rows=16, length=32, asked=HALVES):
    """The step's program, made of shapes alone."""
    rule = optimizer.build(ADAM, 10)
    shapes = jax.eval_shape(lambda: state.init(params(model), rule))
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), np.int32)
        for name in ("tokens", "positions", "segments")
    }
    do_step = step.train_step(model, asked, ADAM, 10)
    if sizes is None:
        return do_step.lower(shapes, batch, 0, None).compile()
    mesh = mesh_of(sizes)
    rows_over = NamedSharding(mesh, sharding.batch_spec())

    def placed(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    shapes = jax.tree.map(placed, shapes, sharding.shardings(shapes, mesh))
    batch = jax.tree.map(lambda leaf: placed(leaf, rows_over), batch)
    with jax.set_mesh(mesh):
        return do_step.lower(shapes, batch, 0, None).compile()


def test_memory_per_device_falls():
    model = ModelConfig(
        depth=2, width=64, heads=8, kv_heads=8, hidden=256, vocab=256, scan=True,
        attention="reference",
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
    asked = Objective(*shares)
    batch, key = next(text(10)), jax.random.key(0)
    wanted = _gradient(params(TINY), batch, key, TINY, asked, WEIGHTS, 1)
    mesh, start, batch = spread("data:4,tensor:2", params=params(TINY), batch=batch)
    with jax.set_mesh(mesh):
        close(wanted, _gradient(start, batch, key, TINY, asked, WEIGHTS, 1), 1e-5)


@pytest.mark.parametrize("sizes", ["data:8", "data:2,fsdp:2,tensor:2"])
def test_adapting_agrees_with_one_device(sizes):
    rows, labels = transfer.separable(20)
    tuning = FinetuneConfig(learning_rate=1e-2, steps=6, batch_size=8, keep=3)

    def adapted():
        tuned = finetune(
            transfer.params(), rows, labels, transfer.MODEL, tuning, classes=2, seed=0, capacity=20
        )
        return tuned, scores(tuned, rows, transfer.MODEL, reading=tuning.reading, batch_size=16)

    alone, wanted = adapted()
    with jax.set_mesh(mesh_of(sizes)):
        spread_out, found = adapted()
    assert len(spread_out["head"]["kernel"].sharding.device_set) == 8
    close(alone, spread_out, 1e-4)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_every_device_must_be_taken():
    with pytest.raises(UserError, match=r"--mesh=data:4,.* takes 4 devices, not the 8 there are"):
        sharding.parse("data:4").build()
