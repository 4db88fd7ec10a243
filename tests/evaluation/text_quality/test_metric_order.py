"""Real text, shuffled text, repeated text and copies: every metric puts them in the right order."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from fm.data.builders import docstrings
from fm.evaluation.text_quality import diversity, mauve
from fm.evaluation.text_quality.mauve import fit_tfidf_embedder
from fm.evaluation.text_quality.novelty import TrainingNgrams
from fm.evaluation.text_quality.words import find_faults, ngram_counts, split_words

N, WORDS = 60, 60


@pytest.fixture(scope="module")
def texts():
    """Real prose from the standard library's docstrings, and what can be done to it."""
    prose = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        prose += docstrings.prose_paragraphs(
            each.text for each in docstrings.parse_docstrings(path)
        )
    flat = [word for text in dict.fromkeys(prose) for word in text.split()]
    draws = np.random.default_rng(0)
    blocks = [flat[at : at + WORDS] for at in range(0, len(flat) - WORDS, WORDS)]
    draws.shuffle(blocks)
    assert len(blocks) > 4 * N
    real, held_out, train = blocks[:N], blocks[N : 2 * N], blocks[2 * N :]
    pool = [word for block in held_out for word in block]
    draws.shuffle(pool)
    joined = {
        "train": train,
        "reference": real,
        "real": held_out,
        "shuffled": np.reshape(pool, (N, WORDS)).tolist(),
        "repeated": [block[:4] * (WORDS // 4) for block in held_out],
        "one text": [held_out[0]] * N,
        "copied": train[:N],
    }
    return {name: [" ".join(block) for block in each] for name, each in joined.items()}


@pytest.fixture(scope="module")
def measured(texts):
    every, seen = np.ones((1, N)), TrainingNgrams(texts["train"])
    features = fit_tfidf_embedder(texts["train"], 32)
    found = {}
    for name in ("real", "shuffled", "repeated", "one text", "copied"):
        split = [split_words(text) for text in texts[name]]
        area = mauve.mauve(features(texts["reference"]), features(texts[name]))
        before, total = diversity.repetition_counts(split)
        new, runs = seen.count_novel(split)
        found[name] = {
            "divergence": area(every)[0],
            "distinct": diversity.distinct_n(ngram_counts(split, 2))(every)[0],
            "zipf": diversity.zipf_exponent(ngram_counts(split, 1))(every)[0],
            "self_bleu": diversity.self_bleu(split).mean(),
            "repetition": before.sum() / total.sum(),
            "novelty": new.sum() / runs.sum(),
            "copied": seen.longest_copies(split).mean(),
            "invalid": np.mean([bool(find_faults(text)) for text in texts[name]]),
        }
    return found


def test_divergence_puts_real_text_first(measured):
    area = {name: values["divergence"] for name, values in measured.items()}
    assert area["real"] > area["shuffled"] > area["one text"]
    assert area["real"] > area["repeated"]
    assert area["real"] > 0.7


def test_diversity_puts_repeats_last(measured):
    distinct = {name: values["distinct"] for name, values in measured.items()}
    alike = {name: values["self_bleu"] for name, values in measured.items()}
    assert distinct["shuffled"] > distinct["real"] > distinct["repeated"] > distinct["one text"]
    assert alike["shuffled"] < alike["real"] < alike["one text"]
    assert alike["one text"] == pytest.approx(1.0)


def test_repetition_is_seen_within_a_text_only(measured):
    repetition = {name: values["repetition"] for name, values in measured.items()}
    assert repetition["repeated"] > 0.85
    assert repetition["shuffled"] <= repetition["real"] < 0.1
    # One text over and over is not repetition within a text.
    assert repetition["one text"] < 0.2


def test_zipf_does_not_see_order_but_sees_few_words(measured):
    zipf = {name: values["zipf"] for name, values in measured.items()}
    assert zipf["shuffled"] == pytest.approx(zipf["real"], abs=0.02)
    assert abs(zipf["repeated"] - zipf["real"]) > 0.1


def test_novelty_tells_copies_from_new_text(measured):
    new = {name: values["novelty"] for name, values in measured.items()}
    copied = {name: values["copied"] for name, values in measured.items()}
    assert new["shuffled"] > new["real"] > new["copied"] == 0
    assert copied["copied"] > WORDS - 5 > copied["real"] > copied["shuffled"]


def test_all_of_it_is_valid_text(measured):
    assert max(values["invalid"] for values in measured.values()) < 0.05
