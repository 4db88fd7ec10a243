"""Generation with a cache against the plain forward pass, run again for every token."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model import generate as continuation
from fm.model import kv_cache
from fm.model.generate import IncrementalGenerator, generate
from fm.model.sampling import GREEDY, SamplingConfig
from tests.model.helpers_archs import ARCHS, config
from tests.model.helpers_kv_cache import cached_logits, logits_of
from tests.model.helpers_models import params, run

OWN = config(num_layers=1)
PROMPTS = [[5, 9, 2, 40, 11], [3], [8, 8, 1], [90, 20, 33, 7, 7, 7, 7, 7, 12]]
CAUSAL = Mask(causal=True)


def plain_logits(weights, tokens, config):
    """float32 [L, V] of one row, each place given those before it, without any cache."""
    # Padded to one length, which causality does not let matter: one program for all.
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    inputs = {"tokens": padded, "positions": np.arange(64)[None]}
    final = run(weights, inputs, config, mask=CAUSAL)["final"]
    return np.array(logits_of(weights["streams"], final[0], config))[: len(tokens)]


def plain_greedy(weights, prompt, config, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(plain_logits(weights, tokens, config)[-1])))
    return tokens[len(prompt) :]


def quick(*fast, among=ARCHS):
    """Styles of which those not named take a program each that CI alone waits for."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in among]


@pytest.mark.parametrize("name", quick("own", "gpt2", "qwen3"))
def test_cached_logits_match_uncached_ones(name):
    model = ARCHS[name]
    weights = params(model)
    rng = np.random.default_rng(0)
    lengths = [5, 1, 9]
    rows = [rng.integers(0, model.vocab_size, length + 6) for length in lengths]
    got = cached_logits(weights, rows, lengths, model)
    for row, length, found in zip(rows, lengths, got, strict=True):
        want = plain_logits(weights, row, model)[length - 1 :]
        np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-4)


# 3: shorter than prompts; 11: longer than they are padded to, and filled; 14: all but one column.
@pytest.mark.parametrize("window", [1, 3, pytest.param(11, marks=pytest.mark.slow), 14])
def test_sliding_layers_keep_as_many_columns_as_their_window_has(window):
    arch = dataclasses.replace(
        ARCHS["llama"].arch, layer_pattern=("sliding", "full"), sliding_window=window
    )
    model = dataclasses.replace(ARCHS["llama"], arch=arch)
    weights = params(model)
    lengths = [5, 1, 9]
    rows = [np.random.default_rng(2).integers(0, model.vocab_size, n + 6) for n in lengths]
    for row, length, found in zip(
        rows, lengths, cached_logits(weights, rows, lengths, model), strict=True
    ):
        want = plain_logits(weights, row, model)[length - 1 :]
        np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-4)
    generation = IncrementalGenerator(weights, [[1] * 9], model, max_new_tokens=30)
    generation.next_tokens(1)
    cache = generation._state.cache
    assert [len(keys) for keys in cache.keys[:2]] == [window, 32 + 32]


@pytest.mark.parametrize("name", quick("own", among=["own", "gpt2", "qwen3"]))
def test_cached_bfloat16_logits_are_as_accurate_as_uncached_ones(name):
    model = ARCHS[name]
    half = dataclasses.replace(model, dtype="bfloat16")
    weights = params(model)
    lengths = [7, 3]
    rows = [np.random.default_rng(1).integers(0, model.vocab_size, n + 5) for n in lengths]
    got = cached_logits(weights, rows, lengths, half)
    for row, length, found in zip(rows, lengths, got, strict=True):
        exact = plain_logits(weights, row, model)[length - 1 :]
        error = np.sqrt(np.mean((found - exact) ** 2)) / np.std(exact)
        plain = plain_logits(weights, row, half)[length - 1 :]
        allowed = np.sqrt(np.mean((plain - exact) ** 2)) / np.std(exact)
        assert error < max(2 * allowed, 0.02)


@pytest.mark.parametrize(
    "name", quick("own", "gpt2", among=["own", "gpt2", "llama one key head, tied", "qwen3"])
)
def test_greedy_decoding_of_ragged_prompts_matches_uncached_decoding(name):
    model = ARCHS[name]
    weights = params(model)
    got = generate(weights, PROMPTS, model, sampling_config=GREEDY, max_new_tokens=12)
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert row.dtype == np.int32
        assert row.tolist() == plain_greedy(weights, prompt, model, 12)


@pytest.mark.slow
def test_parameters_in_bfloat16_generate_too():
    weights = params(OWN)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), half)
    options = {"sampling_config": GREEDY, "max_new_tokens": 6}
    got = generate(half, PROMPTS, OWN, **options)
    want = generate(rounded, PROMPTS, OWN, **options)
    assert [row.tolist() for row in got] == [row.tolist() for row in want]


