"""Stems of image and sound encoders: patches, convolutions, tokens in front, and their FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model import flops
from fm.model.sizes import GPT2_ARCH
from fm.model.stems import (
    CONVOLUTIONS,
    IMAGE_PATCHES,
    SPECTROGRAM_PATCHES,
    EncoderConfig,
    StemConfig,
    embed_stem,
)
from fm.model.transformer import forward, init
from fm.parallel.mesh import MeshConfig
from fm.parallel.sharding import param_specs

ARCH = dataclasses.replace(GPT2_ARCH, activation="gelu", tie_embeddings=False, pooler=True)
STEMS = {
    "image": StemConfig(
        *(IMAGE_PATCHES, "image", (9, 13, 3), (4, 3), (4, 3), 1, 2),
        **{"rescale": 1 / 255, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    ),
    "spectrogram": StemConfig(SPECTROGRAM_PATCHES, "audio", (20, 12), (4, 6), (3, 5), 2),
    "convolutions": StemConfig(CONVOLUTIONS, "audio", (31, 6)),
}
GRIDS = {"image": (2, 4), "spectrogram": (3, 3), "convolutions": (1, 16)}


def config_of(stem):
    return EncoderConfig(
        **{"num_layers": 2, "d_model": 8, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 16},
        **{"max_seq_len": stem.num_tokens, "arch": ARCH, "stem": stem},
    )


def batch_of(stem, count=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, *stem.input_shape)
    is_image = stem.kind == IMAGE_PATCHES
    values = rng.integers(0, 256, shape, np.uint8) if is_image else rng.normal(size=shape)
    positions = np.broadcast_to(np.arange(stem.num_tokens), (count, stem.num_tokens))
    return {stem.modality: jnp.asarray(values), "positions": jnp.asarray(positions)}


def params_of(config):
    """Random parameters, vectors that begin at zero or one too."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32),
        init(jax.random.key(0), config),
    )


@pytest.mark.parametrize("name", STEMS)
def test_tokens_and_their_order(name):
    stem = STEMS[name]
    config, batch = config_of(stem), batch_of(stem)
    streams = params_of(config)["streams"]
    assert stem.grid == GRIDS[name]
    found = np.asarray(embed_stem(streams, batch, config))
    assert found.shape == (2, stem.num_tokens, 8)
    for first, part in ((0, "class_tokens"), (stem.num_class_tokens, "registers")):
        if part in streams:
            own = streams[part]
            np.testing.assert_array_equal(found[1, first : first + len(own)], own)
    patches = found[:, stem.num_prefix_tokens :] - np.asarray(streams["position_embedding"])
    x = np.asarray(batch[stem.modality], np.float64)
    if stem.kind == CONVOLUTIONS:
        for part, stride in (("stem", 1), ("stem_second", 2)):
            padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
            windows = np.stack([padded[:, n : n + 3] for n in range(0, x.shape[1], stride)], 1)
            flat = windows.reshape(*windows.shape[:2], -1)
            y = flat @ np.asarray(streams[part], np.float64) + np.asarray(streams[f"{part}_bias"])
            x = np.asarray(jax.nn.gelu(jnp.asarray(y), approximate=False), np.float64)
        np.testing.assert_allclose(patches, x, atol=1e-5)
        return
    x = (x / 255 - stem.mean) / stem.std if stem.mean else x.swapaxes(1, 2)[..., None]
    (height, width), (down, right) = stem.patch, stem.stride
    expected = [
        x[:, r * down : r * down + height, c * right : c * right + width].reshape(2, -1)
        for r in range(stem.grid[0])
        for c in range(stem.grid[1])
    ]
    expected = np.stack(expected, 1) @ np.asarray(streams["stem"]) + np.asarray(
        streams["stem_bias"]
    )
    np.testing.assert_allclose(patches, expected, atol=1e-5)


@pytest.mark.parametrize("name", STEMS)
def test_gradients_are_finite_and_reach_every_parameter(name):
    config = config_of(STEMS[name])
    batch = batch_of(config.stem)

    def loss(params):
        return jnp.sum(forward(params, batch, config, mask=Mask())["final"][:, :, 0] ** 2)

    gradient = jax.grad(loss)(params_of(config))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        # A key's bias moves all scores of a query alike; the pooler is not read here.
        used = not any(part in str(path) for part in ("pooler", "key_bias"))
        assert np.any(leaf) == used or not used, path


@pytest.mark.parametrize("name", STEMS)
def test_flops_of_the_stem_are_those_of_its_program(name):
    config = dataclasses.replace(config_of(STEMS[name]), d_model=256, mlp_dim=64)
    batch = batch_of(config.stem, count=1)
    streams = init(jax.random.key(0), config)["streams"]
    program = jax.jit(lambda p, b: embed_stem(p, b, config)).lower(streams, batch).compile()
    counted, found = flops.stem_flops(config), program.cost_analysis()["flops"]
    assert 0.8 * counted < found < 1.35 * counted


def test_every_parameter_has_a_sharding_rule():
    for stem in STEMS.values():
        config = config_of(stem)
        shapes = jax.eval_shape(lambda config=config: init(jax.random.key(0), config))
        param_specs(shapes, MeshConfig())


def test_bad_stems_are_refused():
    with pytest.raises(UserError, match="an input of 3x9x3 is smaller than a patch of 4x3"):
        dataclasses.replace(STEMS["image"], input_shape=(3, 9, 3))
    with pytest.raises(UserError, match="stem 'wavelets' is unknown; accepted are image"):
        dataclasses.replace(STEMS["image"], kind="wavelets")
