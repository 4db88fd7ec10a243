"""Checkpoints come back bitwise; damaged ones, or those of another run, are not used."""

import contextlib
import errno
import json
import logging
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer

from fm import files
from fm.errors import UserError
from fm.training import load_params, params_digest
from fm.training.checkpoint import UNHASHED_FILES, CheckpointStore
from fm.training.config import config_differences
from fm.training.train_state import TrainState
from tests.training.helpers_checkpoint import CONFIG, new_state, restore, save_steps
from tests.training.helpers_models import TEXT, params


def test_round_trip(tmp_path):
    save_steps(tmp_path)
    back = restore(tmp_path)
    assert back.progress == {"step": 3, "data": {"next": 3}}
    assert jax.tree.structure(back.state) == jax.tree.structure(new_state(3))
    assert params_digest(back.state) == params_digest(new_state(3))


def test_an_empty_folder_has_nothing(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.latest_step() is None
    assert store.restore(new_state(), CONFIG) is None
    store.close()


def test_the_last_ones_stay(tmp_path):
    save_steps(tmp_path, steps=(1, 2, 5, 9), max_to_keep=2)
    assert sorted(int(each.name) for each in tmp_path.iterdir() if each.name.isdigit()) == [5, 9]


def test_multiples_of_keep_period_stay_whatever_comes_between(tmp_path):
    save_steps(tmp_path, steps=(2, 3, 4, 5, 6, 7), max_to_keep=1, keep_period=2)
    assert sorted(int(each.name) for each in tmp_path.iterdir()) == [2, 4, 6, 7]
    for step in (2, 4, 7):
        weights, _ = load_params(tmp_path, step)
        assert params_digest(weights) == params_digest(new_state(step).params)
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        load_params(tmp_path, 3)


def test_saving_takes_the_arrays_at_once(tmp_path):
    # A step that follows a save reuses the memory of what is being saved.
    rng = np.random.default_rng(0)
    big = {f"w{n}": rng.normal(size=1_000_000).astype(np.float32) for n in range(4)}
    now = jax.device_put(TrainState(params=big, opt_state=(), step=np.int32(0)))
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
    assert params_digest(back.state.params) == params_digest(big)


def test_a_small_models_checkpoint_is_quick(tmp_path):
    params = {"w": np.zeros(6_000_000, np.float32)}
    now = jax.device_put(TrainState(params=params, opt_state=(), step=np.int32(0)))
    store = CheckpointStore(tmp_path)
    began = time.perf_counter()
    store.save(1, now, {}, CONFIG)
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
        return jax.device_put(TrainState(params={"w": w}, opt_state=(), step=np.int32(step)))

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
        store.save(1, new_state(1), {}, CONFIG)
    monkeypatch.undo()
    store.close()


def test_a_folder_that_is_gone_is_told(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"step 1 could .*folder is gone\); there is no other"):
        store.save(1, new_state(1), {}, CONFIG)
    store.close()


def test_another_config_is_named_field_by_field(tmp_path):
    save_steps(tmp_path)
    other = {"model": {"num_layers": 3, "d_model": 32}, "run": {"seed": 0, "steps": 5}}
    with pytest.raises(UserError) as caught:
        restore(tmp_path, other)
    message = str(caught.value)
    assert "model.num_layers=2 (now 3)" in message
    assert "run.steps='absent' (now 5)" in message
    assert "d_model" not in message and "seed" not in message and "\n" not in message


def test_differences_see_through_json():
    assert config_differences({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == {}
    assert config_differences({"a": {"b": 1}}, {"a": {"b": None}}) == {"a.b": (1, None)}


def test_parameters_alone(tmp_path):
    save_steps(tmp_path)
    weights, config = load_params(tmp_path)
    assert config == CONFIG
    assert params_digest(weights) == params_digest(params(TEXT, 3))


def set_format(folder, number):
    """Gives a checkpoint another format number, or none, as before there was one."""
    path = folder / "config" / "metadata"
    config = json.loads(path.read_text())
    del config["format"]
    path.write_text(json.dumps(config if number is None else config | {"format": number}))
    files.write_digests(folder, UNHASHED_FILES)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            None,
            "written by fm before format 2 (commit c908ea1 or earlier); pretrain again or use "
            "that version",
        ),
        (3, "written in format 3; this fm reads format 2"),
    ],
)
def test_another_format_is_refused(tmp_path, number, message):
    save_steps(tmp_path)
    set_format(tmp_path / "3", number)
    for read in (restore, load_params):
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        assert str(caught.value) == f"{tmp_path}: {message}"
    assert (tmp_path / "3").is_dir()


