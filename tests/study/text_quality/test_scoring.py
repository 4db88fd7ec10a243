import jax
import numpy as np
import pytest

from fm.attention import Mask
from fm.model.config import ModelConfig
from fm.model.transformer import forward, init
from fm.study.text_quality.scoring import sequence_nll

MODEL = ModelConfig(
    num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=32, vocab_size=11
)


@pytest.fixture(scope="module")
def params():
    draws = np.random.default_rng(1)

    def moved(w):
        return np.asarray(w) + 0.3 * draws.standard_normal(w.shape).astype(np.float32)

    return jax.tree.map(moved, init(jax.random.key(0), MODEL))


@jax.jit
def final(params, tokens_BL):
    inputs = {"tokens": tokens_BL, "positions": np.arange(tokens_BL.shape[1])[None]}
    return forward(params, inputs, MODEL, mask=Mask(causal=True))["final"]


@pytest.mark.parametrize("rows", [1, 33])
def test_against_each_token_by_itself(params, rows):
    draws = np.random.default_rng(0)
    tokens = draws.integers(0, 11, (rows, 5)).astype(np.int32)
    counted = draws.random((rows, 5)) < 0.6
    counted[:, 0] = False
    found = sequence_nll(params, tokens, counted, MODEL)
    head = np.asarray(params["streams"]["token_head"], np.float64)
    for row in sorted({0, rows - 1}):
        expected = 0.0
        for at in np.flatnonzero(counted[row]):
            logits = np.asarray(final(params, tokens[row : row + 1, :at])[0, -1], float) @ head
            expected += np.log(np.exp(logits).sum()) - logits[tokens[row, at]]
        assert found[row] == pytest.approx(expected, rel=1e-4)


def test_a_first_token_cannot_count(params):
    with pytest.raises(ValueError, match="first token"):
        sequence_nll(params, np.zeros((1, 3), np.int32), np.ones((1, 3), bool), MODEL)
