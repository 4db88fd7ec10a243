"""Choosing tokens, against plain numpy with sorts, and what each filter promises of any logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.errors import UserError
from fm.model import sampling
from fm.model.sampling import SamplingConfig

V = 300
NONE_SEEN, NONE_SUPPRESSED = jnp.zeros((1, V), bool), jnp.zeros(V, bool)

filtered = jax.jit(sampling.unnormalized_filtered_probs)
pick = jax.jit(sampling.inverse_cdf_sample)
draw = jax.jit(sampling.sample_tokens)


def logits(seed, B=3, spread=3.0):
    return np.random.default_rng(seed).normal(size=(B, V), scale=spread).astype(np.float32)


def plain(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after the filters one after another, each on what is left, in float64."""
    p = np.exp((row.astype(np.float64) - row.max()) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    # Dropped is what comes after the goal is reached.
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


def normalised(weights):
    weights = np.asarray(weights, np.float64)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 10 * V},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 1e-6},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 0.6, "top_k": 5, "top_p": 0.99},
    ],
    ids=str,
)
def test_filters_match_numpy(options):
    rows = logits(1)
    got = normalised(filtered(rows, SamplingConfig(**options).to_params()))
    want = np.stack([plain(row, **options) for row in rows])
    np.testing.assert_array_equal(got > 0, want > 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)


ROWS = st.lists(st.floats(-30, 30, width=32), min_size=V, max_size=V).map(
    lambda row: np.array([row], np.float32)
)
SEEDS = st.integers(0, 2**32 - 1).map(lambda seed: logits(seed, B=1))


@settings(max_examples=60)
@given(SEEDS | ROWS, st.floats(0.0625, 0.9375, width=32))
def test_top_p_keeps_the_smallest_set_that_reaches_p(row, p):
    sampling_params = SamplingConfig(top_p=p).to_params()
    kept = np.asarray(filtered(row, sampling_params))[0] > 0
    exact = normalised(np.exp(row.astype(np.float64) - row.max()))[0]
    assert exact[kept].sum() >= p - 1e-5
    # Without those that tie at the threshold it would not reach.
    least = exact[kept].min()
    assert exact[exact > least * (1 + 1e-6)].sum() < p + 1e-5
    assert np.all(exact[~kept] <= least * (1 + 1e-6))


@settings(max_examples=60)
@given(SEEDS | ROWS, st.integers(1, V), st.floats(0.125, 5.0, width=32))
def test_top_k_keeps_k_or_those_that_tie(row, k, temperature):
    sampling_params = SamplingConfig(temperature=temperature, top_k=k).to_params()
    weights = np.asarray(filtered(row, sampling_params._replace(top_k=jnp.int32(0))))[0]
    kept = np.asarray(filtered(row, sampling_params))[0] > 0
    least = np.sort(weights)[-k]
    np.testing.assert_array_equal(kept, (weights >= least) & (weights > 0))


@settings(max_examples=60)
@given(SEEDS | ROWS, st.floats(0, 1, width=32))
def test_min_p_is_a_share_of_the_likeliest(row, share):
    kept = np.asarray(filtered(row, SamplingConfig(min_p=share).to_params()))[0] > 0
    ratio = np.exp(row[0].astype(np.float64) - row.max())
    assert kept[np.argmax(row[0])]
    assert np.all(ratio[kept] >= share * (1 - 1e-5)) and np.all(
        ratio[~kept] < max(share * (1 + 1e-5), 1e-37)
    )


@settings(max_examples=60)
@given(SEEDS | ROWS, st.floats(0, 1, exclude_max=True, width=32), st.integers(1, V))
def test_a_pick_inverts_the_cumulative_distribution(row, uniform, alive):
    weights = np.exp(row - row.max())
    weights[0, np.argsort(-weights[0])[alive:]] = 0
    got = int(pick(weights, jnp.array([uniform], jnp.float32))[0])
    assert weights[0, got] > 0
    sums = np.cumsum(weights[0].astype(np.float64)) / weights.sum(dtype=np.float64)
    before = sums[got - 1] if got else 0.0
    assert before - 1e-5 <= uniform <= sums[got] + 1e-5


def test_sample_frequencies_match_the_probabilities():
    row, count = logits(3, B=1), 4000
    decoding = SamplingConfig(temperature=0.8, top_p=0.9)
    rows = np.repeat(row, count, axis=0)
    keys = sampling.row_keys(jnp.arange(count))
    got = draw(
        rows,
        decoding.to_params(),
        keys,
        jnp.full(count, 5),
        seen_BV=jnp.zeros((count, V), bool),
        suppress_V=NONE_SUPPRESSED,
    )
    want = plain(row[0], temperature=0.8, top_p=0.9)
    found = np.bincount(np.asarray(got), minlength=V) / count
    assert np.all(found[want == 0] == 0)
    error = np.abs(found - want) / np.sqrt(np.maximum(want * (1 - want), 1e-9) / count + 1e-12)
    assert np.max(error[want > 0.005]) < 4.5


