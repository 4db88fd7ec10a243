import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fm.data.media.image_features import (
    hog_features,
    learn_patch_codes,
    pixel_features,
    unit_pixels,
)

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 20, 3), (64, 48, 1), (2, 2, 1), (3, 5, 3)]


@pytest.fixture(autouse=True)
def one_blas_thread():
    with threadpool_limits(1, user_api="blas"):
        yield


def images(shape, count=12):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_any_size_and_color_have_features(shape):
    some = images(shape)
    hog = hog_features(some)
    codes = learn_patch_codes(unit_pixels(some))(unit_pixels(some))
    for features in (hog, codes, pixel_features(some)):
        assert features.ndim == 2 and len(features) == 12 and np.isfinite(features).all()
    assert np.ptp(codes, axis=0).any()
    assert 0 < pixel_features(some).max() <= 1


def test_a_feature_depends_on_its_own_image_alone():
    some = images((16, 16, 3))
    np.testing.assert_array_equal(hog_features(some)[3:5], hog_features(some[3:5]))
    encode = learn_patch_codes(unit_pixels(some))
    np.testing.assert_allclose(
        encode(unit_pixels(some))[3:5], encode(unit_pixels(some[3:5])), atol=1e-4
    )


def test_hog_sees_edges_and_not_brightness():
    ramp = np.zeros((1, 16, 16, 1), np.uint8)
    ramp[:, 4:12, 4:12] = 100
    np.testing.assert_allclose(hog_features(ramp), hog_features(ramp + np.uint8(50)), atol=1e-5)
    assert not np.allclose(hog_features(ramp), hog_features(np.roll(ramp, 4, axis=1)), atol=0.1)


def test_codes_tell_textures_apart():
    random = np.random.default_rng(0)
    stripes = np.arange(16)[:, None] % 4 < 2
    both = [stripes * np.ones((1, 16)), np.ones((16, 1)) * stripes.T]
    pictures = np.stack([both[n % 2] + random.normal(0, 0.3, (16, 16)) for n in range(60)])
    codes = learn_patch_codes(np.float32(pictures[..., None]))(np.float32(pictures[..., None]))
    means = np.stack([codes[:40][n::2].mean(axis=0) for n in (0, 1)])
    nearest = np.linalg.norm(codes[40:, None] - means, axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.arange(20) % 2)
