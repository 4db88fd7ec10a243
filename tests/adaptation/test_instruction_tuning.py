import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation import instruction_tuning
from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.instruction_tuning import (
    InstructionEncoder,
    InstructionPhrasings,
    answer_cross_entropy_sums,
    continuous_segments,
    instruction_tune,
    pack_examples,
    prefix_lengths,
    rows_per_group,
)
from fm.attention import Mask
from fm.data import tokenizer as tokenizers
from fm.errors import UserError
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.transformer import forward, init
from fm.training import objectives

SHAPE = InstructionPhrasings(
    "colour", ("which colour?", "say the colour", "name it"), ("red", "blue")
)
CONFIG = FinetuneConfig(learning_rate=1e-2, min_steps=150, batch_size=16)
SIZES = {"num_layers": 1, "d_model": 16, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 32}


@pytest.fixture(scope="module")
def tokenizer():
    words = "which colour say the colour name it red blue first last word answer: none one two "
    return tokenizers.train([words * 3], 320)


@pytest.fixture(scope="module")
def text(tokenizer):
    return InstructionEncoder(tokenizer, ModelConfig(**SIZES, vocab_size=tokenizer.vocab_size), 32)


@pytest.fixture(scope="module")
def mixed(tokenizer):
    model = ModelConfig(
        **SIZES, vocab_size=tokenizer.vocab_size, patch_dims=(("image", 3),), position_axes=3
    )
    return InstructionEncoder(tokenizer, model, 32)


def weights(model):
    """Not those of a fresh model, whose layers and heads begin as zeros."""
    leaves, tree = jax.tree.flatten(init(jax.random.key(0), model))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def pictures(count, seed=0):
    """Four pieces each, dark (0) or bright (1)."""
    labels = np.random.default_rng(seed).integers(0, 2, count)
    pieces = (60 + 130 * labels[:, None, None]) * np.ones((count, 4, 3))
    places = np.array(list(np.ndindex(2, 2)), np.int32)
    return continuous_segments("image", pieces.astype(np.uint8), places), labels


def test_an_example_is_instruction_input_answer(text, tokenizer):
    (row,) = text.encode_examples(["say it"], ["the word"], ["red"])
    assert tokenizer.decode(row["tokens"]) == "say it\nthe word\nanswer: red"
    assert (row["tokens"][0], row["tokens"][-1]) == (tokenizer.bos, tokenizer.eos)
    answered = row["tokens"][row["answer"]]
    assert answered.tolist() == text.encode_answers(["red"])[0].tolist()
    assert row["positions"][:, 0].tolist() == list(range(len(row["tokens"])))


def test_an_input_of_another_format(mixed, tokenizer):
    (row,) = mixed.encode_examples(["say"], pictures(1)[0], ["red"])
    at = len(tokenizer.encode(["say"])[0]) + 1
    image = row["modality"] == 1
    assert image.tolist() == [at <= place < at + 5 for place in range(len(image))]
    # A start piece, then the picture's rows and columns from where it begins.
    assert row["positions"][image].tolist()[1:] == [
        [at + 1, at + 1, at + 1], [at + 1, at + 1, at + 2],
        [at + 1, at + 2, at + 1], [at + 1, at + 2, at + 2],
    ]  # fmt: skip
    # What follows begins at one past the largest coordinate.
    assert row["positions"][at + 5].tolist() == [at + 3] * 3
    assert not row["answer"][image].any()


def test_a_long_text_is_cut_and_nothing_else(text, tokenizer):
    short, long = (
        text.encode_examples(["say it"], ["the word " * 40], ["red"], reserved_tokens=room)[0]
        for room in (0, 12)
    )
    assert len(short["tokens"]) == 32
    assert tokenizer.decode(long["tokens"]).startswith("say it\nthe word")
    assert tokenizer.decode(long["tokens"]).endswith("\nanswer: red")
    assert len(long["tokens"]) == 20 + len(text.encode_answers(["red"])[0])
    with pytest.raises(UserError, match="32 tokens leave 0 for the input"):
        text.encode_examples(["say it " * 20], ["the word"], ["red"])


