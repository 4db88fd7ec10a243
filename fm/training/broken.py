"""The batch on which a run stopped being finite, kept for study."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from fm.files import replacing
from fm.training.objectives import Batch


def keep(batch: Batch, folder: pathlib.Path, n: int) -> str:
    """Writes the batch of step `n` into the folder, and says where it is or why it is not.

    The file is NumPy's, without pickles: an array for each of the batch's, with the name of the
    group in front where there are several, as `image/segments`.
    """
    path = folder / f"not-finite-step-{n}.npz"
    arrays = {
        "/".join(key.key for key in place): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        return f"its batch could not be kept ({error.strerror or error})"
    return f"its batch is in {path}"
