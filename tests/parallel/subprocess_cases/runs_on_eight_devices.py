"""Runs on eight devices, interrupted and resumed on others; run by `test_sharding`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.training import BitsPerByte, PretrainingObjective, optimizer, sweep, train, train_state
from fm.training.checkpoint import CheckpointStore, load_params
from fm.training.progress import TIMINGS
from fm.training.trial import Trial
from tests.parallel.helpers_eight_devices import (
    HALVES,
    MUON,
    RUN,
    TEXT,
    TINY,
    WEIGHTS,
    close,
    mesh_of,
    text,
)
from tests.training.helpers_models import ADAM, params
from tests.training.helpers_runs import PowerCut


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

    def shard(self, index, count):
        return Pipeline(self._at, self._batches.shard(index, count))


def trained(out, sizes, at=None, rows=16):
    validation = text(rows, seed=1)
    return train(
        params(TINY), Pipeline(at, text(rows)), TINY, HALVES, ADAM, RUN, out_dir=out,
        metric_unit=BitsPerByte(1.0), mesh=sizes and mesh_of(sizes), validation=[next(validation)],
    )  # fmt: skip


@pytest.mark.parametrize("then", [None, "data:4", "data:4,tensor:2"])
def test_a_run_resumes_on_another_mesh(tmp_path, then):
    expected = trained(tmp_path / "whole", None)
    with pytest.raises(PowerCut):
        trained(tmp_path / "cut", "fsdp:8", at=5)
    done = trained(tmp_path / "cut", then)
    close(expected.params, done.params, 1e-4)
    assert (done.tokens, done.flops) == (expected.tokens, expected.flops)
    for name in expected.curve:
        if name not in ("seconds", *TIMINGS):
            np.testing.assert_allclose(done.curve[name], expected.curve[name], rtol=1e-4)


def member(seed, validation):
    rule = dataclasses.replace(ADAM, learning_rate=0.01 / (1 + seed))
    return Trial(
        params(TINY, seed), text(seed=seed), rule,
        dataclasses.replace(RUN, seed=seed, steps=6 - seed), BitsPerByte(1.0 + seed),
        validation=[next(text(seed=9))] if validation else (), token_weights=jnp.asarray(WEIGHTS),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "batching"),
    [("data:2,fsdp:2,tensor:2", "vmap"), ("fsdp:8", "sequential")],
)
def test_a_sweep_on_a_mesh_agrees_with_one_device(tmp_path, sizes, batching):
    objective = PretrainingObjective(causal_lm=0.25, masked_lm=0.25, bag_of_words=0.5)

    def ran(out):
        return sweep.sweep(
            [member(n, n < 2) for n in range(3)], TINY, objective, out_dir=out, batching=batching
        )

    expected = ran(None)
    with meshes.default_mesh(mesh_of(sizes)):
        found, again = ran(tmp_path / "grid"), ran(tmp_path / "grid")
    for one, other in zip(expected.results, found.results, strict=True):
        close(one.params, other.params, 1e-4)
        for name in set(one.curve) - {"seconds", *TIMINGS}:
            np.testing.assert_allclose(other.curve[name], one.curve[name], rtol=1e-4)
    close(found.results[0].params, again.results[0].params, 0)


def test_vmapped_trials_stay_sharded():
    mesh, rule = mesh_of("data:2,fsdp:2,tensor:2"), optimizer.build(ADAM, 5)
    states = [train_state.init_sharded_train_state(params(TINY, n), rule, mesh) for n in range(3)]
    do_step = sweep.make_sweep_step(TINY, HALVES, ADAM, 1)
    with jax.set_mesh(mesh):
        before = sweep.stack_states(states, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, before)
        batch = sharding.shard_batch(
            sweep.stack_trees([next(text(seed=n)) for n in range(3)]), mesh, 1
        )
        assert batch["tokens"].addressable_shards[0].data.shape == (3, 4, 12)
        rates = np.full((3, 2), 0.01, np.float32)
        data = np.zeros(3, np.int32), batch, np.arange(3, dtype=np.uint32), rates, None
        after, _ = do_step(before, *data)
    query = after.params["layers"]["query"]
    assert query.addressable_shards[0].data.size * 4 == query.size
    jax.tree.map(
        lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
        after, shardings,
    )  # fmt: skip


def test_vmapped_trials_are_saved_in_shards(tmp_path, monkeypatch):
    mesh, saved, honest = mesh_of("fsdp:8"), [], CheckpointStore.save

    def save(store, step, state, *rest):
        saved.append(state)
        honest(store, step, state, *rest)

    monkeypatch.setattr(CheckpointStore, "save", save)
    with meshes.default_mesh(mesh):
        found = sweep.sweep(
            [member(n, False) for n in range(2)], TINY, HALVES, out_dir=tmp_path, batching="vmap"
        )
    for n, (result, state) in enumerate(zip(found.results, saved[-2:], strict=True)):
        jax.tree.map(
            lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or pytest.fail(),
            state, sharding.state_shardings(state, mesh),
        )  # fmt: skip
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 2]
        assert moments and all(
            leaf.addressable_shards[0].data.size * 8 == leaf.size for leaf in moments
        )
        close(load_params(tmp_path / f"trial-{n}" / "checkpoints")[0], result.params, 0)


@pytest.mark.parametrize("wide", ["fsdp:8", "data:2,fsdp:2,tensor:2"])
def test_a_checkpoint_is_restored_on_other_devices(tmp_path, wide):
    rule, shardings = optimizer.build(MUON, 10), (wide, "fsdp:4", None, wide)
    started = {
        where: train_state.init_sharded_train_state(params(TEXT, n), rule, where and mesh_of(where))
        for n, where in enumerate(shardings)
    }
    now = expected = started[wide]
    for n, where in enumerate(shardings[1:], start=1):
        store = CheckpointStore(tmp_path)
        store.save(n, now, {}, {})
        store.close()
        store, like = CheckpointStore(tmp_path), started[where]
        now = store.restore(like, {}).state
        store.close()
        close(expected, now, 0)
        for leaf, other in zip(jax.tree.leaves(now), jax.tree.leaves(like), strict=True):
            assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