def test_rows_hold_examples_apart(text, mixed):
    examples = text.encode_examples(
        ["say it"] * 3, ["one", "two", "one two"], ["red", "blue", "red"]
    )
    packed = pack_examples(examples, text.model_config, 64, share_rows=True)
    assert len(packed["tokens"]) < 3 and "modality" not in packed
    assert packed["positions"].shape == packed["tokens"].shape
    single = pack_examples(examples, text.model_config, 32, share_rows=False)
    assert len(single["tokens"]) == 3 and set(np.unique(single["segments"])) == {0, 1}
    ends = prefix_lengths(single)
    for n in range(3):
        assert single["answer"][n].nonzero()[0][0] == ends[n]
    images, _ = pictures(2)
    rows = mixed.encode_examples(["say"] * 2, images, ["red", "blue"])
    both = pack_examples(rows, mixed.model_config, 40, share_rows=False)
    assert both["image"].shape == (2, 40, 3) and both["positions"].shape == (2, 40, 3)


def test_wordings():
    assert SHAPE.held_out_phrasing == "name it" and set(SHAPE.sample_phrasings(50, seed=0)) == set(
        SHAPE.train_phrasings
    )
    assert (
        SHAPE.sample_phrasings(9, seed=1)
        == SHAPE.sample_phrasings(9, seed=1)
        != SHAPE.sample_phrasings(9, seed=2)
    )
    for wordings, answers in ((("a",), None), (("a", "a"), None), (("a", "b"), ("x", " "))):
        with pytest.raises(UserError, match=r"'t' takes two (phrasings|answers) or more"):
            InstructionPhrasings("t", wordings, answers)


def test_groups_share_a_step_by_the_root_of_their_size():
    assert rows_per_group({"text": 800, "image": 200, "audio": 200, "video": 200}, 25) == dict(
        text=10, image=5, audio=5, video=5
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_loss_is_that_of_the_answers(mixed, bidirectional):
    images, _ = pictures(3)
    examples = mixed.encode_examples(
        ["say", "", "which colour?"], images, ["red", "blue", "one two"]
    )
    batch = pack_examples(examples, mixed.model_config, 32, share_rows=not bidirectional)
    if bidirectional:
        batch |= {"prefix": prefix_lengths(batch)}
    params = weights(mixed.model_config)

    alone = [pack_examples([each], mixed.model_config, 32, share_rows=False) for each in examples]
    if bidirectional:
        alone = [each | {"prefix": prefix_lengths(each)} for each in alone]

    @jax.jit
    @jax.value_and_grad
    def expected(params):
        # Each answer counts as one, whatever its length.
        parts = [objectives.causal_lm_sums(params, each, mixed.model_config) for each in alone]
        return sum(nats / count for nats, count in parts) / len(parts)

    most = int(batch["answer"].sum(axis=1).max())

    @jax.jit
    @jax.value_and_grad
    def mean(params):
        total, count = answer_cross_entropy_sums(params, batch, mixed.model_config, most)
        return total / count

    found = mean(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5),
        found,
        expected(params),
    )


def by_hand(params, encoder, phrasing, given, candidate):
    """Log probability of an answer, one example alone, all in one pass."""
    (row,) = encoder.encode_examples([phrasing], [given], [candidate])
    length = len(row["answer"])
    batch = pack_examples([row], encoder.model_config, length, share_rows=False)
    final = forward(params, batch, encoder.model_config, mask=Mask(causal=True))["final"]
    logits = embeddings.token_logits(params["streams"], final[0], encoder.model_config)
    nats = jax.nn.log_softmax(logits)
    places = np.flatnonzero(row["answer"])
    return float(sum(nats[place - 1, row["tokens"][place]] for place in places))


