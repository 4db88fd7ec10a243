import dataclasses

import jax
import numpy as np
import pytest

from fm.data import tokenizer as tokenizers
from fm.errors import UserError
from fm.evaluation.entities import entity_f1
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.transfer import tagging
from fm.transfer.finetune import FinetuneConfig, finetune, logits, mean_nats, scores

NAMES = ("O", "B-per", "I-per", "B-loc", "I-loc")
CONFIG = FinetuneConfig(learning_rate=1e-2, steps=80, batch_size=8, reading=tagging.EACH)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(
        ["Mr Smith went to Rome City on and so we saw", "in at Mr to Mr to"], 300
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    return ModelConfig(
        depth=1, width=16, heads=2, kv_heads=2, hidden=32, vocab=tokenizer.vocab_size
    )


def sentences(count, seed=0):
    """Names after Mr, places after to: their kind depends on the word before alone."""
    random = np.random.default_rng(seed)
    words, tags = [], []
    for _ in range(count):
        kind = random.choice(["per", "loc"])
        lead = list(random.choice(["so", "we", "and"], random.integers(0, 3)))
        name = "".join(random.choice(list("abcde"), 3))
        words.append([*lead, {"per": "Mr", "loc": "to"}[kind], name, "City", "on"])
        tags.append(["O"] * (len(lead) + 1) + [f"B-{kind}", f"I-{kind}", "O"])
    return words, tags


def test_word_rows_are_the_tokens_of_running_text(tokenizer):
    words, _ = sentences(5)
    made = tagging.word_rows(tokenizer, [*words, ["don't", "@you", "'s", "é!?"]], 64)
    for n, own in enumerate([*words, ["don't", "@you", "'s", "é!?"]]):
        ids = made.rows["tokens"][n][made.rows["segments"][n] > 0]
        (whole,) = tokenizer.encode([" ".join(own)])
        assert ids.tolist() == [tokenizer.bos, *whole.tolist()]
        for w, word in enumerate(own):
            first = made.first[n, w]
            after = made.first[n, w + 1] if w + 1 < len(own) else len(ids)
            assert tokenizer.decode(ids[first:after]).strip() == word
    assert made.rows["tokens"].shape[1] % 16 == 0


def test_words_that_do_not_fit_are_cut(tokenizer):
    made = tagging.word_rows(tokenizer, [["Mr"] * 9, ["to"], []], 6)
    assert made.rows["tokens"].shape == (3, 6)
    assert (made.first[0] >= 0).sum() == 5 and made.words.tolist() == [9, 1, 0]
    labels = tagging.piece_labels(made, [["B-per"] * 9, ["O"], []], NAMES)
    assert labels.tolist() == [[-1, 1, 1, 1, 1, 1], [-1, 0, -1, -1, -1, -1], [-1] * 6]


def test_the_loss_is_the_mean_over_labelled_pieces(tokenizer, model):
    words, tags = sentences(8)
    made = tagging.word_rows(tokenizer, words, 32)
    labels = tagging.piece_labels(made, tags, NAMES)
    params = init(jax.random.key(0), model)
    head = {"kernel": np.ones((16, 5), np.float32) * np.arange(5), "bias": np.zeros(5, np.float32)}
    tuned = {"model": params, "head": head}
    by_piece = np.asarray(logits(tuned, made.rows, model, tagging.EACH))
    assert by_piece.shape == (*labels.shape, 5)
    found = scores(tuned, made.rows, model, reading=tagging.EACH, batch_size=3)
    np.testing.assert_allclose(found, by_piece, atol=1e-4)
    value, gradient = jax.value_and_grad(mean_nats)(by_piece, labels)
    chances = np.exp(by_piece.astype(np.float64))
    chances /= chances.sum(axis=-1, keepdims=True)
    right = np.arange(5) == labels[..., None]
    count = np.sum(labels >= 0)
    np.testing.assert_allclose(value, -np.log(chances[right]).sum() / count, rtol=1e-5)
    expected = (chances - right) * (labels >= 0)[..., None] / count
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.fixture(scope="module")
def tuned(tokenizer, model):
    words, tags = sentences(32)
    made = tagging.word_rows(tokenizer, words, 32)
    labels = tagging.piece_labels(made, tags, NAMES)
    start = init(jax.random.key(0), model)
    return finetune(
        start, made.rows, labels, model, CONFIG, classes=len(NAMES), seed=0, capacity=32
    )


def test_fine_tuning_finds_entities_never_seen(tokenizer, model, tuned):
    words, tags = sentences(40, seed=1)
    made = tagging.word_rows(tokenizer, [*words, []], 32)
    found = tagging.predict_tags(tuned, made, model, NAMES)
    assert found[-1] == [] and entity_f1(tags, found[:-1]) > 0.95


def test_pieces_without_a_label_teach_nothing(tokenizer, model):
    words, tags = sentences(8)
    made = tagging.word_rows(tokenizer, words, 16)
    config = dataclasses.replace(CONFIG, steps=2)
    none = np.full(made.rows["tokens"].shape, -1, np.int32)
    start = init(jax.random.key(0), model)
    options = {"classes": len(NAMES), "seed": 0, "capacity": 8}
    bare = finetune(start, made.rows, none, model, config, **options)
    assert not np.any(bare["head"]["kernel"]) and not np.any(bare["head"]["bias"])
    labels = tagging.piece_labels(made, tags, NAMES)
    assert np.any(finetune(start, made.rows, labels, model, config, **options)["head"]["kernel"])


def test_a_probe_reads_words_at_every_depth(tokenizer, model, tuned):
    words, tags = sentences(60, seed=2)
    made = tagging.word_rows(tokenizer, words, 32)
    features = tagging.word_features(tuned["model"], made, model)
    assert [own.shape for own in features] == [(len(own), 3 * 16) for own in words]
    again = tagging.word_features(tuned["model"], made.take(np.array([7])), model)
    np.testing.assert_allclose(again[0], features[7], atol=1e-5)
    probe = tagging.fit_tag_probe(features[:30], tags[:30], {"l2": 1.0, "scale": "standardise"})
    assert entity_f1(tags[30:], probe.predict(features[30:])) > 0.9


def test_piece_dropout_is_refused():
    with pytest.raises(UserError, match="keep=3 must be 0"):
        dataclasses.replace(CONFIG, keep=3)
