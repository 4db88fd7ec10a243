"""What each objective counts, and what the model may see while it does."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.errors import UserError
from fm.training import PretrainingObjective, multitask, objectives
from tests.training.helpers_models import IMAGE, TEXT, VOCAB, images, params, uneven_text

L = 12
MASKED = PretrainingObjective(masked_lm=1.0, mask_ratio=0.5)
BAG = PretrainingObjective(masked_lm=0.0, bag_of_words=1.0, mask_ratio=0.5)
NEXT = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)
WEIGHTS = jnp.linspace(0.5, 2.0, VOCAB)


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def loss_sums(params, batch, noise_BL, config, objective):
    return objectives.loss_sums(params, batch, noise_BL, config, objective, WEIGHTS)


def one_row(tokens=None):
    """Every token once, so that an embedding's gradient tells whether its place was seen."""
    return {
        "tokens": np.arange(L, dtype=np.int32)[None] if tokens is None else tokens,
        "positions": np.arange(L, dtype=np.int32)[None],
        "segments": np.ones((1, L), np.int32),
    }


NOISE = np.random.default_rng(3).permutation(L)[None].astype(np.float32) / L
ORDER = np.argsort(NOISE[0])


def seen_tokens(objective):
    """Which tokens' embeddings the objective's value depends on."""

    def value(weights):
        (nats, _), *_ = objectives.loss_sums(
            weights, one_row(), NOISE, TEXT, objective, WEIGHTS
        ).values()
        return nats

    gradient = jax.jit(jax.grad(value))(params(TEXT))["streams"]["token_embedding"]
    return set(np.flatnonzero(np.any(np.asarray(gradient) != 0, axis=1)))


