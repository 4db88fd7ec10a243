"""Every metric of one sample, each with its interval."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fm.data.tokenizer import Tokenizer
from fm.evaluation.statistics import Interval
from fm.evaluation.text_quality import divergence, diversity, intervals
from fm.evaluation.text_quality.features import Features
from fm.evaluation.text_quality.intervals import Statistic, interval
from fm.evaluation.text_quality.likelihood import nats
from fm.evaluation.text_quality.novelty import Seen
from fm.evaluation.text_quality.validity import faults
from fm.evaluation.text_quality.words import counts, words
from fm.model.config import ModelConfig
from fm.study.text_quality.arms import rows, spelled_bytes
from fm.study.text_quality.samples import Sample

Values = dict[str, Interval]
_SHARES = ("divergence", "distinct_2", "self_bleu", "repetition", "novelty")


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A model that says how likely texts are, in bits per byte."""

    params: dict
    model: ModelConfig
    tokenizer: Tokenizer

    def statistic(self, sample: Sample) -> Statistic:
        """Of what was written, given the prompts."""
        counted_NL = np.zeros(sample.tokens_NL.shape, bool)
        counted_NL[:, sample.given :] = True
        nats_N = nats(self.params, sample.tokens_NL, counted_NL, self.model)
        bytes_N = spelled_bytes(self.tokenizer, sample.tokens_NL[:, sample.given :])
        return intervals.ratio(nats_N / math.log(2), bytes_N)


@dataclasses.dataclass(frozen=True, eq=False)
class Yardstick:
    """Real text of a domain, and what samples are held against it with."""

    real_NE: np.ndarray
    features: Features
    judge: Judge
    judged: float
    zipf: float

    @classmethod
    def of(cls, real: Sample, features: Features, judge: Judge) -> Yardstick:
        """From how people went on from the prompts."""
        every = np.ones((1, len(real)))
        split = [words(text) for text in real.texts]
        return cls(
            features(real.texts),
            features,
            judge,
            float(judge.statistic(real)(every)[0]),
            float(diversity.zipf(counts(split, 1))(every)[0]),
        )


def measure(sample: Sample, yardstick: Yardstick, seen: Seen) -> Values:
    """The metrics of a sample by name; intervals are over its texts, all else held fixed."""
    texts = [words(text) for text in sample.texts]
    judged = yardstick.judge.statistic(sample)
    zipf = diversity.zipf(counts(texts, 1))
    statistics = {
        "divergence": divergence.mauve(yardstick.real_NE, yardstick.features(sample.texts)),
        "judged": judged,
        "judged_gap": lambda weights_RN: np.abs(judged(weights_RN) - yardstick.judged),
        "distinct_2": diversity.distinct(counts(texts, 2)),
        "self_bleu": intervals.mean(diversity.self_bleu(texts)),
        "repetition": intervals.ratio(*diversity.repeated(texts)),
        "zipf": zipf,
        "zipf_gap": lambda weights_RN: np.abs(zipf(weights_RN) - yardstick.zipf),
        "novelty": intervals.ratio(*seen.novel(texts)),
        "copied": intervals.mean(seen.longest(texts)),
    }
    values = {
        name: interval(each, len(sample), within=(0.0, 1.0 if name in _SHARES else math.inf))
        for name, each in statistics.items()
    }
    invalid = sum(bool(faults(text)) for text in sample.texts)
    return values | {"invalid": intervals.share(invalid, len(sample))}


def held_out_bits(
    params: dict, texts: list[str], tokenizer: Tokenizer, model: ModelConfig, length: int
) -> Interval:
    """Bits per byte of the beginnings of texts, the first `length` tokens of each."""
    tokens_NL, counted_NL, bytes_N = rows(tokenizer, texts, length)
    nats_N = nats(params, tokens_NL, counted_NL, model)
    return interval(intervals.ratio(nats_N / math.log(2), bytes_N), len(texts))
