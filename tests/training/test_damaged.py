"""A checkpoint that is broken does not pass for one: the one before is taken."""

import logging

import pytest

from fm import files
from fm.errors import UserError
from fm.training import load_params, params_digest
from fm.training.checkpoint import UNHASHED_FILES, CheckpointStore
from tests.training.helpers_checkpoint import CONFIG, filled, fresh, restored
from tests.training.helpers_models import TEXT, params


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


def flip(path):
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def damage_one_bit_of_an_array(folder):
    # The largest file is what the numbers lie in; without a digest nothing else would tell.
    flip(max(folder.glob("memory/**/d/*"), key=lambda path: path.stat().st_size))


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


WAYS = {
    "first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a byte": lambda content: (
        content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :]
    ),
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "half": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "gone": None,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_file_is_sealed(tmp_path, way):
    filled(tmp_path, steps=(3,))
    folder = tmp_path / "3"
    files.check_digests(folder, exclude=UNHASHED_FILES)
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in UNHASHED_FILES
    ]
    assert len(paths) > 20
    for path in paths:
        content = path.read_bytes()
        path.unlink()
        if WAYS[way]:
            path.write_bytes(WAYS[way](content))
        with pytest.raises(ValueError, match=r"digest|missing|not what"):
            files.check_digests(folder, exclude=UNHASHED_FILES)
        path.write_bytes(content)
    (folder / "more").write_text("more")
    with pytest.raises(ValueError, match=r"more is not what was written"):
        files.check_digests(folder, exclude=UNHASHED_FILES)


@pytest.mark.parametrize("name", UNHASHED_FILES)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_sealed_is_not_used(tmp_path, name, way):
    filled(tmp_path)
    path = tmp_path / "3" / name
    content = path.read_bytes()
    path.unlink()
    if WAYS[way]:
        path.write_bytes(WAYS[way](content))
    weights, config = load_params(tmp_path)
    assert config == CONFIG and params_digest(weights) == params_digest(params(TEXT, 3))
    back = restored(tmp_path)
    assert back.progress["step"] == 3
    assert params_digest(back.state) == params_digest(fresh(3))


def test_what_is_damaged_is_not_held(tmp_path):
    filled(tmp_path)
    damage_one_bit_of_an_array(tmp_path / "3")
    store = CheckpointStore(tmp_path)
    assert store.has_step(2) and not store.has_step(1)
    assert not store.has_step(3) and not (tmp_path / "3").exists()
    store.close()


def test_all_broken(tmp_path):
    filled(tmp_path)
    for step in "23":
        damage_json(tmp_path / step)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read") as caught:
        restored(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "3").is_dir()


def test_parameters_of_a_broken_one_are_those_before(tmp_path):
    filled(tmp_path)
    damage_arrays(tmp_path / "3")
    weights, _ = load_params(tmp_path)
    assert params_digest(weights) == params_digest(params(TEXT, 2))
    assert (tmp_path / "3").is_dir()
