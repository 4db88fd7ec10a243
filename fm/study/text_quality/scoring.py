"""Samples: so many texts of so many tokens, written by a model or by people, kept as JSON."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fm import files
from fm.adaptation import feature_cache
from fm.adaptation.features import FeatureConfig
from fm.attention import Mask
from fm.data.tokenizer import NUM_SPECIALS, Tokenizer
from fm.errors import UserError
from fm.evaluation.statistics import Interval
from fm.evaluation.text_quality import diversity, intervals, mauve
from fm.evaluation.text_quality.intervals import Statistic, half_sample_interval
from fm.evaluation.text_quality.mauve import Embedder, fit_tfidf_embedder
from fm.evaluation.text_quality.novelty import TrainingNgrams
from fm.evaluation.text_quality.words import find_faults, ngram_counts, split_words
from fm.hf import model_zoo
from fm.hf.model_zoo import MODEL_ZOO, PublishedModel
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.generate import generate
from fm.model.sampling import SamplingConfig
from fm.model.transformer import forward
from fm.study.text_quality.config import EmbedderInfo
from fm.study.text_quality.training import decoded_byte_counts, encode_for_scoring


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Texts that go on from prompts.

    Attributes:
      tokens_NL: int32, BOS, the prompt, then what was written.
      prompt_len: tokens of BOS and prompt.
      prompts: the prompts as text.
      texts: what was written, as text.
    """

    tokens_NL: np.ndarray
    prompt_len: int
    prompts: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def real_samples(
    tokenizer: Tokenizer, texts: list[str], prompt_tokens: int, new_tokens: int, count: int
) -> tuple[Sample, Sample]:
    """Two samples of how people went on: the first for prompts, the second to compare.

    Raises:
      UserError: too few of the texts are long enough.
    """
    length = prompt_tokens + new_tokens
    long = [ids[:length] for ids in tokenizer.encode(texts) if len(ids) >= length]
    if len(long) < 2 * count:
        raise UserError(
            f"only {len(long)} of {len(texts)} texts set aside have {length} tokens; "
            f"{2 * count} are needed"
        )
    tokens = np.array(long[: 2 * count], np.int32)
    led = np.pad(tokens, ((0, 0), (1, 0)), constant_values=tokenizer.bos)
    given = 1 + prompt_tokens
    return _sample(tokenizer, led[:count], given), _sample(tokenizer, led[count:], given)


def generate_sample(
    params: Callable[[], dict],
    like: Sample,
    tokenizer: Tokenizer,
    model: ModelConfig,
    decoding: SamplingConfig,
    *,
    seed: int,
    path: pathlib.Path,
) -> Sample:
    """A model's sample for the prompts of another, read back if it was written before.

    The end of a text is never drawn: all have one length, or the metrics would not compare.
    `params` is called only where there is something to write.
    """
    if path.exists():
        return _sample(
            tokenizer, np.array(files.read_checked_json(path), np.int32), like.prompt_len
        )
    prompts_NP = like.tokens_NL[:, : like.prompt_len]
    new = generate(
        params(),
        list(prompts_NP),
        model,
        sampling_config=decoding,
        max_new_tokens=like.tokens_NL.shape[1] - like.prompt_len,
        seeds=[seed * len(like) + row for row in range(len(like))],
        suppress_tokens=range(NUM_SPECIALS),
    )
    made = np.concatenate([prompts_NP, np.stack(new)], axis=1)
    files.write_checked_json(path, made.tolist())
    return _sample(tokenizer, made, like.prompt_len)


def _sample(tokenizer: Tokenizer, tokens_NL: np.ndarray, given: int) -> Sample:
    prompts = [decode_tokens(tokenizer, ids) for ids in tokens_NL[:, :given]]
    texts = [decode_tokens(tokenizer, ids) for ids in tokens_NL[:, given:]]
    return Sample(tokens_NL, given, prompts, texts)


