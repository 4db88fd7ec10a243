import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation import token_classification
from fm.adaptation.finetune import (
    FinetuneConfig,
    finetune,
    logits,
    mean_cross_entropy,
    predict_logits,
)
from fm.data import tokenizer as tokenizers
from fm.errors import UserError
from fm.evaluation.ner import count_matches, entity_f1, entity_spans
from fm.model.config import ModelConfig
from fm.model.transformer import init

NAMES = ("O", "B-per", "I-per", "B-loc", "I-loc")
CONFIG = FinetuneConfig(
    learning_rate=1e-2, min_steps=80, batch_size=8, feature_config=token_classification.PER_TOKEN
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(
        ["Mr Smith went to Rome City on and so we saw", "in at Mr to Mr to"], 300
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    return ModelConfig(
        num_layers=1,
        d_model=16,
        num_heads=2,
        num_kv_heads=2,
        mlp_dim=32,
        vocab_size=tokenizer.vocab_size,
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
    made = token_classification.tokenize_words(
        tokenizer, [*words, ["don't", "@you", "'s", "é!?"]], 64
    )
    for n, own in enumerate([*words, ["don't", "@you", "'s", "é!?"]]):
        ids = made.examples["tokens"][n][made.examples["segments"][n] > 0]
        (whole,) = tokenizer.encode([" ".join(own)])
        assert ids.tolist() == [tokenizer.bos, *whole.tolist()]
        for w, word in enumerate(own):
            first = made.first_token[n, w]
            after = made.first_token[n, w + 1] if w + 1 < len(own) else len(ids)
            assert tokenizer.decode(ids[first:after]).strip() == word
    assert made.examples["tokens"].shape[1] % 16 == 0


def test_words_that_do_not_fit_are_cut(tokenizer):
    made = token_classification.tokenize_words(tokenizer, [["Mr"] * 9, ["to"], []], 6)
    assert made.examples["tokens"].shape == (3, 6)
    assert (made.first_token[0] >= 0).sum() == 5 and made.num_words.tolist() == [9, 1, 0]
    labels = token_classification.token_labels(made, [["B-per"] * 9, ["O"], []], NAMES)
    assert labels.tolist() == [[-1, 1, 1, 1, 1, 1], [-1, 0, -1, -1, -1, -1], [-1] * 6]


def test_the_loss_is_the_mean_over_labelled_pieces(tokenizer, model):
    words, tags = sentences(8)
    made = token_classification.tokenize_words(tokenizer, words, 32)
    labels = token_classification.token_labels(made, tags, NAMES)
    params = init(jax.random.key(0), model)
    head = {"kernel": np.ones((16, 5), np.float32) * np.arange(5), "bias": np.zeros(5, np.float32)}
    tuned = {"model": params, "head": head}
    by_piece = np.asarray(logits(tuned, made.examples, model, token_classification.PER_TOKEN))
    assert by_piece.shape == (*labels.shape, 5)
    found = predict_logits(
        tuned, made.examples, model, feature_config=token_classification.PER_TOKEN, batch_size=3
    )
    np.testing.assert_allclose(found, by_piece, atol=1e-4)
    value, gradient = jax.value_and_grad(mean_cross_entropy)(by_piece, labels)
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
    made = token_classification.tokenize_words(tokenizer, words, 32)
    labels = token_classification.token_labels(made, tags, NAMES)
    start = init(jax.random.key(0), model)
    return finetune(
        start, made.examples, labels, model, CONFIG, num_classes=len(NAMES), seed=0, pad_to=32
    )


def test_fine_tuning_finds_entities_never_seen(tokenizer, model, tuned):
    words, tags = sentences(40, seed=1)
    made = token_classification.tokenize_words(tokenizer, [*words, []], 32)
    found = token_classification.predict_tags(tuned, made, model, NAMES)
    assert found[-1] == [] and entity_f1(tags, found[:-1]) > 0.95


def test_pieces_without_a_label_teach_nothing(tokenizer, model):
    words, tags = sentences(8)
    made = token_classification.tokenize_words(tokenizer, words, 16)
    config = dataclasses.replace(CONFIG, min_steps=2)
    none = np.full(made.examples["tokens"].shape, -1, np.int32)
    start = init(jax.random.key(0), model)
    options = {"num_classes": len(NAMES), "seed": 0, "pad_to": 8}
    bare = finetune(start, made.examples, none, model, config, **options)
    assert not np.any(bare["head"]["kernel"]) and not np.any(bare["head"]["bias"])
    labels = token_classification.token_labels(made, tags, NAMES)
    assert np.any(
        finetune(start, made.examples, labels, model, config, **options)["head"]["kernel"]
    )


def test_a_probe_reads_words_at_every_depth(tokenizer, model, tuned):
    words, tags = sentences(60, seed=2)
    made = token_classification.tokenize_words(tokenizer, words, 32)
    features = token_classification.word_features(tuned["model"], made, model)
    assert [own.shape for own in features] == [(len(own), 3 * 16) for own in words]
    again = token_classification.word_features(tuned["model"], made.take(np.array([7])), model)
    np.testing.assert_allclose(again[0], features[7], atol=1e-5)
    probe = token_classification.fit_tag_probe(
        features[:30], tags[:30], {"l2": 1.0, "scale": "standardise"}
    )
    assert entity_f1(tags[30:], probe.predict(features[30:])) > 0.9


def test_piece_dropout_is_refused():
    with pytest.raises(UserError, match="tokens_kept=3 must be 0"):
        dataclasses.replace(CONFIG, tokens_kept=3)


WORDS = ["Anna", "Lee", "met", "anna", "in", "New", "York", ";", "Anna", "Lee", "left", "York"]
TAGS = [
    *["B-person", "I-person", "O", "B-person", "O", "B-geo-loc", "I-geo-loc", "O"],
    *["B-person", "I-person", "O", "B-geo-loc"],
]
KINDS = ("person", "geo-loc")


def entities(words, tags):
    """Type and normalized surface form of every entity."""
    (spans,) = entity_spans([tags])
    return {
        (kind, token_classification.normalize_surface(words[first:end]))
        for kind, first, end in spans
    }


def test_an_answer_and_back():
    answer = token_classification.format_entities(WORDS, TAGS)
    assert answer == "person: Anna Lee; person: anna; geo-loc: New York; geo-loc: York"
    found = token_classification.parse_entities(answer, KINDS)
    assert found == entities(WORDS, TAGS) and len(found) == 4
    assert token_classification.entities_to_tags(WORDS, found) == TAGS
    assert token_classification.locate_entities(WORDS, found) == entity_spans([TAGS])[0]


def test_none():
    assert (
        token_classification.format_entities(["so"], ["O"])
        == "none"
        == token_classification.format_entities([], [])
    )
    assert (
        token_classification.parse_entities("none", KINDS)
        == set()
        == token_classification.parse_entities("", KINDS)
    )


@pytest.mark.parametrize(
    "answer",
    [
        " PERSON:Anna  lee;geo-loc : new york;",
        "person: Anna Lee\ngeo-loc: New York\n",
        "person: Anna Lee; film: Up; person:; nonsense; geo-loc: New York; person: anna lee",
    ],
)
def test_reading_is_lenient(answer):
    assert token_classification.parse_entities(answer, KINDS) == {
        ("person", "anna lee"),
        ("geo-loc", "new york"),
    }


def test_forms_with_the_marks_of_an_answer_come_back():
    words, tags = ["a;b", "Star", "Wars:", "IV"], ["B-geo-loc", "B-person", "I-person", "I-person"]
    found = token_classification.parse_entities(
        token_classification.format_entities(words, tags), KINDS
    )
    assert found == entities(words, tags)
    assert token_classification.entities_to_tags(words, found) == tags


def test_f1_by_surface_form():
    gold = [entities(WORDS, TAGS), set()]
    predicted = [
        token_classification.parse_entities("person: Anna Lee; person: York", KINDS),
        set(),
    ]
    found = count_matches(gold, predicted)
    assert (found.correct[0], found.predicted[0], found.gold[0]) == (1, 2, 4)
    assert found.f1() == pytest.approx(2 / 6)


def test_an_entity_that_is_not_there_has_no_place():
    assert token_classification.entities_to_tags(["so", "it"], {("person", "anna")}) == ["O", "O"]