def test_parameters_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        load_params(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def damage_arrays(folder):
    for each in folder.glob("params/**/d/*"):
        each.write_bytes(each.read_bytes()[: each.stat().st_size // 2])


def damage_json(folder):
    for each in folder.glob("progress/*"):
        each.write_text('{"step": 3, "da')


def damage_missing(folder):
    for each in folder.glob("optimizer/*"):
        if each.is_file():
            each.unlink()


def flip(path):
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def damage_one_bit_of_an_array(folder):
    # The largest file is what the numbers lie in; without a digest nothing else would tell.
    flip(max(folder.glob("optimizer/**/d/*"), key=lambda path: path.stat().st_size))


def damage_counters_that_stay_json(folder):
    (path,) = [each for each in folder.glob("progress/*") if b'"next"' in each.read_bytes()]
    path.write_bytes(path.read_bytes().replace(b"3", b"1"))


def damage_an_extra_file(folder):
    (folder / "params" / "d").mkdir(exist_ok=True)
    (folder / "params" / "d" / "more").write_text("more")


def damage_digests(folder):
    flip(folder / "digests.json")


def damage_no_digests(folder):
    (folder / "digests.json").unlink()


DAMAGES = [
    damage_arrays,
    damage_json,
    damage_missing,
    damage_one_bit_of_an_array,
    damage_counters_that_stay_json,
    damage_an_extra_file,
    damage_digests,
    damage_no_digests,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    save_steps(tmp_path)
    damage(tmp_path / "3")
    with caplog.at_level(logging.WARNING):
        back = restore(tmp_path)
    assert back.progress["step"] == 2
    assert params_digest(back.state) == params_digest(new_state(2))
    assert "checkpoint of step 3" in caplog.text
    assert "is damaged" in caplog.text and f"is kept as {tmp_path}/damaged-3" in caplog.text
    assert (tmp_path / "damaged-3" / "config").is_dir()
    save_steps(tmp_path, steps=(3,))
    assert restore(tmp_path).progress["step"] == 3
    damage(tmp_path / "3")
    assert restore(tmp_path).progress["step"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["2", "damaged-3", "damaged-3-2"]


CHANGES = {
    "first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a byte": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "half": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "gone": None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_file_is_sealed(tmp_path, change):
    save_steps(tmp_path, steps=(3,))
    folder = tmp_path / "3"
    files.check_digests(folder, exclude=UNHASHED_FILES)
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in UNHASHED_FILES
    ]
    assert len(paths) > 20
    for path in paths:
        content = path.read_bytes()
        path.unlink()
        if CHANGES[change]:
            path.write_bytes(CHANGES[change](content))
        with pytest.raises(ValueError, match=r"digest|missing|not what"):
            files.check_digests(folder, exclude=UNHASHED_FILES)
        path.write_bytes(content)
    (folder / "more").write_text("more")
    with pytest.raises(ValueError, match=r"more is not what was written"):
        files.check_digests(folder, exclude=UNHASHED_FILES)


@pytest.mark.parametrize("name", UNHASHED_FILES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_sealed_is_not_used(tmp_path, name, change):
    save_steps(tmp_path)
    path = tmp_path / "3" / name
    content = path.read_bytes()
    path.unlink()
    if CHANGES[change]:
        path.write_bytes(CHANGES[change](content))
    weights, config = load_params(tmp_path)
    assert config == CONFIG and params_digest(weights) == params_digest(params(TEXT, 3))
    back = restore(tmp_path)
    assert back.progress["step"] == 3
    assert params_digest(back.state) == params_digest(new_state(3))


def test_a_damaged_step_is_not_there(tmp_path):
    save_steps(tmp_path)
    damage_one_bit_of_an_array(tmp_path / "3")
    store = CheckpointStore(tmp_path)
    assert store.has_step(2) and not store.has_step(1)
    assert not store.has_step(3) and not (tmp_path / "3").exists()
    assert (tmp_path / "damaged-3").is_dir()
    store.close()


FAILURES = [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    RuntimeError("a bug"),
    KeyError("params"),
    ValueError("PERMISSION_DENIED: [tensorstore] os_error_code='13'"),
]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
@pytest.mark.parametrize("where", ["digests", "arrays"])
def test_another_failure_is_not_damage(tmp_path, monkeypatch, error, where):
    if where == "digests" and not isinstance(error, (OSError, MemoryError)):
        return  # nothing else comes of reading bytes
    save_steps(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_, **__):
        raise error

    targets = {"digests": (files, "file_digest"), "arrays": (ocp.CheckpointManager, "restore")}
    for read in (restore, load_params):
        with monkeypatch.context() as patch:
            patch.setattr(*targets[where], fail)
            with pytest.raises(type(error)) as caught:
                read(tmp_path)
        assert caught.value is error
    if where == "digests" and isinstance(error, OSError):
        assert str(tmp_path / "3") in error.filename
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before and restore(tmp_path).progress["step"] == 3


@pytest.mark.parametrize("orbax_asks", ["before the rename", "after the rename", "never"])
def test_digests_do_not_depend_on_when_orbax_asks_for_them(tmp_path, monkeypatch, orbax_asks):
    honest_options, honest_rename = ocp.AsyncOptions, async_checkpointer._on_commit_callback
    hooks, seen = [], []

    def options(*, post_finalization_callback):
        hooks.append(post_finalization_callback)
        before = orbax_asks == "before the rename"
        return honest_options(
            post_finalization_callback=post_finalization_callback if before else None
        )

    def rename(*arguments):
        honest_rename(*arguments)
        if orbax_asks == "after the rename":
            hooks[-1]()
        seen.append(len(list(tmp_path.glob("*/digests.json"))))

    monkeypatch.setattr(ocp, "AsyncOptions", options)
    monkeypatch.setattr(async_checkpointer, "_on_commit_callback", rename)
    save_steps(tmp_path)
    assert len(hooks) == 1 and seen == ([0, 1, 2] if orbax_asks == "never" else [1, 2, 3])
    for step in (2, 3):
        files.check_digests(tmp_path / str(step), exclude=UNHASHED_FILES)
    back = restore(tmp_path)
    assert back.progress["step"] == 3
    assert params_digest(back.state) == params_digest(new_state(3))


def test_an_only_checkpoint_without_digests_is_one_of_a_killed_run(tmp_path):
    save_steps(tmp_path, steps=(3,))
    damage_no_digests(tmp_path / "3")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    assert (tmp_path / "3").is_dir()
    assert restore(tmp_path) is None and (tmp_path / "damaged-3").is_dir()


def test_of_several_processes_the_lead_process_decides(tmp_path, monkeypatch):
    save_steps(tmp_path)
    asked = []

    def told(decide):
        asked.append(decide)
        return 2

    monkeypatch.setattr("fm.training.checkpoint.distributed.broadcast_from_lead", told)
    monkeypatch.setattr(files, "check_digests", None)  # only the lead process reads them
    back = restore(tmp_path)
    assert back.progress["step"] == 2 and (tmp_path / "3").is_dir() and asked
    assert params_digest(back.state) == params_digest(new_state(2))


def test_all_broken(tmp_path):
    save_steps(tmp_path)
    for step in "23":
        damage_json(tmp_path / step)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read") as caught:
        restore(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "3").is_dir()


def test_parameters_of_a_broken_one_are_those_before(tmp_path):
    save_steps(tmp_path)
    damage_arrays(tmp_path / "3")
    weights, _ = load_params(tmp_path)
    assert params_digest(weights) == params_digest(params(TEXT, 2))
    assert (tmp_path / "3").is_dir()
