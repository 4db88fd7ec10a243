import dataclasses

import jax
import numpy as np
import pytest

from fm.errors import UserError
from fm.transfer import stored
from fm.transfer.features import Reading
from fm.transfer.features import features as of_rows
from tests.transfer.problems import MODEL, params, text

IDS = [np.array(each, np.int32) for each in ([4, 5, 6], [7, 8], [9] * 20)]
DEEP = dataclasses.replace(MODEL, depth=3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path))
    return tmp_path / "features"


def trained(model):
    """Parameters none of whose layers is the identity."""
    leaves, shape = jax.tree.flatten(params(model))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    made = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(shape, made)


@pytest.mark.parametrize("pool", ["mean", "last", "mean+last"])
@pytest.mark.parametrize("causal", [False, True])
def test_features_are_those_of_padded_rows(pool, causal):
    reading = Reading(pool, causal=causal, depths=(1, 2))
    rows = text([each.tolist() for each in IDS], 24)
    wanted = of_rows(trained(DEEP), rows, DEEP, reading=reading)
    got = stored.features("m", trained(DEEP), DEEP, IDS, reading).values
    assert got.shape == (3, 2, MODEL.width * len(reading.parts)) and got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)


def test_computed_once_and_kept_by_content(cache, monkeypatch):
    reading = Reading("last")
    first = stored.features("m", params(), MODEL, IDS, reading)
    assert [each.name for each in cache.iterdir() if each.name.startswith(".")] == []

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(stored, "ragged", never)
    again = stored.features("m", params(), MODEL, IDS, reading)
    assert np.array_equal(again.values, first.values) and again.seconds == first.seconds
    for other in (
        ("n", IDS, reading),
        ("m", IDS[:2], reading),
        ("m", [*IDS[:2], IDS[2][:-1]], reading),
        ("m", IDS, Reading("last", causal=True)),
        ("m", IDS, Reading("last", depths=(0,))),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            stored.features(other[0], params(), MODEL, other[1], other[2])
    assert len(list(cache.iterdir())) == 1


def test_what_fails_leaves_nothing(cache):
    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored.kept({}, IDS, make)
    assert not cache.exists()


def test_a_broken_file_is_named(cache):
    made = stored.kept({"a": 1}, IDS, lambda: np.zeros((3, 2)))
    assert made.values.dtype == np.float32
    folder = next(cache.iterdir())
    for name in ("about.json", "values.npy"):
        before = (folder / name).read_bytes()
        for damaged in (b"", before[:-1], before[:-1] + bytes([before[-1] ^ 1])):
            (folder / name).write_bytes(damaged)
            says = f"{folder.name} is damaged \\({name} is not what was written\\); delete it"
            with pytest.raises(UserError, match=says):
                stored.kept({"a": 1}, IDS, lambda: np.zeros((3, 2)))
        (folder / name).write_bytes(before)
    stored.kept({"a": 1}, IDS, lambda: np.zeros((3, 2)))


def test_a_digest_is_of_every_number_and_of_the_shape():
    same, other = params(), params()
    assert stored.digest(MODEL, same) == stored.digest(MODEL, other)
    other["layers"]["up"] = other["layers"]["up"].at[0, 3, 5].add(1e-3)
    assert stored.digest(MODEL, same) != stored.digest(MODEL, other)
    causal = dataclasses.replace(MODEL, norm_eps=1e-5)
    assert stored.digest(MODEL, same) != stored.digest(causal, same)


def test_a_reading_that_needs_rows_is_refused():
    for reading in (Reading("concat"), Reading(view=3)):
        with pytest.raises(UserError, match="read whole"):
            stored.features("m", params(), MODEL, IDS, reading)


def test_a_model_not_that_deep_and_a_text_over_the_context():
    with pytest.raises(UserError, match="depth 9 is not in a model of 1 layers, which has 0"):
        stored.features("m", params(), MODEL, IDS, Reading(depths=(9,)))
    short = dataclasses.replace(MODEL, context=19)
    with pytest.raises(UserError, match="20 pieces is over the context of 19"):
        stored.features("m", params(), short, IDS, Reading())


def test_layers_beyond_the_last_depth_are_not_computed():
    def cost(depths):
        reading = Reading("mean", depths=depths)
        read = stored.reader(DEEP, reading)
        rows = text([[4, 5, 6]], 16)
        made = jax.jit(read).lower(params(DEEP), rows).compile()
        return made.cost_analysis()["flops"]

    one, two, every = cost((1,)), cost((2,)), cost((-1,))
    assert one < 0.6 * two < 0.5 * every