def one(row, decoding, *, seed=0, at=0, seen=NONE_SEEN, suppressed=NONE_SUPPRESSED):
    keys = sampling.row_keys(jnp.array([seed]))
    got = draw(
        row, decoding.to_params(), keys, jnp.array([at]), seen_BV=seen, suppress_V=suppressed
    )
    return int(got[0])


def test_a_row_does_not_depend_on_its_neighbours():
    rows, decoding = logits(4, B=5), SamplingConfig(temperature=1.5)
    seeds, at = jnp.array([7, 8, 7, 9, 10]), jnp.array([3, 4, 5, 6, 7])
    seen = jnp.zeros((5, V), bool)
    together = draw(
        rows,
        decoding.to_params(),
        sampling.row_keys(seeds),
        at,
        seen_BV=seen,
        suppress_V=NONE_SUPPRESSED,
    )
    alone = [one(rows[b : b + 1], decoding, seed=int(seeds[b]), at=int(at[b])) for b in range(5)]
    assert together.tolist() == alone
    drawn = {one(rows[:1], decoding, seed=seed) for seed in range(20)}
    assert len(drawn) > 5
    assert len({one(rows[:1], decoding, at=at) for at in range(20)}) > 5


def test_temperature_zero_takes_the_first_of_the_likeliest():
    row = logits(5, B=1)
    row[0, [17, 40]] = row.max() + 1
    greedy = SamplingConfig(temperature=0.0, top_k=3, top_p=0.1)
    assert {one(row, greedy, seed=seed) for seed in range(5)} == {17}
    suppressed = NONE_SUPPRESSED.at[17].set(True)
    assert one(row, greedy, suppressed=suppressed) == 40


def test_suppressed_tokens_are_never_sampled():
    row = logits(6, B=1)
    allowed = [5, 290]
    suppressed = jnp.ones(V, bool).at[jnp.array(allowed)].set(False)
    decoding = SamplingConfig(temperature=50.0)
    assert {one(row, decoding, seed=seed, suppressed=suppressed) for seed in range(40)} == set(
        allowed
    )


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_the_penalty_moves_seen_tokens_alone_and_towards_less_likely_above_one(penalty):
    row = logits(7, B=1)
    seen = np.random.default_rng(0).random((1, V)) < 0.3
    got = np.asarray(sampling.apply_repetition_penalty(row, seen, jnp.float32(penalty)))
    want = np.where(seen, np.where(row > 0, row / penalty, row * penalty), row)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.all((got < row)[seen] == (penalty > 1))


def test_the_penalty_changes_the_sample():
    row = np.full((1, V), -5.0, np.float32)
    row[0, 3], row[0, 4] = 2.0, 1.5
    greedy = SamplingConfig(temperature=0.0, repetition_penalty=2.0)
    assert one(row, greedy) == 3
    assert one(row, greedy, seen=NONE_SEEN.at[0, 3].set(True)) == 4


def test_one_program_serves_all_settings():
    traced = []

    @jax.jit
    def count(row, sampling_params):
        traced.append(None)
        return sampling.unnormalized_filtered_probs(row, sampling_params)

    for options in ({"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.2, "temperature": 2}):
        count(logits(0), SamplingConfig(**options).to_params())
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "at least 0"),
        ("temperature", float("inf"), "at least 0"),
        ("top_k", -1, "whole number"),
        ("top_k", 2.5, "whole number"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 1.1, "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("repetition_penalty", float("inf"), "above 0"),
    ],
)
def test_invalid_arguments_are_refused(name, value, accepted):
    with pytest.raises(UserError, match=f"{name}=.* must be .*{accepted}"):
        SamplingConfig(**{name: value})


def test_a_decoding_is_named_by_what_differs_from_plain_sampling():
    assert SamplingConfig().name == "T 1"
    assert SamplingConfig(temperature=0.7, min_p=0.1).name == "T 0.7, min-p 0.1"
    assert SamplingConfig(top_k=5, top_p=0.9).name == "top-k 5, top-p 0.9"
    assert (
        SamplingConfig(temperature=0.5).temperature_only
        and not SamplingConfig(top_p=0.9).temperature_only
    )
