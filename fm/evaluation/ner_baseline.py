"""Classical NER baseline: features of a word and its neighbors, and logistic regression.

No neural network and no CRF (Zhang and Johnson 2003); the tags are made well-formed by the same
Viterbi search as a model's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from fm.evaluation.logistic import MAX_ITERATIONS, log_grid
from fm.evaluation.ner import Tags, viterbi_decode

# Powers of ten of the inverse penalty C.
C_RANGE = (0, 3)
NUM_COLUMNS = 2**18

_REPEATS = re.compile(r"(.)\1+")


@dataclasses.dataclass(frozen=True, eq=False)
class LogisticTagger:
    """A fitted tagger: logistic regression on sparse features of each word and its neighbors."""

    columns: np.ndarray
    classifier: LogisticRegression
    tags: tuple[str, ...]

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns valid BIO tags for the words of each sentence."""
        lengths = [len(words) for words in sentences]
        if not sum(lengths):
            return [[] for _ in sentences]
        rows = _matrix(sentences)[:, self.columns]
        scores = np.asarray(self.classifier.predict_log_proba(rows))
        parts = np.split(scores, np.cumsum(lengths)[:-1])
        return [viterbi_decode(part, self.tags) for part in parts]


def hparam_grid(trials: int) -> list[dict[str, float]]:
    """Returns `trials` settings {"C": inverse L2 strength}, log-spaced over `C_RANGE`."""
    return [{"C": inverse_penalty} for inverse_penalty in log_grid(*C_RANGE, trials)]


def fit(sentences: Sequence[Sequence[str]], tags: Tags, config: dict[str, float]) -> LogisticTagger:
    """Fits logistic regression on word features to tagged sentences.

    Args:
      sentences: the words of each.
      tags: a tag for each word.
      config: ``C``, the inverse penalty.

    Raises:
      ValueError: all words have one tag (scikit-learn's message), or tags do not match words.
    """
    matrix = _matrix(sentences)
    targets = [tag for own in tags for tag in own]
    # Hashed into many columns, of which a fit keeps those in use: small budgets stay quick.
    columns = np.unique(matrix.indices)
    model: Any = LogisticRegression(C=config["C"], max_iter=MAX_ITERATIONS)
    # L-BFGS on vectors this short spends its time waiting for threads.
    with threadpool_limits(1):
        model.fit(matrix[:, columns], targets)
    return LogisticTagger(columns, model, tuple(model.classes_))


def _matrix(sentences: Sequence[Sequence[str]]) -> sp.csr_array:
    """One row a word, sentence after sentence."""
    hasher = FeatureHasher(NUM_COLUMNS, input_type="string", alternate_sign=False)
    rows = [_features(words, place) for words in sentences for place in range(len(words))]
    return sp.csr_array(hasher.transform(rows))


def _features(words: Sequence[str], place: int) -> list[str]:
    """Features of a word: itself, its shape and its neighbors."""
    features = ["bias"]
    for offset in (-2, -1, 0, 1, 2):
        at = place + offset
        if not 0 <= at < len(words):
            features.append(f"{offset} edge")
            continue
        word = words[at]
        features += [f"{offset} lower {word.lower()}", f"{offset} shape {word_shape(word)}"]
    word = words[place]
    features.append(f"word {word}")
    for length in (1, 2, 3, 4):
        features += [f"begins {word[:length].lower()}", f"ends {word[-length:].lower()}"]
    return features


def word_shape(word: str) -> str:
    """Returns a word's shape: "McDonald's3" gives "XxXx'xd" (runs of one kind count once)."""
    kinds = "".join(
        "X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word
    )
    return _REPEATS.sub(r"\1", kinds)
