"""Features of texts: the counts are scikit-learn's, and a fit looks at its own texts alone."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from fm.evaluation.baselines import Examples, FeatureStore, members_of
from fm.evaluation.baselines.classifiers import Fold, Logistic
from fm.evaluation.baselines.text import CHARACTERS, LSA, WORDS, WORDS_AND_CHARACTERS

WORD_LIST = np.array([f"word{i}" for i in range(300)])


def documents(count=90, seed=0):
    """Texts of made-up words, some of which lean to one of three labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    lean = np.zeros((3, 300))
    lean[np.arange(3).repeat(20), np.arange(60)] = 1.5
    chances = np.exp(lean - 0.01 * np.arange(300))
    texts = [
        " ".join(random.choice(WORD_LIST, 60, p=chances[label] / chances[label].sum()))
        for label in labels
    ]
    return texts, labels


@pytest.mark.parametrize(
    ("features", "options"),
    [
        (WORDS, {"ngram_range": (1, 2)}),
        (CHARACTERS, {"ngram_range": (2, 5), "analyzer": "char_wb"}),
    ],
    ids=["words", "characters"],
)
def test_tfidf_is_scikit_learns_over_the_labeled_texts(features, options):
    texts, _ = documents()
    texts[50] += " Ünïcode  and\ttabs, WORD5 unseen"
    fit = FeatureStore(Examples(texts)).fit(features, np.arange(40))
    theirs = TfidfVectorizer(sublinear_tf=True, **options).fit(texts[:40])
    ours, expected = fit(np.arange(90)), theirs.transform(texts)
    # Columns are in another order, and a few words share one.
    assert abs(ours.shape[1] - expected.shape[1]) < 0.01 * expected.shape[1]
    np.testing.assert_allclose(
        (ours @ ours.T).toarray(), (expected @ expected.T).toarray(), atol=0.03
    )


def test_words_and_characters_have_equal_weight():
    texts, _ = documents(10)
    store, idx = FeatureStore(Examples(texts)), np.arange(10)
    words, characters, both = (
        store.fit(each, idx)(idx) for each in (WORDS, CHARACTERS, WORDS_AND_CHARACTERS)
    )
    expected = (words @ words.T + characters @ characters.T).toarray() / 2
    np.testing.assert_allclose((both @ both.T).toarray(), expected, atol=1e-5)
    some, labels, asked = np.arange(6), np.arange(6) % 2, np.arange(6, 10)
    parts = [Fold(store, each, some, labels, asked) for each in (WORDS, CHARACTERS)]
    whole = Fold(store, WORDS_AND_CHARACTERS, some, labels, asked)
    of_parts = Fold(store, WORDS_AND_CHARACTERS, some, labels, asked, parts)
    np.testing.assert_allclose(of_parts.gram, whole.gram, atol=1e-5)
    np.testing.assert_allclose(of_parts.cross, whole.cross, atol=1e-5)


def test_semantic_analysis_is_learned_from_unlabeled_texts_alone():
    texts, labels = documents(600)
    examples = texts[:150]
    store = FeatureStore(Examples(examples), Examples(texts[150:]), 60)
    feature_set = LSA[0]
    train, test = np.arange(60), np.arange(60, 150)
    fold = Fold(store, feature_set, train, labels[:60], test)
    assert fold.train.shape == (60, 2 * 64)
    (scores,) = Logistic().scores(fold, [{"C": 10.0}])
    assert np.mean(scores.argmax(axis=1) == labels[test]) > 0.8
    changed = FeatureStore(Examples([*examples[:60], *["zzz"] * 90]), Examples(texts[150:]), 60)
    again = Fold(changed, feature_set, train, labels[:60], test)
    np.testing.assert_array_equal(again.train, fold.train)


@pytest.mark.parametrize("unlabeled", [False, True])
def test_texts_without_a_word_are_no_obstacle(unlabeled):
    texts = ["?", "a !", "", "one two three", "one two", "three four one"] * 3
    store = FeatureStore(Examples(texts), None, 18 if unlabeled else 0)
    labels = np.arange(12) % 2
    for member in members_of("text", unlabeled=unlabeled):
        fold = Fold(store, member.features, np.arange(12), labels, np.arange(18))
        config = {axis.name: axis.value(axis.exponents[0]) for axis in member.classifier.axes}
        (scores,) = member.classifier.scores(fold, [config])
        assert scores.shape == (18, 2) and np.isfinite(scores).all(), member.name


ALPHABETS = {
    "Chinese": "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出",
    "Japanese": "あいうえおかきくけこアイウエオカキクケコ日本語映画最高悪人生",
    "Korean": "가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허",
    "Thai": "กขคงจฉชซญดตถทธนบปผฝพ",
    "Khmer": "កខគឃងចឆជឈញដឋឌឍណត",
    "Latin without spaces": "abcdefghijklmnopqrstuvwxyz",
}


@pytest.mark.parametrize("features", [WORDS, CHARACTERS], ids=lambda each: each.name)
@pytest.mark.parametrize("script", ALPHABETS)
def test_texts_without_spaces_are_told_apart(script, features):
    random = np.random.default_rng(0)
    characters = list(ALPHABETS[script])
    told = ["".join(random.choice(characters, 4)) for _ in range(8)]
    labels = np.arange(120) % 2
    texts = []
    for label in labels:
        parts = ["".join(random.choice(characters, 12)) for _ in range(4)]
        own = random.choice(told[4 * label : 4 * label + 4], 3)
        texts.append("".join(part + each for part, each in zip(parts, own, strict=False)) + "a")
    fold = Fold(
        FeatureStore(Examples(texts)), features, np.arange(80), labels[:80], np.arange(80, 120)
    )
    (scores,) = Logistic().scores(fold, [{"C": 100.0}])
    assert np.mean(scores.argmax(axis=1) == labels[80:]) > 0.85