def test_generation_in_parts_gives_the_same_text():
    weights = kv_cache.prepare_params(params(OWN), OWN)
    options = {
        "sampling_config": SamplingConfig(1.3, top_p=0.9),
        "max_new_tokens": 20,
        "seeds": [4, 5, 6, 7],
    }
    whole = generate(weights, PROMPTS, OWN, **options)
    generation = IncrementalGenerator(weights, PROMPTS, OWN, **options)
    parts = []
    while not generation.finished:
        parts.append(generation.next_tokens(3))
    assert len(parts) == 7 and generation.remaining == 0
    assert [np.concatenate(row).tolist() for row in zip(*parts, strict=True)] == [
        row.tolist() for row in whole
    ]
    assert [len(row) for row in whole] == [20] * 4
    assert all(len(row) == 0 for row in generation.next_tokens(3))


def test_a_row_depends_on_its_prompt_and_seed_only():
    weights = kv_cache.prepare_params(params(OWN), OWN)
    options = {"sampling_config": SamplingConfig(2.0), "max_new_tokens": 10}
    together = generate(weights, PROMPTS, OWN, seeds=[3, 1, 4, 1], **options)
    for prompt, seed, row in zip(PROMPTS, [3, 1, 4, 1], together, strict=True):
        (alone,) = generate(weights, [prompt], OWN, seeds=[seed], **options)
        assert row.tolist() == alone.tolist()
    same = generate(weights, [PROMPTS[0]] * 3, OWN, seeds=[9, 9, 10], **options)
    assert same[0].tolist() == same[1].tolist() != same[2].tolist()


def test_rows_end_at_stop_tokens():
    weights = params(OWN)
    free = generate(weights, PROMPTS, OWN, sampling_config=GREEDY, max_new_tokens=12)
    ends = [int(free[0][4]), int(free[3][0])]
    got = generate(
        weights, PROMPTS, OWN, sampling_config=GREEDY, max_new_tokens=12, stop_token_ids=ends
    )
    for row, whole in zip(got, free, strict=True):
        cut = next((i for i, token in enumerate(whole) if token in ends), len(whole))
        assert row.tolist() == whole[:cut].tolist()
    assert len(got[3]) == 0 and 0 < len(got[0]) <= 4


def test_the_token_that_ended_a_row_is_returned_if_asked_for():
    weights = params(OWN)
    options = {"sampling_config": GREEDY, "max_new_tokens": 12}
    free = generate(weights, PROMPTS, OWN, **options)
    options["stop_token_ids"] = [int(free[0][4]), int(free[3][0])]
    without = generate(weights, PROMPTS, OWN, **options)
    got = generate(weights, PROMPTS, OWN, **options, return_stop_tokens=True)
    for row, cut, whole in zip(got, without, free, strict=True):
        assert row.tolist() == whole[: min(len(cut) + 1, 12)].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tokens", [1, 6])
def test_logits_that_are_not_finite_are_told(value, temperature, tokens):
    """At the first token from a parameter, later from a value in the cache of the second row."""
    weights = params(OWN)
    if tokens == 1:
        weights["layers"]["down"][0, 3, 3] = value
    generation = IncrementalGenerator(
        weights, PROMPTS[:2], OWN, sampling_config=SamplingConfig(temperature), max_new_tokens=8
    )
    if tokens > 1:
        generation.next_tokens(tokens - 1)
        cache = generation._state.cache
        cache = cache._replace(values=tuple(leaf.at[1].set(value) for leaf in cache.values))
        generation._state = generation._state._replace(cache=cache)
    row = int(tokens > 1)
    length = len(PROMPTS[row])
    after = f"after {length + tokens - 1} tokens, {length} of them the prompt's"
    with pytest.raises(UserError, match=rf"not finite {after} \(text {row + 1} of 2\)") as raised:
        generation.next_tokens(8)
    assert "\n" not in str(raised.value)


def test_decoding_stops_once_all_rows_have_ended():
    weights = params(OWN)
    (free,) = generate(weights, [PROMPTS[0]], OWN, sampling_config=GREEDY, max_new_tokens=12)
    generation = IncrementalGenerator(
        weights,
        [PROMPTS[0]],
        OWN,
        sampling_config=GREEDY,
        max_new_tokens=40,
        stop_token_ids=[int(free[2])],
    )
    generation.next_tokens(40)
    assert generation.finished
    # The column where the loop stood still: prompt, rounded up, and the tokens read so far.
    cut = free.tolist().index(free[2])
    assert int(generation._state.cache_index) == 32 + cut


