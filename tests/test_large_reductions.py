"""Sums that results rest on, over more rows than a faulty jaxlib gets right, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fm.adaptation.features import FeatureConfig, pooled_features
from fm.attention import Mask, attention
from fm.model.cross_entropy import fused_linear_cross_entropy
from fm.model.layers import layer_norm, rms_norm
from fm.training import objectives
from tests.training.helpers_models import IMAGE, TEXT, VOCAB, params

# Compiled as users' runs are.
pytestmark = pytest.mark.slow

# jaxlib 0.10.2 is wrong from 32,769 rows on.
ROWS = 40_001
PARTS = np.array_split(np.arange(ROWS), 9)
CLOSE = {"rtol": 3e-5, "atol": 3e-5}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def in_parts(function, *arrays):
    """The function of a few thousand rows at a time, in order."""
    jitted = jax.jit(function)
    return np.concatenate([np.asarray(jitted(*(x[rows] for x in arrays))) for rows in PARTS])


def text_batch():
    rng = np.random.default_rng(1)
    segments = (np.arange(3) < rng.integers(2, 4, (ROWS, 1))).astype(np.int32)
    positions = np.broadcast_to(np.arange(3, dtype=np.int32), segments.shape)
    tokens = rng.integers(0, VOCAB, segments.shape).astype(np.int32)
    return {"tokens": tokens, "segments": segments, "positions": positions}


def image_batch():
    place = np.array(list(np.ndindex(1, 2)), np.int32)
    patches = np.random.default_rng(2).integers(0, 256, (ROWS, 2, IMAGE.patch_dim("image")))
    return {
        "image": patches.astype(np.uint8),
        "positions": np.broadcast_to(place, (ROWS, 2, 2)),
        "segments": np.ones((ROWS, 2), np.int32),
    }


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@pytest.mark.parametrize("width", [3, 16])
@pytest.mark.parametrize("center", [False, True])
def test_norms(width, center):
    x = normal(ROWS, width) + 0.5
    x64 = x.astype(np.float64)
    x64 = x64 - x64.mean(-1, keepdims=True) if center else x64
    expected = x64 / np.sqrt(np.square(x64).mean(-1, keepdims=True) + 1e-6)
    norm = functools.partial(layer_norm if center else rms_norm, eps=1e-6)
    np.testing.assert_allclose(jax.jit(norm)(x), expected, **CLOSE)


def test_the_norm_of_a_gradient():
    tree = {"kernel": normal(ROWS, 3), "bias": normal(ROWS * 4)}
    expected = np.sqrt(sum(np.square(leaf.astype(np.float64)).sum() for leaf in tree.values()))
    assert float(jax.jit(optax.global_norm)(tree)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("differentiated", [False, True])
def test_cross_entropy(differentiated):
    head, h, weights = normal(3, 12), normal(ROWS, 3, seed=1), np.abs(normal(ROWS, seed=2))
    targets = np.arange(ROWS, dtype=np.int32) % 12
    logits = h.astype(np.float64) @ head.astype(np.float64)
    sums = np.exp(logits).sum(-1)
    nats = np.log(sums) - logits[np.arange(ROWS), targets]
    if not differentiated:
        loss = jax.jit(fused_linear_cross_entropy)(head, h, targets, weights)
        assert float(loss) == pytest.approx(float(nats @ weights.astype(np.float64)), rel=2e-5)
        return
    gradients = jax.jit(jax.grad(fused_linear_cross_entropy, (0, 1)))(head, h, targets, weights)
    dlogits = (np.exp(logits) / sums[:, None] - np.eye(12)[targets]) * weights[:, None]
    np.testing.assert_allclose(gradients[0], h.T.astype(np.float64) @ dlogits, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(gradients[1], dlogits @ head.T.astype(np.float64), **CLOSE)


@pytest.mark.parametrize("implementation", ["reference", "xla_tiled", "xla_chunked"])
def test_attention(implementation):
    q, k, v = (normal(ROWS, 2, 1, 3, seed=seed) for seed in range(3))

    def output(q, k, v):
        return attention(q, k, v, mask=Mask(causal=True), implementation=implementation)

    np.testing.assert_allclose(jax.jit(output)(q, k, v), in_parts(output, q, k, v), **CLOSE)


@pytest.mark.parametrize(
    ("config", "batch"), [(TEXT, text_batch()), (IMAGE, image_batch())], ids=["text", "image"]
)
def test_a_loss_and_its_gradient(config, batch):
    weights = jax.tree.map(jnp.asarray, params(config))

    @jax.jit
    def loss_and_gradient(batch):
        return jax.value_and_grad(lambda w: objectives.causal_lm_sums(w, batch, config)[0])(weights)

    parts = [loss_and_gradient(rows_of(batch, rows)) for rows in PARTS]
    expected = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), 0), *parts)
    loss, gradient = loss_and_gradient(batch)
    assert float(loss) == pytest.approx(float(expected[0]), rel=2e-5)
    for got, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-3, atol=1e-4 * np.abs(right).max() + 1e-6)


@pytest.mark.parametrize("pooling", ["mean", "mean+last"])
def test_features(pooling):
    batch, weights = text_batch(), jax.tree.map(jnp.asarray, params(TEXT))
    features = functools.partial(
        pooled_features, config=TEXT, feature_config=FeatureConfig(pooling=pooling)
    )
    jitted = jax.jit(lambda batch: jnp.stack(features(weights, batch)))
    parts = np.concatenate([jitted(rows_of(batch, rows)) for rows in PARTS], axis=1)
    np.testing.assert_allclose(jitted(batch), parts, **CLOSE)
