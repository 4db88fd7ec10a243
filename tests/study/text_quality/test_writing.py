import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import forward, init
from fm.study.text_quality.writing import Decoding, kept, write

MODEL = ModelConfig(depth=2, width=16, heads=2, kv_heads=1, hidden=32, vocab=13)
BARRED = jnp.arange(13) < 4


@pytest.fixture(scope="module")
def params():
    draws = np.random.default_rng(1)

    def moved(w):
        return np.asarray(w) + 0.3 * draws.standard_normal(w.shape).astype(np.float32)

    return jax.tree.map(moved, init(jax.random.key(0), MODEL))


def by_hand(chances, top_p, min_p):
    order = np.argsort(-chances)
    reached = np.cumsum(chances[order]) - chances[order]
    inside = set(order[reached < top_p].tolist())
    return {n for n in inside if chances[n] >= min_p * chances.max()}


@pytest.mark.parametrize(("top_p", "min_p"), [(1, 0), (0.3, 0), (0.9, 0), (1, 0.2), (0.95, 0.1)])
def test_kept_are_those_found_by_sorting(top_p, min_p):
    logits = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32) * 2
    found = np.asarray(kept(jnp.asarray(logits), jnp.float32(top_p), jnp.float32(min_p)))
    for row, given in zip(found, logits, strict=True):
        chances = np.exp(given - given.max()) / np.exp(given - given.max()).sum()
        assert set(np.flatnonzero(np.isfinite(row)).tolist()) == by_hand(chances, top_p, min_p)
        np.testing.assert_array_equal(row[np.isfinite(row)], given[np.isfinite(row)])


def test_cold_writing_takes_the_likeliest_token_of_the_whole_model(params):
    """The cache gives what the model gives when it reads everything again."""
    prompts = jnp.asarray(np.random.default_rng(0).integers(4, 13, (3, 4)), jnp.int32)
    cold = Decoding(temperature=1e-4)
    made = write(params, prompts, MODEL, cold, new_tokens=6, seed=0, barred_V=BARRED)
    assert made.shape == (3, 10)
    np.testing.assert_array_equal(made[:, :4], prompts)
    inputs = {"tokens": made, "positions": jnp.broadcast_to(jnp.arange(10), (3, 10))}
    final = forward(params, inputs, MODEL, mask=Mask(causal=True))["final"]
    logits = jnp.where(BARRED, -jnp.inf, final @ params["streams"]["token_head"])
    np.testing.assert_array_equal(jnp.argmax(logits[:, 3:-1], -1), made[:, 4:])


def test_barred_tokens_are_never_drawn_and_a_seed_repeats(params):
    prompts = jnp.full((16, 2), 5)
    hot = Decoding(temperature=5.0)

    def made(seed):
        return np.asarray(
            write(params, prompts, MODEL, hot, new_tokens=12, seed=seed, barred_V=BARRED)
        )

    assert made(0)[:, 2:].min() >= 4
    np.testing.assert_array_equal(made(0), made(0))
    assert (made(0) != made(1)).any()


def test_plain_sampling_draws_by_the_model_s_chances(params):
    prompts = jnp.full((4000, 2), 7)
    made = write(params, prompts, MODEL, Decoding(), new_tokens=1, seed=0, barred_V=BARRED)
    inputs = {"tokens": prompts[:1], "positions": jnp.arange(2)[None]}
    final = forward(params, inputs, MODEL, mask=Mask(causal=True))["final"][0, -1]
    logits = jnp.where(BARRED, -jnp.inf, final @ params["streams"]["token_head"])
    drawn = np.bincount(np.asarray(made)[:, 2], minlength=13) / 4000
    np.testing.assert_allclose(drawn, jax.nn.softmax(logits), atol=0.03)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_a_setting_out_of_range_is_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Decoding(**bad)


def test_names():
    assert Decoding().name == "T 1"
    assert Decoding(temperature=0.7, min_p=0.1).name == "T 0.7, min-p 0.1"
    assert Decoding(top_p=0.9).name == "top-p 0.9"
    assert Decoding(temperature=0.5).by_temperature and not Decoding(top_p=0.9).by_temperature
