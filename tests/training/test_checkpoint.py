"""What is saved comes back to the bit; what is broken or another run's does not pass for it."""

import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.errors import UserError
from fm.training import load_params, optimizer, params_digest, state
from fm.training.checkpoint import Checkpoints, differences
from tests.training.problems import ADAM, TEXT, params

CONFIG = {"model": {"depth": 2, "width": 32}, "run": {"seed": 0}}


def fresh(seed=0):
    return state.init(params(TEXT, seed), optimizer.build(ADAM, 10))


def filled(folder, steps=(1, 2, 3), keep=2, keep_every=None):
    store = Checkpoints(folder, keep=keep, keep_every=keep_every)
    for step in steps:
        store.save(step, fresh(step), {"step": step, "data": {"next": step}}, CONFIG)
    store.close()


def restored(folder, config=CONFIG):
    store = Checkpoints(folder)
    try:
        return store.restore(fresh(), config)
    finally:
        store.close()


def test_round_trip(tmp_path):
    filled(tmp_path)
    back = restored(tmp_path)
    assert back.progress == {"step": 3, "data": {"next": 3}}
    assert jax.tree.structure(back.state) == jax.tree.structure(fresh(3))
    assert params_digest(back.state) == params_digest(fresh(3))


def test_an_empty_folder_has_nothing(tmp_path):
    store = Checkpoints(tmp_path)
    assert store.latest() is None
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
    store = Checkpoints(tmp_path)
    store.save(1, now, {}, CONFIG)
    for _ in range(5):
        now = spoil(now)
    jax.block_until_ready(now)
    store.close()
    store = Checkpoints(tmp_path)
    back = store.restore(like, CONFIG)
    store.close()
    assert back is not None
    assert params_digest(back.state["params"]) == params_digest(big)


def test_a_small_models_checkpoint_is_quick(tmp_path):
    now = jax.device_put({"params": {"w": np.zeros(6_000_000, np.float32)}})
    store = Checkpoints(tmp_path)
    began = time.perf_counter()
    store.save(1, now | {"opt_state": (), "step": np.int32(0)}, {}, CONFIG)
    assert time.perf_counter() - began < 2.0  # about 0.1 s on a machine at rest
    store.close()


def damage_arrays(folder):
    for each in folder.glob("params/**/d/*"):
        each.write_bytes(each.read_bytes()[: each.stat().st_size // 2])


def damage_json(folder):
    for each in folder.glob("progress/*"):
        each.write_text('{"step": 3, "da')


def damage_missing(folder):
    for each in folder.glob("memory/*"):
        if each.is_file():
            each.unlink()


@pytest.mark.parametrize("damage", [damage_arrays, damage_json, damage_missing])
def test_falls_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    filled(tmp_path)
    damage(tmp_path / "3")
    with caplog.at_level(logging.WARNING):
        back = restored(tmp_path)
    assert back.progress["step"] == 2
    assert params_digest(back.state) == params_digest(fresh(2))
    assert "checkpoint of step 3" in caplog.text
    assert "is unreadable" in caplog.text and "is removed" in caplog.text
    filled(tmp_path, steps=(3,))
    assert restored(tmp_path).progress["step"] == 3


def test_all_broken(tmp_path):
    filled(tmp_path)
    for step in "23":
        damage_json(tmp_path / step)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read") as caught:
        restored(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "3").is_dir()


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
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == {}
    assert differences({"a": {"b": 1}}, {"a": {"b": None}}) == {"a.b": (1, None)}


def test_parameters_alone(tmp_path):
    filled(tmp_path)
    weights, config = load_params(tmp_path)
    assert config == CONFIG
    assert params_digest(weights) == params_digest(params(TEXT, 3))


def test_parameters_of_a_broken_one_are_those_before(tmp_path):
    filled(tmp_path)
    damage_arrays(tmp_path / "3")
    weights, _ = load_params(tmp_path)
    assert params_digest(weights) == params_digest(params(TEXT, 2))
    assert (tmp_path / "3").is_dir()


def test_parameters_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        load_params(tmp_path / "none")
    assert not (tmp_path / "none").exists()
