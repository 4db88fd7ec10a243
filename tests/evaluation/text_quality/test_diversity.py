import math

import numpy as np
import pytest

from fm.evaluation.text_quality import diversity
from fm.evaluation.text_quality.words import ngram_counts, ngrams, split_words

ALL2 = np.ones((1, 2))


def test_words_are_lower_case_and_punctuation_stands_alone():
    assert split_words("It's Good, très  good!") == [
        "it",
        "'",
        "s",
        "good",
        ",",
        "très",
        "good",
        "!",
    ]
    assert split_words(" \n") == []


def test_ngrams_of_a_text_too_short_are_none():
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_distinct_by_hand():
    # Pairs: ab ba ab | ab: 2 different of 4; the first text alone 2 of 3, the second 1 of 1.
    statistic = diversity.distinct_n(ngram_counts([["a", "b", "a", "b"], ["a", "b"]], 2))
    weights = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(statistic(weights), [2 / 4, 2 / 3, 1.0])


def test_distinct_of_no_words_is_zero():
    assert diversity.distinct_n(ngram_counts([[], ["a"]], 2))(ALL2) == [0.0]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_zipf_finds_the_exponent_of_an_exact_law(exponent):
    texts = [
        [f"w{rank}"] * round(1e6 * rank**-exponent) for rank in (1, 2, 3, 5)
    ]  # frequencies of ranks 1, 2, 3, 5, so the ranks are compared as 1, 2, 3, 4
    found = diversity.zipf_exponent(ngram_counts(texts, 1))(np.ones((1, 4)))[0]
    x = np.log([1, 2, 3, 4])
    y = -exponent * np.log([1, 2, 3, 5])
    assert found == pytest.approx(-np.polyfit(x, y, 1)[0], rel=1e-4)


def test_zipf_leaves_out_words_of_texts_that_are_not_drawn():
    table = ngram_counts([["a"] * 8 + ["b"] * 4, ["c"] * 100], 1)
    assert diversity.zipf_exponent(table)(np.array([[1.0, 0.0]]))[0] == pytest.approx(1.0)
    assert diversity.zipf_exponent(table)(np.array([[0.0, 1.0]]))[0] == 10.0  # one word only


def test_repetition_by_hand():
    before, total = diversity.repetition_counts([list("abab"), list("abc"), ["a"]], n=2)
    assert before.tolist() == [1, 0, 0]
    assert total.tolist() == [3, 2, 0]


def test_self_bleu_of_copies_is_one_and_of_strangers_near_nothing():
    same = diversity.self_bleu([list("abcdef")] * 3)
    np.testing.assert_allclose(same, 1.0)
    strangers = diversity.self_bleu([list("abcdef"), list("ghijkl"), list("mnopqr")])
    assert strangers.max() < 0.1


def test_self_bleu_by_hand():
    # Against one other of the same length: precisions 2/3 (a b), 1/2 (ab); third and fourth
    # orders: 0 of 1, smoothed to 1/2, and none, left out by effective order.
    found = diversity.self_bleu([["a", "b", "c"], ["a", "b", "d"]], others=1)
    expected = math.exp((math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 2)) / 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_self_bleu_reads_no_more_than_the_others_asked_for():
    texts = [list("abcd"), list("efgh"), list("abcd")]
    assert diversity.self_bleu(texts, others=1)[0] < 0.1
    assert diversity.self_bleu(texts, others=2)[0] == pytest.approx(1.0)


def test_self_bleu_of_one_text_is_refused():
    with pytest.raises(ValueError, match="two texts"):
        diversity.self_bleu([["a"]])
