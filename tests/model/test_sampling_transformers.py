"""Filters against the logits processors of `transformers`, where both mean the same.

Not the same: of tokens that tie at top-p's threshold it drops some, here they stay together.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from fm.model.sampling import SamplingConfig, apply_repetition_penalty, unnormalized_filtered_probs

torch = pytest.importorskip("torch")
processors = pytest.importorskip("transformers.generation.logits_process")

B, V = 4, 500
LOGITS = np.random.default_rng(0).normal(size=(B, V), scale=3.0).astype(np.float32)
SEEN = np.random.default_rng(1).integers(0, V, (B, 60))


def theirs(decoding):
    """Probabilities [B, V] after the processors that `generate` puts in this order."""
    scores, seen = torch.tensor(LOGITS), torch.tensor(SEEN)
    steps = [
        processors.RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty),
        processors.TemperatureLogitsWarper(decoding.temperature),
        processors.TopKLogitsWarper(decoding.top_k or V),
        processors.TopPLogitsWarper(decoding.top_p),
        processors.MinPLogitsWarper(decoding.min_p),
    ]
    for step in steps:
        scores = step(seen, scores)
    return torch.softmax(scores.double(), dim=-1).numpy()


def ours(decoding):
    seen = np.zeros((B, V), bool)
    np.put_along_axis(seen, SEEN, True, axis=-1)
    sampling_params = decoding.to_params()
    logits = apply_repetition_penalty(jnp.asarray(LOGITS), seen, sampling_params.repetition_penalty)
    weights = np.asarray(unnormalized_filtered_probs(logits, sampling_params), np.float64)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        ({}, False),
        ({"temperature": 0.6}, False),
        ({"top_k": 1}, True),
        ({"top_k": 50}, True),
        ({"top_p": 0.3}, True),
        ({"top_p": 0.95}, True),
        ({"min_p": 0.1}, True),
        ({"repetition_penalty": 1.3}, False),
        ({"repetition_penalty": 0.7}, False),
        ({"temperature": 1.8, "top_k": 40, "top_p": 0.9}, True),
        ({"temperature": 1.5, "top_k": 200, "top_p": 0.97, "min_p": 0.02}, True),
        ({"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.2}, True),
    ],
    ids=str,
)
def test_the_same_tokens_stay_with_the_same_probabilities(options, filters):
    decoding = SamplingConfig(**options)
    want, got = theirs(decoding), ours(decoding)
    np.testing.assert_array_equal(got > 0, want > 0)
    assert np.any(want == 0) == filters
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-12)
