"""Learned positions of an image encoder, resized to another grid of patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Grid = tuple[int, int]


def resize_positions(
    positions_LD: np.ndarray, old: Grid, new: Grid, *, antialias: bool
) -> np.ndarray:
    """Returns position embeddings of a grid of patches as those of another grid, bicubic.

    It is what `torch.nn.functional.interpolate(mode="bicubic")` does, with which `transformers`
    resizes them.

    Args:
      positions_LD: float32 [rows * columns, D], by rows.
      old: rows and columns.
      new: those wanted.
      antialias: whether a smaller grid averages over more of the old one, as DINOv2 with registers
        does.

    Returns:
      float32 [new rows * new columns, D].
    """
    if old == new:
        return positions_LD
    matrix = _antialiased_matrix if antialias else _bicubic_matrix
    rows, columns = (matrix(*sizes) for sizes in zip(old, new, strict=True))
    grid = positions_LD.reshape(*old, -1).astype(np.float64)
    resized = np.einsum("ri,cj,ijd->rcd", rows, columns, grid, optimize=True)
    return resized.reshape(new[0] * new[1], -1).astype(np.float32)


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the cubic convolution kernel (Keys 1981, eq. 4) of the slope `a`."""

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


def _bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Returns the weights [new, old] of four neighbors each; beyond the ends these repeat."""
    center = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(center).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        neighbor = first + tap
        weight = _cubic(-0.75)(center - neighbor)
        np.add.at(weights, (np.arange(new), np.clip(neighbor, 0, old - 1)), weight)
    return weights


def _antialiased_matrix(old: int, new: int) -> np.ndarray:
    """Returns the weights [new, old] of a kernel as wide as a step of the smaller grid."""
    scale = max(old / new, 1.0)
    center = (np.arange(new)[:, None] + 0.5) * old / new
    places = np.arange(old)[None, :] + 0.5
    weights = _cubic(-0.5)((places - center) / scale)
    return weights / weights.sum(axis=1, keepdims=True)
