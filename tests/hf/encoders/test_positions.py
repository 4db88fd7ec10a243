"""Resized position embeddings against PyTorch's interpolation."""

import numpy as np
import pytest

from fm.hf.encoders.positions import resize_positions


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [(3, 3), (9, 5), (2, 12), (6, 6)])
def test_equals_pytorch(new, antialias):
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32)
    grid = torch.tensor(positions.reshape(1, 6, 6, 5)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, size=new, mode="bicubic", align_corners=False, antialias=antialias
    )
    found = resize_positions(positions, (6, 6), new, antialias=antialias)
    theirs = expected.permute(0, 2, 3, 1).reshape(-1, 5)
    np.testing.assert_allclose(found, theirs, atol=2e-6)


@pytest.mark.parametrize("antialias", [False, True])
def test_constants_stay(antialias):
    found = resize_positions(np.ones((12, 2), np.float32), (3, 4), (5, 2), antialias=antialias)
    np.testing.assert_allclose(found, np.ones((10, 2)), atol=1e-6)
