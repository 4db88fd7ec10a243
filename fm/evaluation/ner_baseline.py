"""Classical NER baseline: a conditional random field on features of a word and its neighbors.

Linear-chain CRF (Lafferty, McCallum and Pereira 2001) by CRFsuite; its tags are made well-formed by
the same Viterbi search as a model's, over the CRF's marginals.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycrfsuite

from fm.evaluation.model_selection import from_the_middle, select_trial
from fm.evaluation.ner import Tags, cross_validate, viterbi_decode

# CRFsuite's c1 and c2: weights of the L1 and L2 penalties.
L1_PENALTIES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
L2_PENALTIES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.1, 1.0)
# The L1 penalty with which the L2 penalty is chosen.
FIRST_C1 = 0.1
MAX_ITERATIONS = 100

_REPEATS = re.compile(r"(.)\1+")


@dataclasses.dataclass(frozen=True, eq=False)
class CrfTagger:
    """A fitted CRF.

    Attributes:
      tagger: of CRFsuite, which reads from `content` as long as it lives.
      content: the model in CRFsuite's format.
      tags: names of the tags.
    """

    tagger: Any
    content: bytes
    tags: tuple[str, ...]

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns valid BIO tags for the words of each sentence."""
        return [viterbi_decode(self._log_marginals(words), self.tags) for words in sentences]

    def _log_marginals(self, words: Sequence[str]) -> np.ndarray:
        self.tagger.set(sentence_features(words))
        marginals = [
            [self.tagger.marginal(tag, place) for tag in self.tags] for place in range(len(words))
        ]
        shape = len(words), len(self.tags)
        return np.log(np.maximum(np.array(marginals).reshape(shape), 1e-300))


def load_crf(content: bytes) -> CrfTagger:
    """Returns the tagger of a CRF in CRFsuite's format."""
    crfsuite: Any = pycrfsuite  # compiled, without types
    tagger = crfsuite.Tagger()
    tagger.open_inmemory(content)
    return CrfTagger(tagger, content, tuple(tagger.labels()))


def fit(sentences: Sequence[Sequence[str]], tags: Tags, config: dict[str, float]) -> CrfTagger:
    """Fits a CRF to tagged sentences.

    Args:
      sentences: the words of each.
      tags: a tag for each word.
      config: ``c1`` and ``c2``, weights of the L1 and L2 penalties.

    Raises:
      ValueError: tags do not match words.
    """
    crfsuite: Any = pycrfsuite  # compiled, without types
    trainer = crfsuite.Trainer(algorithm="lbfgs", verbose=False)
    trainer.set_params(
        {
            "c1": config["c1"],
            "c2": config["c2"],
            "max_iterations": MAX_ITERATIONS,
            "feature.possible_transitions": True,
        }
    )
    for words, own in zip(sentences, tags, strict=True):
        if words:
            trainer.append(sentence_features(words), list(own))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "crf"
        trainer.train(str(path))
        content = path.read_bytes()
    return load_crf(content)


def search(
    sentences: Sequence[Sequence[str]],
    tags: Tags,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Returns settings with their entity F1 on the folds: L2 penalties, then L1 penalties.

    The L1 penalties are tried with the best of the L2 penalties. Of equal ones the middle of the
    grid comes first.
    """
    grid = [{"c1": FIRST_C1, "c2": penalty} for penalty in from_the_middle(L2_PENALTIES)]
    trials = cross_validate(fit, sentences, tags, grid, folds)
    best = select_trial(trials)["config"]
    grid = [{**best, "c1": each} for each in from_the_middle(L1_PENALTIES) if each != best["c1"]]
    return trials + cross_validate(fit, sentences, tags, grid, folds)


def sentence_features(words: Sequence[str]) -> list[list[str]]:
    """Returns features of each word: itself, its shape, its beginnings and ends, its neighbors."""
    return [_features(words, place) for place in range(len(words))]


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
