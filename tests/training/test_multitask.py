"""Groups in one step: each as it is alone, with its own metrics, resumed bitwise."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from fm.data.batches import BatchesByGroup, batch_size_per_group, patch_batches, text_batches
from fm.errors import UserError
from fm.model import ModelConfig
from fm.training import (
    BitsPerByte,
    BitsPerDimension,
    MultitaskObjective,
    PerGroupUnits,
    PretrainingObjective,
    TrainConfig,
    multitask,
    objectives,
    params_digest,
    train,
    train_step,
)
from fm.training.progress import step_cost
from tests.training.helpers_models import ADAM, VOCAB, params
from tests.training.helpers_runs import PowerCut, log_records

BOTH = ModelConfig(
    num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, mlp_dim=16, vocab_size=VOCAB,
    position_axes=3, num_mixtures=2, patch_dims=(("image", 6),), attention="reference",
)  # fmt: skip
OBJECTIVE = MultitaskObjective(
    (
        ("text", PretrainingObjective(causal_lm=0.5, masked_lm=0.5)),
        ("image", PretrainingObjective(causal_lm=1.0, masked_lm=0.0)),
    )
)
UNIT = PerGroupUnits({"text": BitsPerByte(2.0), "image": BitsPerDimension()})
RUN = TrainConfig(steps=9, checkpoint_every=3, log_every=2, validate_every=6)


def batches(seed=0):
    pieces = [np.arange(start, start + 3 + start % 5) % VOCAB for start in range(40)]
    place = np.array(list(np.ndindex(2, 3)), np.int32)
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6)).astype(np.uint8)
    text = text_batches([[p.astype(np.int32) for p in pieces]], batch_size=4, length=8, seed=seed)
    image = patch_batches([images], place, batch_size=2, seed=seed, modality="image")
    return BatchesByGroup({"text": text, "image": image})


class Batches:
    """The batches, interrupted or spoilt at one of them."""

    def __init__(self, at=None, spoil=None):
        self._batches, self._taken, self._at, self._spoil = batches(), 0, at, spoil

    def __next__(self):
        self._taken += 1
        batch = next(self._batches)
        if self._taken != self._at:
            return batch
        if self._spoil is None:
            raise PowerCut
        return self._spoil(batch)

    def get_state(self):
        return {"batches": self._batches.get_state(), "taken": self._taken}

    def set_state(self, state):
        self._batches.set_state(state["batches"])
        self._taken = state["taken"]


def run(out, batch_iterator=None):
    return train(
        params(BOTH, zeros=True), batch_iterator or Batches(), BOTH, OBJECTIVE, ADAM, RUN,
        out_dir=out, metric_unit=UNIT, validation=[next(batches(1))], run_name="both",
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return run(out), log_records(out)


def test_the_loss_is_the_mean_of_the_groups_by_their_rows():
    batch, rng = next(batches()), jax.random.key(3)
    weights = params(BOTH)
    whole = jax.jit(multitask.loss, static_argnums=(3, 4))
    total, metrics = whole(weights, batch, rng, BOTH, OBJECTIVE)
    for n, (name, objective) in enumerate(OBJECTIVE.groups):
        key = jax.random.fold_in(rng, n)
        alone, figures = whole(weights, batch[name], key, BOTH, objective)
        np.testing.assert_allclose(metrics[f"{name}/loss"], alone, rtol=1e-6)
        for kind, figure in figures.items():
            np.testing.assert_allclose(metrics[f"{name}/{kind}"], figure, rtol=1e-6)
    want = (4 * metrics["text/loss"] + 2 * metrics["image/loss"]) / 6
    np.testing.assert_allclose(total, want, rtol=1e-6)


@pytest.mark.slow
def test_in_parts_it_is_the_whole():
    batch, rng = next(batches()), jax.random.key(3)
    whole, parts = (
        jax.jit(train_step.loss_and_gradient, static_argnums=(3, 4, 6))(
            params(BOTH), batch, rng, BOTH, OBJECTIVE, None, count
        )
        for count in (1, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, parts)


@pytest.mark.slow
def test_each_group_is_clipped_as_it_would_be_alone():
    batch, rng = next(batches()), jax.random.key(3)
    noisy = multitask.add_mask_noise(batch, rng, OBJECTIVE)
    start = params(BOTH)
    want, norms = jax.tree.map(np.zeros_like, start), {}
    for name, objective in OBJECTIVE.groups:

        def alone(p, name=name, objective=objective):
            rows = noisy[name]
            nats = objectives.loss_sums(p, rows, rows["noise"], BOTH, objective)
            counts = {kind: count for kind, (_, count) in nats.items()}
            return objectives.mean_loss(nats, counts, objective, rows)[0]

        gradient = jax.grad(alone)(start)
        norms[name] = float(optax.global_norm(gradient))
        share = {"text": 4 / 6, "image": 2 / 6}[name] * min(1.0, 0.1 / norms[name])
        want = jax.tree.map(lambda a, b, share=share: a + share * b, want, gradient)
    assert min(norms.values()) > 0.1
    objective = dataclasses.replace(OBJECTIVE, clip=0.1)
    metrics, got = train_step.loss_and_gradient(start, batch, rng, BOTH, objective, None, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
    for name, norm in norms.items():
        assert metrics[f"{name}/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_metrics_of_each_group(uninterrupted):
    result, records = uninterrupted
    first = records[0]
    assert {
        "text/causal_lm_nats",
        "text/masked_lm_nats",
        "image/causal_lm_nats",
        "text/loss",
    } <= first.keys()
    assert first["text/bits_per_byte"] == pytest.approx(
        first["text/causal_lm_nats"] / 2 / math.log(2)
    )
    assert first["image/bits_per_dimension"] == pytest.approx(
        8 + first["image/causal_lm_nats"] / math.log(2)
    )
    assert first["image/num_tokens"] == 12
    assert first["text/share"] + first["image/share"] == pytest.approx(1)
    assert first["image/share"] == 12 / (12 + first["text/num_tokens"])
    whole = math.hypot(first["grad_norm/tokens"], first["grad_norm/image"])
    assert 0 < whole < first["grad_norm"]
    assert result.curve["value"] == [r["loss"] for r in records if r["kind"] == "train"]
    assert len(result.curve["image/validation"]) == 2


def test_a_step_costs_what_its_groups_do():
    batch = next(batches())
    whole, alone = (
        step_cost(batch, BOTH, OBJECTIVE),
        [step_cost(batch[name], BOTH, objective) for name, objective in OBJECTIVE.groups],
    )
    assert whole.flops == sum(each.flops for each in alone)
    assert whole.tokens == sum(each.tokens for each in alone)
    assert whole.group_tokens == {"text/num_tokens": alone[0].tokens, "image/num_tokens": 12}


@pytest.mark.parametrize("at", [2, 8])
def test_resumed_is_uninterrupted(tmp_path, uninterrupted, at):
    with pytest.raises(PowerCut):
        run(tmp_path, Batches(at))
    result, want = run(tmp_path), uninterrupted[0]
    assert params_digest(result.params) == params_digest(want.params)
    assert result.curve == want.curve and log_records(tmp_path) == uninterrupted[1]


def test_the_group_that_diverges_is_named():
    def spoil(batch):
        return batch | {"text": batch["text"] | {"tokens": batch["text"]["tokens"] + 10**6}}

    with pytest.raises(UserError, match=r"loss nan .* \(of text\) at step 4") as caught:
        run(None, Batches(4, spoil))
    assert "image" not in str(caught.value)


def test_objectives_as_json():
    assert multitask.from_dict(multitask.to_dict(OBJECTIVE)) == OBJECTIVE
    assert multitask.from_dict(multitask.to_dict(PretrainingObjective())) == PretrainingObjective()
    with pytest.raises(UserError, match="distinct"):
        MultitaskObjective((("text", PretrainingObjective()), ("text", PretrainingObjective())))


def test_rows_follow_the_weights():
    assert batch_size_per_group({"text": 2, "image": 1, "audio": 1}, 16) == {
        "text": 8,
        "image": 4,
        "audio": 4,
    }
    assert batch_size_per_group({"text": 100, "image": 1}, 8) == {"text": 7, "image": 1}
    assert sum(batch_size_per_group({"a": 1, "b": 1, "c": 1}, 16).values()) == 16
    with pytest.raises(UserError, match="above 0"):
        batch_size_per_group({"text": 0, "image": 1}, 8)
    with pytest.raises(UserError, match="batch_size=1"):
        batch_size_per_group({"text": 1, "image": 1}, 1)
