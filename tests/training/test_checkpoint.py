"""What is saved comes back to the bit; another run's does not pass for it."""

import contextlib
import errno
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.errors import UserError
from fm.training import load_params, params_digest
from fm.training.checkpoint import CheckpointStore
from fm.training.config import config_differences
from tests.training.helpers_checkpoint import CONFIG, filled, fresh, restored
from tests.training.helpers_models import TEXT, params


def test_round_trip(tmp_path):
    filled(tmp_path)
    back = restored(tmp_path)
    assert back.progress == {"step": 3, "data": {"next": 3}}
    assert jax.tree.structure(back.state) == jax.tree.structure(fresh(3))
    assert params_digest(back.state) == params_digest(fresh(3))


def test_an_empty_folder_has_nothing(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.latest_step() is None
    assert store.restore(fresh(), CONFIG) is None
    store.close()


def test_the_last_ones_stay(tmp_path):
    filled(tmp_path, steps=(1, 2, 5, 9), keep=2)
    assert sorted(int(each.name) for each in tmp_path.iterdir() if each.name.isdigit()) == [5, 9]


def test_multiples_of_keep_every_stay_whatever_comes_between(tmp_path):
    filled(tmp_path, steps=(2, 3, 4, 5, 6, 7), keep=1, keep_every=2)
    assert sorted(int(each.name) for each in tmp_path.iterdir()) == [2, 4, 6, 7]
    for step in (2, 4, 7):
        weights, _ = load_params(tmp_path, step)
        assert params_digest(weights) == params_digest(fresh(step)["params"])
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        load_params(tmp_path, 3)


def test_saving_takes_the_arrays_at_once(tmp_path):
    # A step that follows a save reuses the memory of what is being saved.
    rng = np.random.default_rng(0)
    big = {f"w{n}": rng.normal(size=1_000_000).astype(np.float32) for n in range(4)}
    now = jax.device_put({"params": big, "opt_state": (), "step": np.int32(0)})
    spoil = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    like = jax.tree.map(jnp.zeros_like, now)
    store = CheckpointStore(tmp_path)
    store.save(1, now, {}, CONFIG)
    for _ in range(5):
        now = spoil(now)
    jax.block_until_ready(now)
    store.close()
    store = CheckpointStore(tmp_path)
    back = store.restore(like, CONFIG)
    store.close()
    assert back is not None
    assert params_digest(back.state["params"]) == params_digest(big)


def test_a_small_models_checkpoint_is_quick(tmp_path):
    now = jax.device_put({"params": {"w": np.zeros(6_000_000, np.float32)}})
    store = CheckpointStore(tmp_path)
    began = time.perf_counter()
    store.save(1, now | {"opt_state": (), "step": np.int32(0)}, {}, CONFIG)
    assert time.perf_counter() - began < 2.0  # about 0.1 s on a machine at rest
    store.close()


@contextlib.contextmanager
def full_disk(room):
    """No file of this process grows beyond so many bytes: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_one_before_stays(tmp_path):
    def heavy(step):
        w = np.random.default_rng(step).normal(size=300_000).astype(np.float32)
        return jax.device_put({"params": {"w": w}, "opt_state": (), "step": np.int32(step)})

    store = CheckpointStore(tmp_path)
    store.save(1, heavy(1), {"step": 1}, CONFIG)
    store.close()
    store = CheckpointStore(tmp_path)
    with full_disk(200_000), pytest.raises(UserError) as caught:
        store.save(2, heavy(2), {"step": 2}, CONFIG)
        store.close()
    message = str(caught.value)
    assert "checkpoint of step 2 could not be written" in message and str(tmp_path) in message
    assert "(File too large); the one of step 1 is kept" in message and "\n" not in message
    store = CheckpointStore(tmp_path)
    back = store.restore(heavy(0), CONFIG)
    store.close()
    assert params_digest(back.state) == params_digest(heavy(1))
    assert not list(tmp_path.glob("*tmp*"))


def test_a_folder_that_may_not_be_seen_is_told(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "is_dir", refuse)
    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(UserError, match=r"\(Permission denied\); those before it were left alone"):
        store.save(1, fresh(1), {}, CONFIG)
    monkeypatch.undo()
    store.close()


def test_a_folder_that_is_gone_is_told(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"step 1 could .*folder is gone\); there is no other"):
        store.save(1, fresh(1), {}, CONFIG)
    store.close()


def test_another_config_is_named_field_by_field(tmp_path):
    filled(tmp_path)
    other = {"model": {"depth": 3, "width": 32}, "run": {"seed": 0, "steps": 5}}
    with pytest.raises(UserError) as caught:
        restored(tmp_path, other)
    message = str(caught.value)
    assert "model.depth=2 (now 3)" in message
    assert "run.steps='absent' (now 5)" in message
    assert "width" not in message and "seed" not in message and "\n" not in message


def test_differences_see_through_json():
    assert config_differences({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == {}
    assert config_differences({"a": {"b": 1}}, {"a": {"b": None}}) == {"a.b": (1, None)}


def test_parameters_alone(tmp_path):
    filled(tmp_path)
    weights, config = load_params(tmp_path)
    assert config == CONFIG
    assert params_digest(weights) == params_digest(params(TEXT, 3))


def test_parameters_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        load_params(tmp_path / "none")
    assert not (tmp_path / "none").exists()
