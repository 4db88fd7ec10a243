import jax
import numpy as np
import pytest

from fm.adaptation import features, prompting
from fm.adaptation.batching import image_examples, map_bucketed
from fm.adaptation.features import (
    FeatureConfig,
    extract_features,
    pool_segments,
    pooled_features,
    probe_features,
)
from fm.errors import UserError
from tests.adaptation.helpers_models import MODEL, PICTURES, params, separable, text


@pytest.mark.parametrize("batch_size", [3, 64])
def test_frozen_features_do_not_depend_on_the_batch(batch_size):
    rows, _ = separable(7)
    whole = probe_features(params(), rows, MODEL, feature_config=FeatureConfig(), batch_size=7)
    assert whole.shape == (7, (MODEL.num_layers + 2) * MODEL.d_model) and whole.dtype == np.float32
    parts = probe_features(
        params(), rows, MODEL, feature_config=FeatureConfig(), batch_size=batch_size
    )
    np.testing.assert_allclose(parts, whole, atol=2e-6)


def test_frozen_features_do_not_depend_on_padding():
    tokens = [[4, 5, 6], [7, 8], [9]]
    short, long = text(tokens, 4), text(tokens, 9)
    long["tokens"][long["segments"] == 0] = 11
    a = probe_features(params(), short, MODEL, feature_config=FeatureConfig())
    b = probe_features(params(), long, MODEL, feature_config=FeatureConfig())
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("pooling", ["mean", "last", "mean+last"])
@pytest.mark.parametrize("causal", [True, False])
def test_features_of_rows_of_a_known_length_are_the_same_to_the_bit(causal, pooling):
    """Without segments in the mask, on a CPU."""
    fn = features.feature_fn(MODEL, FeatureConfig(pooling, causal=causal))
    rows = text([[4, 5, 6], [7, 8], [9], [4, 5, 6, 7, 8]], 6)
    known = rows | {"length": np.array([3, 2, 1, 5], np.int32)}
    left, right = (jax.jit(fn)(params(), batch) for batch in (rows, known))
    np.testing.assert_array_equal(left, right)


def test_sequences_of_one_row_each_need_no_segments(monkeypatch):
    """Features and prompts of texts read by length, whatever the kernel takes."""
    masks = []

    def spy(params, inputs, config, *, mask):
        masks.append(mask)
        return forward(params, inputs, config, mask=mask)

    forward = features.forward
    for module in (features, prompting):
        monkeypatch.setattr(module, "forward", spy)
    ids = [np.array([4, 5, 6], np.int32), np.array([7], np.int32)]
    for config in (FeatureConfig(causal=True, layers=(0,)), FeatureConfig(layers=(0, 1))):
        map_bucketed(features._cached_feature_fn.__wrapped__(MODEL, config), params(), ids)
    map_bucketed(
        prompting._answer_fn.__wrapped__(MODEL, 1), (params(), np.array([5], np.int32)), ids
    )
    assert [mask.causal for mask in masks] == [True, False, True]
    assert [mask.kv_length is not None for mask in masks] == [False, True, False]
    assert all(mask.q_segments is None for mask in masks)


def test_each_depth_has_unit_length():
    rows, _ = separable(3)
    features = probe_features(params(), rows, MODEL, feature_config=FeatureConfig())
    depths = features.reshape(3, MODEL.num_layers + 2, MODEL.d_model)
    np.testing.assert_allclose(np.linalg.norm(depths, axis=-1), 1.0, atol=1e-5)


def test_mean_pool_is_the_mean_of_the_filled_pieces():
    rows = text([[4, 5, 6], [7]], 5)
    first = pooled_features(params(), rows, MODEL)[0]
    each = pooled_features(params(), rows, MODEL, FeatureConfig("concat"))[0].reshape(
        2, 5, MODEL.d_model
    )
    np.testing.assert_allclose(first[0], each[0, :3].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(first[1], each[1, 0], atol=1e-6)


def test_concat_pool_keeps_what_stands_where():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    rows = image_examples(images, 2)
    depths = pooled_features(params(PICTURES), rows, PICTURES, FeatureConfig("concat"))
    assert [x.shape for x in depths] == [(3, 4 * PICTURES.d_model)] * (PICTURES.num_layers + 2)
    mean = pooled_features(params(PICTURES), rows, PICTURES)
    for one, other in zip(depths, mean, strict=True):
        np.testing.assert_allclose(one.reshape(3, 4, -1).mean(axis=1), other, atol=1e-6)


def test_an_unknown_pool_is_refused():
    with pytest.raises(
        UserError, match=r"pooling='max' is not known; accepted are mean, last, mean\+last"
    ):
        FeatureConfig("max")


def test_thinned_views_do_not_see_each_other_and_miss_nothing():
    rows = text([[4, 5, 6, 7, 8], [9]], 5)
    views = extract_features(params(), rows, MODEL, feature_config=FeatureConfig(chunk_length=3))
    whole = extract_features(params(), rows, MODEL, feature_config=FeatureConfig())
    np.testing.assert_allclose(views[:, 0], whole[:, 0], atol=1e-6)
    np.testing.assert_allclose(views[1], whole[1], atol=1e-6)
    even, odd = text([[4, 6, 8]], 3), text([[5, 7]], 3)
    even["positions"][:] = [0, 2, 4]
    odd["positions"][:] = [1, 3, 5]
    parts = [pooled_features(params(), part, MODEL)[-1] for part in (even, odd)]
    np.testing.assert_allclose(views[0, -1], (3 * parts[0][0] + 2 * parts[1][0]) / 5, atol=1e-5)


def test_the_last_depth_alone_is_that_of_all():
    rows, _ = separable(5)
    every = extract_features(params(), rows, MODEL, feature_config=FeatureConfig())
    assert every.shape == (5, MODEL.num_layers + 2, MODEL.d_model)
    last = extract_features(params(), rows, MODEL, feature_config=FeatureConfig(), final_only=True)
    np.testing.assert_allclose(last, every[:, -1:], atol=1e-6)


def test_class_tokens_and_patches_are_pooled_by_their_segments():
    x = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    segments = np.array([[2, 2, 0, 1, 1], [2, 0, 0, 1, 0]])
    found = np.asarray(pool_segments(x, segments, ("class", "patches")))
    expected = [[*x[0, :2].mean(axis=0), *x[0, 3:].mean(axis=0)], [*x[1, 0], *x[1, 3]]]
    np.testing.assert_allclose(found, expected)
