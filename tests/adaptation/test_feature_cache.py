import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation import feature_cache
from fm.adaptation.features import FeatureConfig
from fm.adaptation.features import extract_features as of_rows
from fm.errors import UserError
from tests.adaptation.helpers_models import MODEL, params, text

IDS = [np.array(each, np.int32) for each in ([4, 5, 6], [7, 8], [9] * 20)]
DEEP = dataclasses.replace(MODEL, num_layers=3)


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
    reading = FeatureConfig(pool, causal=causal, layers=(1, 2))
    rows = text([each.tolist() for each in IDS], 24)
    wanted = of_rows(trained(DEEP), rows, DEEP, feature_config=reading)
    got = feature_cache.cached_features("m", trained(DEEP), DEEP, IDS, reading).values
    assert (
        got.shape == (3, 2, MODEL.d_model * len(reading.pooling_parts)) and got.dtype == np.float32
    )
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)


def test_computed_once_and_kept_by_content(cache, monkeypatch):
    reading = FeatureConfig("last")
    first = feature_cache.cached_features("m", params(), MODEL, IDS, reading)
    assert [each.name for each in cache.iterdir() if each.name.startswith(".")] == []

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(feature_cache, "map_bucketed", never)
    again = feature_cache.cached_features("m", params(), MODEL, IDS, reading)
    assert np.array_equal(again.values, first.values) and again.seconds == first.seconds
    for other in (
        ("n", IDS, reading),
        ("m", IDS[:2], reading),
        ("m", [*IDS[:2], IDS[2][:-1]], reading),
        ("m", IDS, FeatureConfig("last", causal=True)),
        ("m", IDS, FeatureConfig("last", layers=(0,))),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            feature_cache.cached_features(other[0], params(), MODEL, other[1], other[2])
    assert len(list(cache.iterdir())) == 1


def test_what_fails_leaves_nothing(cache):
    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_cache.cached({}, IDS, make)
    assert not cache.exists()


def test_a_broken_file_is_named(cache):
    made = feature_cache.cached({"a": 1}, IDS, lambda: np.zeros((3, 2)))
    assert made.values.dtype == np.float32
    folder = next(cache.iterdir())
    for name in ("about.json", "values.npy"):
        before = (folder / name).read_bytes()
        for damaged in (b"", before[:-1], before[:-1] + bytes([before[-1] ^ 1])):
            (folder / name).write_bytes(damaged)
            says = f"{folder.name} is damaged \\({name} is not what was written\\); delete it"
            with pytest.raises(UserError, match=says):
                feature_cache.cached({"a": 1}, IDS, lambda: np.zeros((3, 2)))
        (folder / name).write_bytes(before)
    feature_cache.cached({"a": 1}, IDS, lambda: np.zeros((3, 2)))


def test_a_reading_that_needs_rows_is_refused():
    for reading in (FeatureConfig("concat"), FeatureConfig(chunk_length=3)):
        with pytest.raises(UserError, match="read whole"):
            feature_cache.cached_features("m", params(), MODEL, IDS, reading)


def test_a_model_not_that_deep_and_a_text_over_the_context():
    with pytest.raises(
        UserError, match="hidden state 9 is not in a model of 1 layers, which has 0"
    ):
        feature_cache.cached_features("m", params(), MODEL, IDS, FeatureConfig(layers=(9,)))
    short = dataclasses.replace(MODEL, max_seq_len=19)
    with pytest.raises(UserError, match=r"20 tokens exceeds the model.s max_seq_len of 19"):
        feature_cache.cached_features("m", params(), short, IDS, FeatureConfig())


def test_layers_beyond_the_last_depth_are_not_computed():
    def cost(depths):
        reading = FeatureConfig("mean", layers=depths)
        read = feature_cache.feature_fn(DEEP, reading)
        rows = text([[4, 5, 6]], 16)
        made = jax.jit(read).lower(params(DEEP), rows).compile()
        return made.cost_analysis()["flops"]

    one, two, every = cost((1,)), cost((2,)), cost((-1,))
    assert one < 0.6 * two < 0.5 * every
