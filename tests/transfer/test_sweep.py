import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation.batching import map_batches


def read(factor, batch):
    return factor * jnp.sum(batch["segments"], axis=1)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 33, 70])
def test_every_row_is_read_once_and_in_order(count):
    rows = {"segments": np.arange(3 * count, dtype=np.int32).reshape(count, 3)}
    made = map_batches(read, 2, rows, batch_size=8)
    assert np.array_equal(made, 2 * rows["segments"].sum(axis=1))
