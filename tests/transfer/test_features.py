import numpy as np
import pytest

from fm.errors import UserError
from fm.transfer.examples import image_rows
from fm.transfer.features import frozen_features, pooled
from tests.transfer.problems import MODEL, PICTURES, params, separable, text


@pytest.mark.parametrize("batch_size", [3, 64])
def test_frozen_features_do_not_depend_on_the_batch(batch_size):
    rows, _ = separable(7)
    whole = frozen_features(params(), rows, MODEL, pool="mean", batch_size=7)
    assert whole.shape == (7, (MODEL.depth + 2) * MODEL.width) and whole.dtype == np.float32
    parts = frozen_features(params(), rows, MODEL, pool="mean", batch_size=batch_size)
    np.testing.assert_allclose(parts, whole, atol=2e-6)


def test_frozen_features_do_not_depend_on_padding():
    tokens = [[4, 5, 6], [7, 8], [9]]
    short, long = text(tokens, 4), text(tokens, 9)
    long["tokens"][long["segments"] == 0] = 11
    a = frozen_features(params(), short, MODEL, pool="mean")
    b = frozen_features(params(), long, MODEL, pool="mean")
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_each_depth_has_unit_length():
    rows, _ = separable(3)
    features = frozen_features(params(), rows, MODEL, pool="mean")
    depths = features.reshape(3, MODEL.depth + 2, MODEL.width)
    np.testing.assert_allclose(np.linalg.norm(depths, axis=-1), 1.0, atol=1e-5)


def test_mean_pool_is_the_mean_of_the_filled_pieces():
    rows = text([[4, 5, 6], [7]], 5)
    first = pooled(params(), rows, MODEL, "mean")[0]
    each = pooled(params(), rows, MODEL, "concat")[0].reshape(2, 5, MODEL.width)
    np.testing.assert_allclose(first[0], each[0, :3].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(first[1], each[1, 0], atol=1e-6)


def test_concat_pool_keeps_what_stands_where():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    rows = image_rows(images, 2)
    depths = pooled(params(PICTURES), rows, PICTURES, "concat")
    assert [x.shape for x in depths] == [(3, 4 * PICTURES.width)] * (PICTURES.depth + 2)
    mean = pooled(params(PICTURES), rows, PICTURES, "mean")
    for one, other in zip(depths, mean, strict=True):
        np.testing.assert_allclose(one.reshape(3, 4, -1).mean(axis=1), other, atol=1e-6)


def test_an_unknown_pool_is_refused():
    with pytest.raises(UserError, match="pool='max' is not known; accepted are mean, concat"):
        pooled(params(), text([[4]], 2), MODEL, "max")
