"""Rows that mix formats: each piece through its own stream, nobody's segment seen by another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.data.packing import PackedMultimodalRowSource, Segment, build_row
from fm.errors import UserError
from fm.model import ModelConfig
from fm.model.transformer import forward
from fm.training import PretrainingObjective, objectives
from tests.training.helpers_models import params

WIDTHS = {"image": 6, "audio": 5, "video": 4}
FOUR = ModelConfig(
    num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=16, vocab_size=24,
    position_axes=3, num_mixtures=2, patch_dims=tuple(WIDTHS.items()), attention="reference",
)  # fmt: skip
NEXT = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
GRIDS = {"image": (2, 3), "audio": (4,), "video": (2, 1, 2)}


def segment(stream, seed=0, **options):
    rng = np.random.default_rng(seed)
    if stream == "tokens":
        return Segment("tokens", rng.integers(0, FOUR.vocab_size, 3 + seed % 3), **options)
    places = np.array(list(np.ndindex(*GRIDS[stream])), np.int32)
    values = rng.integers(0, 256, (len(places), WIDTHS[stream])).astype(np.uint8)
    if stream == "audio":
        values = rng.uniform(size=values.shape).astype(np.float32)
    return Segment(stream, values, places, **options)


def rows(examples, capacity, **options):
    """A batch of all rows that the examples make."""
    widths = [("tokens", 0), *FOUR.patch_dims]
    packed = PackedMultimodalRowSource(
        [build_row(each, FOUR.modalities) for each in examples], capacity, widths, **options
    )
    each = [packed[n] for n in range(len(packed))]
    return {key: np.stack([row[key] for row in each]) for key in each[0]}


@jax.jit
def nats(weights, batch):
    noise_BL = jnp.zeros(batch["segments"].shape)
    return objectives.loss_sums(weights, batch, noise_BL, FOUR, NEXT)["causal_lm"]


@functools.partial(jax.jit, static_argnames="objective")
def nats_and_gradient(weights, batch, noise_BL, objective=NEXT):
    def total(weights):
        (sums,) = objectives.loss_sums(weights, batch, noise_BL, FOUR, objective).values()
        return sums[0], sums[1]

    return jax.value_and_grad(total, has_aux=True)(weights)


EXAMPLES = [
    [segment("tokens"), segment("image", 1), segment("tokens", 2)],
    [segment("audio", 3, with_start=True), segment("video", 4), segment("tokens", 5)],
    [segment("video", 6, answer=False), segment("image", 7, with_start=True)],
]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_packed_is_separate(order):
    weights = params(FOUR)
    examples = [EXAMPLES[n] for n in order]
    together, apart = rows(examples, 40), rows(examples, 40, share_rows=False)
    assert len(together["segments"]) == 1 and len(apart["segments"]) == 3
    got, want = (
        nats_and_gradient(weights, batch, np.zeros((len(batch["segments"]), 40)))
        for batch in (together, apart)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), got, want)


@pytest.mark.parametrize("stream", ["tokens", "image", "audio", "video"])
def test_a_row_of_one_format_is_what_it_is_alone(stream):
    """Led by its start piece, and wherever its positions begin."""
    led = stream != "tokens"
    lone = segment(stream, 4, with_start=led)
    L = len(lone.tokens)
    alone = {
        stream: lone.tokens[None],
        "positions": np.arange(L)[None] if lone.positions is None else lone.positions[None],
        "segments": np.ones((1, L), np.int32),
    }
    packed = rows([[lone]], L + led)
    moved = packed | {"positions": packed["positions"] + 7}
    want = nats(params(FOUR), alone)
    for batch in (packed, moved):
        np.testing.assert_allclose(nats(params(FOUR), batch), want, rtol=1e-4)


def test_gradients_reach_earlier_pieces_of_the_segment_alone():
    batch = rows(EXAMPLES, 40)
    segments, modality = batch["segments"][0], batch["modality"][0]
    values = {name: jnp.asarray(batch[name]) for name in WIDTHS}

    @jax.jit
    def gradient(place):
        def output(values):
            mask = Mask(True, q_segments=batch["segments"], kv_segments=batch["segments"])
            made = forward(params(FOUR), batch | values, FOUR, mask=mask)["final"]
            return jnp.sum(jnp.sin(made[0, place]))

        return jax.grad(output)(values)

    for segment_ in (1, 2, 3):
        place = np.flatnonzero(segments == segment_)[-2]
        reached = {name: np.any(np.asarray(g[0]) != 0, -1) for name, g in gradient(place).items()}
        may = (segments == segment_) & (np.arange(40) <= place)
        for name, each in reached.items():
            np.testing.assert_array_equal(each, may & (modality == FOUR.modalities.index(name)))


def test_the_head_of_the_targets_stream_predicts_it():
    example = [segment("tokens", answer=False), segment("audio", 1), segment("tokens", 2)]
    muted = [segment("tokens"), segment("audio", 1, answer=False), segment("tokens", 2)]
    (_, count), gradient = nats_and_gradient(params(FOUR), rows([example], 16), np.zeros((1, 16)))
    assert count == 4 + 5 and np.any(gradient["streams"]["audio_head"])
    (_, count), gradient = nats_and_gradient(params(FOUR), rows([muted], 16), np.zeros((1, 16)))
    assert count == 2 + 5 and not np.any(gradient["streams"]["audio_head"])
    assert np.any(gradient["streams"]["audio_embedding"])
    assert not np.any(gradient["streams"]["video_embedding"])


def test_hidden_are_answers_and_their_share_of_them():
    example = [segment("tokens", answer=False), segment("image", 1, with_start=True)]
    masked = PretrainingObjective(masked_lm=1.0, mask_ratio=0.5)
    batch = rows([example], 16)
    noise = np.random.default_rng(0).uniform(size=(1, 16)).astype(np.float32)
    (_, count), gradient = nats_and_gradient(params(FOUR), batch, noise, masked)
    assert count == 3
    assert not np.any(gradient["streams"]["token_head"])
    # No token hidden, so every one of them is seen.
    seen = np.flatnonzero(np.any(gradient["streams"]["token_embedding"], axis=1))
    assert set(example[0].tokens) <= set(seen)


def test_what_lies_in_a_prefix_is_seen_by_all():
    batch = rows([[segment("image", answer=False), segment("tokens", 1)]], 12)
    whole, none = (
        nats(params(FOUR), batch | {"prefix": np.array([prefix])})[0] for prefix in (8, 0)
    )
    assert whole != none
    np.testing.assert_allclose(none, nats(params(FOUR), batch)[0], rtol=1e-6)


def test_what_follows_begins_past_the_largest_coordinate():
    row = build_row(EXAMPLES[0], FOUR.modalities)
    assert row["positions"].tolist() == [
        [0, 0, 0], [1, 1, 1], [2, 2, 2],
        [3, 3, 3], [3, 3, 4], [3, 3, 5], [3, 4, 3], [3, 4, 4], [3, 4, 5],
        [6, 6, 6], [7, 7, 7], [8, 8, 8], [9, 9, 9], [10, 10, 10],
    ]  # fmt: skip
    led = build_row(EXAMPLES[1], FOUR.modalities)
    assert led["positions"][:3].tolist() == [[0, 1, 1], [1, 1, 1], [2, 1, 1]]
    assert not led["answer"][0] and led["answer"][1:].all()
    np.testing.assert_array_equal(led["audio"][0], 0.5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="'audio' is not one of tokens, image"):
        build_row([segment("audio")], ("tokens", "image"))
    with pytest.raises(UserError, match="14 tokens is longer than a row of 8"):
        rows(EXAMPLES[:1], 8)
