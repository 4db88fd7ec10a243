"""Which masks rows take: segments only where a row may hold several documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask, explain_choice
from fm.model.row_mask import row_mask

B, L = 2, 6
SEGMENTS = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], np.int32)
LENGTH = np.array([4, 2], np.int32)
PATCHES = {"image": np.zeros((B, L, 3)), "segments": np.ones((B, L), np.int32)}
PACKED = {"tokens": np.zeros((B, L), np.int32), "segments": SEGMENTS}
SINGLE = PACKED | {"length": LENGTH}


def fields(mask: Mask) -> set[str]:
    """The mask's fields that are not at their default."""
    return {name for name, value in vars(mask).items() if value is not None and value is not False}


@pytest.mark.parametrize(
    ("batch", "causal", "want"),
    [
        (PATCHES, True, {"causal"}),
        (PATCHES, False, set()),
        (SINGLE, True, {"causal"}),
        (SINGLE, False, {"kv_length"}),
        (SINGLE | {"prefix": LENGTH // 2}, True, {"causal", "prefix", "kv_length"}),
        (SINGLE | {"prefix": LENGTH // 2}, False, {"kv_length"}),
        (PACKED, True, {"causal", "q_segments", "kv_segments", "packed"}),
        (PACKED, False, {"q_segments", "kv_segments", "packed"}),
        # Rows of several modalities are packed even where they have no text.
        (
            PATCHES | {"modality": np.zeros((B, L), np.int32)},
            False,
            {"q_segments", "kv_segments", "packed"},
        ),
    ],
)
def test_fields(batch, causal, want):
    assert fields(row_mask(batch, causal=causal)) == want


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_see_the_same_with_segments_and_with_a_length(causal):
    by_length, by_segments = (
        np.broadcast_to(row_mask(batch, causal=causal).materialize(L, L), (B, L, L))
        for batch in (SINGLE, PACKED)
    )
    tokens = SEGMENTS > 0
    np.testing.assert_array_equal(by_length[tokens], by_segments[tokens])


def test_is_known_while_tracing():
    seen = []

    @jax.jit
    def trace(batch):
        seen.append(row_mask(batch, causal=False))
        return jnp.zeros(())

    trace(SINGLE)
    assert fields(seen[0]) == {"kv_length"}


@pytest.mark.parametrize("batch", [PATCHES, SINGLE], ids=["patches", "single"])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_one_document_reach_cudnn(batch, causal):
    q = jax.ShapeDtypeStruct((B, 128, 2, 64), jnp.bfloat16)
    assert explain_choice(q, q, row_mask(batch, causal=causal), platform="gpu").name == "cudnn"