def test_masked_pieces_are_not_seen_and_all_others_are():
    assert seen_tokens(MASKED) == set(ORDER[L // 2 :])


def test_a_bag_is_predicted_from_the_visible_alone():
    assert seen_tokens(BAG) == set(ORDER[: L // 2])


def single_rows(batch):
    """The same batch, known to hold one document per row."""
    lengths = np.sum(batch["segments"] > 0, axis=1, dtype=np.int32)
    segments = (np.arange(batch["segments"].shape[1]) < lengths[:, None]).astype(np.int32)
    return batch | {"segments": segments, "length": lengths}


@pytest.mark.parametrize("objective", [NEXT, MASKED, BAG])
def test_rows_known_to_hold_one_document_give_the_same_to_the_bit(objective):
    """Without segments in the mask, on a CPU."""
    single = single_rows(uneven_text())
    packed = {key: value for key, value in single.items() if key != "length"}
    noise = np.random.default_rng(0).random(packed["segments"].shape, np.float32)

    @jax.jit
    def run(weights, batch):
        def value(weights):
            sums = objectives.loss_sums(weights, batch, noise, TEXT, objective, WEIGHTS)
            ((nats, count),) = sums.values()
            return nats / count

        return jax.value_and_grad(value)(weights)

    results = run(params(TEXT), single), run(params(TEXT), packed)
    for left, right in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("objective", "batch", "config", "want"),
    [
        (NEXT, images(), IMAGE, {"causal"}),
        (MASKED, images(), IMAGE, set()),
        (NEXT, single_rows(uneven_text()), TEXT, {"causal"}),
        (MASKED, single_rows(uneven_text()), TEXT, {"kv_length"}),
        (BAG, uneven_text(), TEXT, {"kv_length"}),
        (NEXT, uneven_text(), TEXT, {"causal", "q_segments", "kv_segments"}),
    ],
)
def test_masks_have_segments_only_where_rows_are_packed(
    objective, batch, config, want, monkeypatch
):
    masks = []

    def spy(params, inputs, config, *, mask, **options):
        masks.append((inputs["positions"].shape[:2], mask))
        return forward(params, inputs, config, mask=mask, **options)

    forward = objectives.forward
    monkeypatch.setattr(objectives, "forward", spy)
    noise = np.zeros(batch["segments"].shape, np.float32)
    objectives.loss_sums(params(config), batch, noise, config, objective, WEIGHTS)
    (told,) = objectives.attention_inputs(batch, objective).values()
    ((shape, mask),) = masks
    assert told[:2] == shape
    for each in (mask, told[2]):
        names = {name for name, value in vars(each).items() if value is not None}
        assert {name for name in names if getattr(each, name) is not False} - {"packed"} == want


def test_the_last_piece_predicts_nothing():
    assert seen_tokens(NEXT) == set(range(L - 1))


def test_a_bag_has_no_order():
    hidden = ORDER[L // 2 :]
    shuffled = one_row()["tokens"].copy()
    shuffled[0, hidden] = shuffled[0, np.roll(hidden, 1)]
    left, right = (
        loss_sums(params(TEXT), one_row(tokens), NOISE, TEXT, BAG)["bag_of_words"]
        for tokens in (None, shuffled)
    )
    np.testing.assert_allclose(left, right, rtol=1e-6)
    changed = one_row()["tokens"].copy()
    changed[0, hidden[0]] = VOCAB - 1
    other = loss_sums(params(TEXT), one_row(changed), NOISE, TEXT, BAG)["bag_of_words"]
    assert abs(float(other[0] - left[0])) > 1e-3


def test_a_bag_weighs_its_tokens():
    _, weight = loss_sums(params(TEXT), one_row(), NOISE, TEXT, BAG)["bag_of_words"]
    np.testing.assert_allclose(weight, WEIGHTS[ORDER[L // 2 :]].sum(), rtol=1e-6)


def test_a_bag_holds_what_a_sort_of_the_noise_leaves():
    batch = uneven_text()
    noise = np.random.default_rng(0).uniform(size=(8, L)).astype(np.float32)
    want = 0.0
    for tokens, segments, each in zip(batch["tokens"], batch["segments"], noise, strict=True):
        places = np.argsort(each)
        places = places[segments[places] > 0]
        hidden = places[max(1, round(0.5 * len(places))) :]
        want += float(WEIGHTS[tokens[hidden]].sum())
    _, weight = loss_sums(params(TEXT), batch, noise, TEXT, BAG)["bag_of_words"]
    np.testing.assert_allclose(weight, want, rtol=1e-6)


@pytest.mark.parametrize(
    "objective", [NEXT, MASKED, BAG], ids=["causal_lm", "masked_lm", "bag_of_words"]
)
def test_padding_neither_counts_nor_shows(objective):
    batch = uneven_text()
    noise = np.random.default_rng(0).uniform(size=(8, L)).astype(np.float32)
    wild = batch | {"tokens": np.where(batch["segments"] > 0, batch["tokens"], 5)}
    left, right = (loss_sums(params(TEXT), each, noise, TEXT, objective) for each in (batch, wild))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), left, right)


def test_counts():
    batch = uneven_text()
    noise = np.random.default_rng(0).uniform(size=(8, L)).astype(np.float32)
    filled = batch["segments"].sum(1)
    assert loss_sums(params(TEXT), batch, noise, TEXT, NEXT)["causal_lm"][1] == np.sum(filled - 1)
    hidden = np.argsort(noise, axis=1)[:, : L // 2]
    want = np.take_along_axis(batch["segments"], hidden, axis=1).sum()
    assert loss_sums(params(TEXT), batch, noise, TEXT, MASKED)["masked_lm"][1] == want


def test_segments_do_not_predict_each_other():
    batch = one_row()
    batch["segments"] = np.array([[1] * 5 + [2] * 4 + [0] * 3])
    assert loss_sums(params(TEXT), batch, NOISE, TEXT, NEXT)["causal_lm"][1] == 4 + 3


def test_every_patch_is_predicted_the_first_too():
    noise = np.zeros((4, 6), np.float32)
    _, count = loss_sums(params(IMAGE), images(), noise, IMAGE, NEXT)["causal_lm"]
    assert count == 4 * 6


@pytest.mark.parametrize(
    ("rows", "shares"), [(64, (0.0625, 0.9375)), (7, (1 / 7, 6 / 7)), (2, (0.5, 0.5))]
)
def test_a_share_without_a_row_gets_one(rows, shares):
    text = PretrainingObjective(causal_lm=0.0625, masked_lm=0.0, bag_of_words=0.9375)
    kept = objectives.with_a_row_each(text, rows)
    assert (kept.causal_lm, kept.bag_of_words) == pytest.approx(shares)
    assert list(objectives.objective_rows(kept, rows)) == ["causal_lm", "bag_of_words"]
    with pytest.raises(UserError, match="no row"):
        objectives.with_a_row_each(text, 1)


def test_rows_go_to_objectives_by_their_shares():
    rows = objectives.objective_rows(
        PretrainingObjective(causal_lm=0.25, masked_lm=0.5, bag_of_words=0.25), 8
    )
    assert rows == {"causal_lm": slice(0, 2), "masked_lm": slice(2, 6), "bag_of_words": slice(6, 8)}
    assert list(objectives.objective_rows(MASKED, 8)) == ["masked_lm"]


@pytest.mark.parametrize(
    ("shares", "batch_size", "empty"),
    [
        ({"causal_lm": 0.05, "masked_lm": 0.0, "bag_of_words": 0.95}, 8, "causal_lm"),
        ({"causal_lm": 0.5, "masked_lm": 0.04, "bag_of_words": 0.46}, 8, "masked_lm"),
        ({"causal_lm": 0.0, "masked_lm": 0.98, "bag_of_words": 0.02}, 8, "bag_of_words"),
        ({"causal_lm": 0.5, "masked_lm": 0.5}, 1, "causal_lm"),
        (
            {"causal_lm": 0.3, "masked_lm": 0.4, "bag_of_words": 0.3},
            1,
            "causal_lm and bag_of_words",
        ),
    ],
)
def test_a_share_without_rows_is_refused(shares, batch_size, empty):
    objective = PretrainingObjective(**shares)
    with pytest.raises(UserError) as caught:
        objectives.objective_rows(objective, batch_size)
    message = str(caught.value)
    assert (
        f"leave {empty}" in message
        and "no row" in message
        and f"batch_size={batch_size} " in message
    )
    assert all(f"{name}={share}" in message for name, share in shares.items() if share)
    batch = uneven_text(batch_size)
    groups = multitask.MultitaskObjective((("text", objective),))
    for each, rows in ((objective, batch), (groups, {"text": batch})):
        with pytest.raises(UserError, match="no row"):
            multitask.loss(params(TEXT), rows, jax.random.key(0), TEXT, each, WEIGHTS)


def test_shares_that_add_up_but_for_rounding_keep_all_rows():
    rows = objectives.objective_rows(PretrainingObjective(0.1 + 0.2, 0.7), 10)
    assert rows == {"causal_lm": slice(0, 3), "masked_lm": slice(3, 10)}


def test_the_loss_is_the_mean_by_shares():
    objective = PretrainingObjective(causal_lm=0.25, masked_lm=0.75)
    total, metrics = jax.jit(multitask.loss, static_argnums=(3, 4))(
        params(TEXT), uneven_text(), jax.random.key(0), TEXT, objective
    )
    assert set(metrics) == {"causal_lm_nats", "masked_lm_nats"}
    want = 0.25 * metrics["causal_lm_nats"] + 0.75 * metrics["masked_lm_nats"]
    np.testing.assert_allclose(total, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "objective"),
    [(TEXT, NEXT), (TEXT, MASKED), (TEXT, BAG), (IMAGE, NEXT), (IMAGE, MASKED)],
)
def test_a_bfloat16_models_losses_are_of_float32_outputs(model, objective, monkeypatch):
    """In training as in validation, on an accelerator too."""
    monkeypatch.setattr("fm.model.cross_entropy.default_platform", lambda: "gpu")
    half, batch = dataclasses.replace(model, dtype="bfloat16"), uneven_text()
    if model is IMAGE:
        batch = images()
    weights, key = params(model), jax.random.key(0)

    def value(weights):
        return multitask.loss(weights, batch, key, half, objective, WEIGHTS)[0]

    width = VOCAB if model is TEXT else IMAGE.num_mixtures * (2 * 6 + 1)
    for function in (value, jax.value_and_grad(value)):
        asked = str(jax.make_jaxpr(function)(weights))
        first = re.search(rf"(f32|bf16)\[\d+,{width}\] = dot_general", asked)
        assert first and first[1] == "f32"


def test_inverse_frequency_weights():
    counts = jnp.array([90.0, 10.0, 0.0])
    weights = objectives.inverse_frequency_weights(counts, 0.5)
    assert weights[2] == 0
    np.testing.assert_allclose(weights[1] / weights[0], 3.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(weights * counts) / 100, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "shares", [{"causal_lm": 0.5, "masked_lm": 0.6}, {"causal_lm": -0.5, "masked_lm": 1.5}]
)
def test_shares_that_do_not_add_up(shares):
    with pytest.raises(UserError, match="add up to 1"):
        PretrainingObjective(**shares)


def test_a_bag_of_patches():
    with pytest.raises(UserError, match="bag_of_words is for text"):
        multitask.loss(params(IMAGE), images(), jax.random.key(0), IMAGE, BAG)
