"""Pictures drawn with a cache against the plain forward pass, run again for every patch."""

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask
from fm.model import streams
from fm.model.drawing import sample_patches
from tests.model.problems import IMAGE, images, params, run


def plain(weights, positions_LA, rng, count, temperature):
    L = len(positions_LA)
    inputs = streams.with_start(
        {
            "image": jnp.zeros((count, L, IMAGE.piece("image"))),
            "positions": jnp.broadcast_to(positions_LA, (count, *positions_LA.shape)),
            "segments": jnp.ones((count, L), jnp.int32),
        }
    )
    drawn = np.array(inputs["image"])
    for at in range(1, L + 1):
        final = run(weights, inputs | {"image": drawn}, IMAGE, mask=Mask(causal=True))["final"]
        log_weights, means, scales = streams.mixture(
            weights["streams"], final[:, at - 1], IMAGE, "image"
        )
        which, noise = jax.random.split(jax.random.fold_in(rng, at))
        component = np.asarray(jax.random.categorical(which, log_weights))
        rows = np.arange(count)
        mean, scale = np.asarray(means)[rows, component], np.asarray(scales)[rows, component]
        value = mean + temperature * scale * np.asarray(jax.random.normal(noise, mean.shape))
        drawn[:, at] = np.clip(value, 0.0, 1.0)
    return drawn[:, 1:]


def test_pictures_are_the_plain_ones():
    weights, positions = params(IMAGE), jnp.asarray(images()["positions"][0])
    rng = jax.random.key(3)
    got = sample_patches(weights, positions, rng, IMAGE, count=3, temperature=0.7)
    want = plain(weights, positions, rng, 3, 0.7)
    assert got.shape == (3, 9, IMAGE.piece("image"))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert np.std(np.asarray(got), axis=0).max() > 0.05