def test_stopped_rows_get_no_more_tokens():
    generation = IncrementalGenerator(
        params(OWN), PROMPTS, OWN, sampling_config=GREEDY, max_new_tokens=9
    )
    first = generation.next_tokens(3)
    generation.stop_rows([0, 2])
    second = generation.next_tokens(3)
    assert [len(row) for row in first] == [3] * 4
    assert [len(row) for row in second] == [0, 3, 0, 3]
    generation.stop_rows([1, 3])
    assert generation.finished


def test_suppressed_tokens_and_repetition_penalty_of_prompts():
    weights = params(OWN)
    (free,) = generate(weights, [PROMPTS[0]], OWN, sampling_config=GREEDY, max_new_tokens=8)
    (suppressed,) = generate(
        weights,
        [PROMPTS[0]],
        OWN,
        sampling_config=GREEDY,
        max_new_tokens=8,
        suppress_tokens=[int(free[0])],
    )
    assert free[0] not in suppressed
    harsh = SamplingConfig(0.0, repetition_penalty=1e6)
    (fresh,) = generate(weights, [PROMPTS[0]], OWN, sampling_config=harsh, max_new_tokens=8)
    # Every token that was there, of the prompt too, has a logit next to zero or far below it.
    tokens = list(PROMPTS[0])
    for token in fresh:
        logits = plain_logits(weights, tokens, OWN)[-1]
        logits[tokens] = np.where(logits[tokens] > 0, logits[tokens] / 1e6, logits[tokens] * 1e6)
        assert token == np.argmax(logits)
        tokens.append(int(token))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("own", 3), ("llama", 1)])
def test_a_decode_step_does_not_copy_the_cache(name, rows):
    """In the compiled loop nothing is as large as a cache but what is written in place."""
    model = dataclasses.replace(ARCHS[name], max_seq_len=2048)
    generation = IncrementalGenerator(
        kv_cache.prepare_params(params(model), model),
        [[1] * 1000] * rows,
        model,
        sampling_config=GREEDY,
        max_new_tokens=8,
    )
    generation.next_tokens(2)
    compiled = continuation.decode.lower(
        generation._params,
        generation._state,
        generation._decode_params,
        model,
        num_tokens=jnp.int32(4),
        buffer_size=32,
    ).compile()
    columns = generation._state.cache.valid_masks["full"].shape[1]
    assert columns == 1024 + 32
    size = rf"\[({rows},)?{columns},[\d,]*\d+\]\S*"
    made = [found[1] for found in re.findall(rf"= \w+{size} ([\w-]+)\(", compiled.as_text())]
    kinds = {"parameter", "get-tuple-element", "bitcast", "fusion", "dynamic-update-slice"}
    assert made.count("fusion") >= 2 * model.num_layers and set(made) <= kinds, set(made) - kinds
    # A fusion of that size is a write in place: there are as many as arrays in the cache.
    assert made.count("fusion") == 2 * model.num_layers
    scratch = compiled.memory_analysis().temp_size_in_bytes
    assert scratch < rows * columns * model.num_kv_heads * model.head_dim * 4


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one token"),
        ([[1], []], {}, "at least one token"),
        ([[1] * 60], {"max_new_tokens": 5}, "60 tokens plus max_new_tokens=5 .* max_seq_len of 64"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([[97]], {}, "outside the vocabulary of 97"),
        ([[-1]], {}, "outside the vocabulary of 97"),
        ([[1]], {"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ([[1]], {"suppress_tokens": range(97)}, "whole vocabulary"),
    ],
)
def test_invalid_arguments_are_refused(prompts, options, message):
    with pytest.raises(UserError, match=message):
        generate(params(OWN), prompts, OWN, **({"max_new_tokens": 4} | options))


def test_the_whole_max_seq_len_can_be_used():
    weights = params(OWN)
    (row,) = generate(weights, [[1] * 60], OWN, sampling_config=GREEDY, max_new_tokens=4)
    assert row.tolist() == plain_greedy(weights, [1] * 60, OWN, 4)


def test_models_that_cannot_generate_are_refused():
    bert = config(arch=dataclasses.replace(ARCHS["gpt2"].arch, post_norm=True), num_kv_heads=4)
    with pytest.raises(UserError, match="cannot generate"):
        generate(params(bert), [[1]], bert, max_new_tokens=1)
    blind = config(vocab_size=0, patch_dims=(("image", 12),))
    with pytest.raises(UserError, match="without a vocabulary"):
        generate({}, [[1]], blind, max_new_tokens=1)