def decode_tokens(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of tokens; a character cut off by the end is left out, broken ones are U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(b"".join(tokenizer.token_bytes(ids)))


_BATCH_SIZE = 32


def sequence_nll(
    params: dict, tokens_NL: np.ndarray, counted_NL: np.ndarray, config: ModelConfig
) -> np.ndarray:
    """Sum over each row's counted tokens of -log p(token | those before it), float64 [N].

    Args:
      params: of a model that predicts the next token.
      tokens_NL: int, filled up at the end.
      counted_NL: bool; the first token of a row is given and cannot count.
      config: the model's.

    Raises:
      ValueError: a row's first token is counted.
    """
    if counted_NL[:, 0].any():
        raise ValueError("a row's first token has none before it and cannot be counted")
    sums = []
    for start in range(0, len(tokens_NL), _BATCH_SIZE):
        rows = [each[start : start + _BATCH_SIZE] for each in (tokens_NL, counted_NL)]
        short = _BATCH_SIZE - len(rows[0])
        filled = [np.pad(each, ((0, short), (0, 0))) for each in rows]
        sums.append(
            np.asarray(_sequence_nll(params, *filled, config), np.float64)[: _BATCH_SIZE - short]
        )
    return np.concatenate(sums)


@functools.partial(jax.jit, static_argnames="config")
def _sequence_nll(params: dict, tokens_BL: jax.Array, counted_BL: jax.Array, config: ModelConfig):
    B, L = tokens_BL.shape
    inputs = {"tokens": tokens_BL, "positions": jnp.broadcast_to(jnp.arange(L), (B, L))}
    final_BLD = forward(params, inputs, config, mask=Mask(causal=True))["final"]
    logits_BLV = embeddings.token_logits(params["streams"], final_BLD[:, :-1])
    picked_BL = jnp.take_along_axis(logits_BLV, tokens_BL[:, 1:, None], axis=-1)[..., 0]
    nats_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - picked_BL
    return jnp.sum(nats_BL * counted_BL[:, 1:], axis=-1)


TFIDF = "terms"
# What a sample's texts can come to in another model's tokens; beyond it the middle is left out.
_LENGTH = 128


@dataclasses.dataclass(frozen=True, eq=False)
class EmbedderSpec:
    """What makes the features of a study.

    Attributes:
      info: as the study's config says it.
      model: a published one; None for the terms of the study's own texts.
    """

    info: EmbedderInfo
    model: PublishedModel | None = None

    def build(self, texts: Sequence[str]) -> Embedder:
        """Vectors of any text; `texts` are real ones, which a published model does not need."""
        if self.model is None:
            return fit_tfidf_embedder(texts)
        return ModelEmbedder(self.info, self.model)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelEmbedder:
    """The mean over a text of a published model's final output, kept by content in the cache."""

    info: EmbedderInfo
    model: PublishedModel

    @property
    def name(self) -> str:
        """Whose."""
        return (
            f"the mean over a text of the final output of {self.info.name} "
            f"({self.info.source}; licence {self.info.license}), {self.model.config.d_model} "
            "numbers of unit length"
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of unit length; of a text over 128 tokens the beginning and the end are read."""
        config, params = self.model.config, self.model.params
        ids = self.model.encode(texts, min(_LENGTH, config.max_seq_len or _LENGTH))
        reading = FeatureConfig("mean", causal=self.model.causal, layers=(-1,))
        made = feature_cache.cached_features(self.info.digest, params, config, ids, reading).values[
            :, 0
        ]
        norms = np.linalg.norm(made, axis=1, keepdims=True)
        return made / np.where(norms == 0, 1.0, norms)


def find_embedder(name: str) -> EmbedderSpec:
    """The vectors of a name.

    Args:
      name: `TERMS`, or a published model as `published.find` takes it.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    if name == TFIDF:
        return EmbedderSpec(EmbedderInfo(TFIDF))
    if model_zoo.locate_model(name) is None:
        raise UserError(
            f"--features={name}: takes {TFIDF}, {', '.join(MODEL_ZOO)}, a model's folder (config.json, "
            "safetensors) or a GGUF file"
        )
    model = model_zoo.load_published(name)
    whose = EmbedderInfo(name, model.source, model.license, model.digest())
    return EmbedderSpec(whose, model)


Values = dict[str, Interval]
_SHARES = ("divergence", "distinct_2", "self_bleu", "repetition", "novelty")


@dataclasses.dataclass(frozen=True, eq=False)
class ScorerLM:
    """A model that says how likely texts are, in bits per byte."""

    params: dict
    model_config: ModelConfig
    tokenizer: Tokenizer

    def statistic(self, sample: Sample) -> Statistic:
        """Of what was written, given the prompts."""
        counted_NL = np.zeros(sample.tokens_NL.shape, bool)
        counted_NL[:, sample.prompt_len :] = True
        nats_N = sequence_nll(self.params, sample.tokens_NL, counted_NL, self.model_config)
        bytes_N = decoded_byte_counts(self.tokenizer, sample.tokens_NL[:, sample.prompt_len :])
        return intervals.ratio_of_sums(nats_N / math.log(2), bytes_N)


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStats:
    """Real text of a domain, and what samples are held against it with."""

    real_NE: np.ndarray
    embedder: Embedder
    scorer: ScorerLM
    bits_per_byte: float
    zipf: float

    @classmethod
    def from_sample(cls, real: Sample, features: Embedder, judge: ScorerLM) -> ReferenceStats:
        """From how people went on from the prompts."""
        every = np.ones((1, len(real)))
        split = [split_words(text) for text in real.texts]
        return cls(
            features(real.texts),
            features,
            judge,
            float(judge.statistic(real)(every)[0]),
            float(diversity.zipf_exponent(ngram_counts(split, 1))(every)[0]),
        )


def measure_sample(sample: Sample, yardstick: ReferenceStats, seen: TrainingNgrams) -> Values:
    """The metrics of a sample by name; intervals are over its texts, all else held fixed."""
    texts = [split_words(text) for text in sample.texts]
    judged = yardstick.scorer.statistic(sample)
    zipf = diversity.zipf_exponent(ngram_counts(texts, 1))
    statistics = {
        "divergence": mauve.mauve(yardstick.real_NE, yardstick.embedder(sample.texts)),
        "judged": judged,
        "judged_gap": lambda weights_RN: np.abs(judged(weights_RN) - yardstick.bits_per_byte),
        "distinct_2": diversity.distinct_n(ngram_counts(texts, 2)),
        "self_bleu": intervals.mean_over_texts(diversity.self_bleu(texts)),
        "repetition": intervals.ratio_of_sums(*diversity.repetition_counts(texts)),
        "zipf": zipf,
        "zipf_gap": lambda weights_RN: np.abs(zipf(weights_RN) - yardstick.zipf),
        "novelty": intervals.ratio_of_sums(*seen.count_novel(texts)),
        "copied": intervals.mean_over_texts(seen.longest_copies(texts)),
    }
    values = {
        name: half_sample_interval(
            each, len(sample), bounds=(0.0, 1.0 if name in _SHARES else math.inf)
        )
        for name, each in statistics.items()
    }
    invalid = sum(bool(find_faults(text)) for text in sample.texts)
    return values | {"invalid": intervals.wilson_interval(invalid, len(sample))}


def held_out_bits_per_byte(
    params: dict, texts: list[str], tokenizer: Tokenizer, model: ModelConfig, length: int
) -> Interval:
    """Bits per byte of the beginnings of texts, the first `length` tokens of each."""
    tokens_NL, counted_NL, bytes_N = encode_for_scoring(tokenizer, texts, length)
    nats_N = sequence_nll(params, tokens_NL, counted_NL, model)
    return half_sample_interval(intervals.ratio_of_sums(nats_N / math.log(2), bytes_N), len(texts))