@pytest.mark.slow
def test_follows_instructions_in_two_formats(tokenizer, mixed):
    """One model: the colour of a picture, the first or the last word of a text, as asked."""
    model = dataclasses.replace(mixed.model_config, num_layers=2, d_model=32, mlp_dim=64)
    mixed = InstructionEncoder(tokenizer, model, 32)
    images, labels = pictures(24)
    draws = np.random.default_rng(3).integers(0, 2, (24, 2))
    texts = [f"{' '.join(('one', 'two')[d] for d in own)}" for own in draws]
    colours = [SHAPE.answers[label] for label in labels]
    asked = ["first word", "last word"]
    examples = mixed.encode_examples(SHAPE.sample_phrasings(24, 0), images, colours)
    for place, wording in enumerate(asked):
        own = [text.split()[place] for text in texts]
        examples += mixed.encode_examples([wording] * 24, texts, own)
    made = {
        "image": pack_examples(examples[:24], mixed.model_config, 24, share_rows=True),
        "text": pack_examples(examples[24:], mixed.model_config, 40, share_rows=True),
    }
    start = init(jax.random.key(0), mixed.model_config)
    params = instruction_tune(
        start, made, mixed.model_config, CONFIG,
        seed=0, pad_to={name: len(each["tokens"]) for name, each in made.items()},
    )  # fmt: skip
    for name in ("image_head", "image_bias"):
        assert np.array_equal(params["streams"][name], start["streams"][name])

    images, labels = pictures(10, seed=1)
    scored = instruction_tuning.loglikelihood(
        params, mixed, ["which colour?"] * 10, images, SHAPE.answers
    )
    assert scored.shape == (10, 2) and scored.argmax(axis=1).tolist() == labels.tolist()
    for place, wording in enumerate(asked):
        own = [text.split()[place] for text in texts]
        assert (
            instruction_tuning.generate_until(
                params, mixed, [wording] * 24, texts, max_new_tokens=4
            )
            == own
        )


def test_scores_are_those_of_each_answer_alone(mixed):
    params = weights(mixed.model_config)
    images, _ = pictures(2)
    candidates = ["one two", "one red"]
    scored = instruction_tuning.loglikelihood(params, mixed, ["", "say"], images, candidates)
    for column, candidate in enumerate(candidates):
        expected = by_hand(params, mixed, "say", images[1], candidate)
        assert scored[1, column] == pytest.approx(expected, abs=2e-3)
    # Told apart by their first tokens: one pass, and what follows is not counted.
    first = instruction_tuning.loglikelihood(params, mixed, ["say"], images[1:], ["one two", "red"])
    assert first[0, 0] > scored[1, 0]
    assert first[0, 1] > by_hand(params, mixed, "say", images[1], "red")


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_writes_what_passes_over_the_whole_row_would(mixed, bidirectional):
    mixed = dataclasses.replace(
        mixed, model_config=dataclasses.replace(mixed.model_config, num_layers=2)
    )
    params, most, ending = weights(mixed.model_config), 5, mixed.tokenizer.eos
    inputs = [*pictures(2)[0], "one two", "red"]
    written = instruction_tuning.generate_until(
        params, mixed, ["say"] * 4, inputs, max_new_tokens=most, bidirectional_prefix=bidirectional
    )
    for given, found in zip(inputs, written, strict=True):
        (row,) = mixed.encode_questions(["say"], [given], reserved_tokens=most)
        asked = len(row["tokens"])
        batch = pack_examples([row], mixed.model_config, asked + most, share_rows=False)
        mask = Mask(True, prefix=np.array([asked]) if bidirectional else None)
        last = batch["positions"].max()
        for place in range(asked, asked + most):
            final = forward(params, batch, mixed.model_config, mask=mask)["final"]
            logits = embeddings.token_logits(params["streams"], final, mixed.model_config)
            batch["tokens"][0, place] = logits[0, place - 1].argmax()
            batch["positions"][0, place] = last + 1 + place - asked
        tokens = batch["tokens"][0, asked:]
        ends = np.flatnonzero(tokens == ending)
        expected = tokens[: ends[0]] if len(ends) else tokens
        assert found == mixed.tokenizer.decode(expected).strip()


def test_answers_that_are_the_same_tokens_are_refused(text):
    params = init(jax.random.key(0), text.model_config)
    with pytest.raises(UserError, match="cannot tell the answers red, red  apart"):
        instruction_tuning.loglikelihood(params, text, ["say"], ["one"], ["red", "red "])


@pytest.mark.slow
def test_reading_bidirectional_changes_what_is_read(tokenizer, text):
    # In a single layer what the last piece reads has not read anything itself.
    text = InstructionEncoder(tokenizer, dataclasses.replace(text.model_config, num_layers=2), 32)
    params = weights(text.model_config)
    one, two = (
        instruction_tuning.loglikelihood(
            params, text, ["say"], ["one two"], ["red", "blue"], bidirectional_prefix=both
        )
        for both in (False, True)
    )
    assert not np.allclose(one, two)
    written = instruction_tuning.generate_until(
        params, text, ["say"] * 2, ["one", "two"], max_new_tokens=3, bidirectional_prefix=True
    )
    assert len(written) == 2
    assert instruction_tuning.ANSWER_MARKER not in written[0]
