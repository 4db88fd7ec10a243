"""Samples of text, generated or real, and every metric of a sample with its interval."""

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

from fm.adaptation.feature_cache import cached_features
from fm.adaptation.features import FeatureConfig
from fm.attention import Mask
from fm.data.tokenizer import NUM_SPECIALS, Tokenizer
from fm.errors import UserError
from fm.evaluation.statistics import Interval
from fm.evaluation.text_quality import diversity, intervals
from fm.evaluation.text_quality.intervals import StatisticFn, half_sample_interval, ratio_statistic
from fm.evaluation.text_quality.mauve import Embedder, fit_tfidf_embedder, mauve, unit_length
from fm.evaluation.text_quality.novelty import TrainingNgrams
from fm.evaluation.text_quality.words import find_faults, ngram_counts, split_words
from fm.files import read_checked_json, write_checked_json
from fm.hf import model_zoo
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.generate import generate
from fm.model.sampling import SamplingConfig
from fm.model.transformer import forward
from fm.study.text_quality.config import EmbedderInfo

TFIDF = "tfidf"
# Most tokens of a text that a published model embeds; the middle of a longer text is dropped.
_EMBEDDER_TOKENS = 128
_BATCH_SIZE = 32
_FRACTIONS = ("mauve", "distinct_2", "self_bleu", "repetition", "novelty")


# Samples.


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A batch of prompts with their continuations, as token ids and as text.

    Attributes:
      tokens_NL: int32, BOS, the prompt, then the continuation.
      prompt_len: tokens of BOS and prompt.
      prompts: the prompts as text.
      texts: the continuations as text.
    """

    tokens_NL: np.ndarray
    prompt_len: int
    prompts: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def _decode_sample(tokenizer: Tokenizer, tokens_NL: np.ndarray, prompt_len: int) -> Sample:
    prompts = [decode_tokens(tokenizer, ids) for ids in tokens_NL[:, :prompt_len]]
    texts = [decode_tokens(tokenizer, ids) for ids in tokens_NL[:, prompt_len:]]
    return Sample(tokens_NL, prompt_len, prompts, texts)


def decode_tokens(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Decodes token ids to UTF-8 text, dropping an incomplete character at the end.

    Other invalid bytes become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(b"".join(tokenizer.token_bytes(ids)))


def draw_real_samples(
    tokenizer: Tokenizer, texts: list[str], prompt_tokens: int, new_tokens: int, count: int
) -> tuple[Sample, Sample]:
    """Returns two disjoint samples of real texts: a reference, and one to score against it.

    Raises:
      UserError: too few texts are long enough.
    """
    length = prompt_tokens + new_tokens
    long = [ids[:length] for ids in tokenizer.encode(texts) if len(ids) >= length]
    if len(long) < 2 * count:
        raise UserError(
            f"only {len(long)} of {len(texts)} held-out texts have {length} tokens; "
            f"{2 * count} are needed"
        )
    tokens = np.array(long[: 2 * count], np.int32)
    tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=tokenizer.bos)
    prompt_len = 1 + prompt_tokens
    return (
        _decode_sample(tokenizer, tokens[:count], prompt_len),
        _decode_sample(tokenizer, tokens[count:], prompt_len),
    )


def generate_sample(
    load_params: Callable[[], dict],
    prompts: Sample,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    sampling_config: SamplingConfig,
    *,
    seed: int,
    path: pathlib.Path,
) -> Sample:
    """Returns a model's continuations of a sample's prompts; reads them from `path` if saved.

    End-of-text is never sampled: all texts have one length, or the metrics would not compare.
    `load_params` is called only if there is something to generate.
    """
    if path.exists():
        tokens_NL = np.array(read_checked_json(path), np.int32)
        return _decode_sample(tokenizer, tokens_NL, prompts.prompt_len)
    prompts_NP = prompts.tokens_NL[:, : prompts.prompt_len]
    new = generate(
        load_params(),
        list(prompts_NP),
        model_config,
        sampling_config=sampling_config,
        max_new_tokens=prompts.tokens_NL.shape[1] - prompts.prompt_len,
        seeds=[seed * len(prompts) + row for row in range(len(prompts))],
        suppress_tokens=range(NUM_SPECIALS),
    )
    tokens_NL = np.concatenate([prompts_NP, np.stack(new)], axis=1)
    write_checked_json(path, tokens_NL.tolist())
    return _decode_sample(tokenizer, tokens_NL, prompts.prompt_len)


# Likelihood.


def sequence_nll(
    params: dict, tokens_NL: np.ndarray, counted_NL: np.ndarray, model_config: ModelConfig
) -> np.ndarray:
    """Returns each row's negative log-likelihood, summed over its counted tokens, in nats [N].

    Args:
      params: of a causal language model.
      tokens_NL: int, padded on the right.
      counted_NL: bool; a row's first token cannot count.
      model_config: the model's.

    Returns:
      float64 [N].

    Raises:
      ValueError: a row's first token is counted.
    """
    if counted_NL[:, 0].any():
        raise ValueError("a row's first token has none before it and cannot be counted")
    sums = []
    for start in range(0, len(tokens_NL), _BATCH_SIZE):
        batch = [each[start : start + _BATCH_SIZE] for each in (tokens_NL, counted_NL)]
        missing = _BATCH_SIZE - len(batch[0])
        batch = [np.pad(each, ((0, missing), (0, 0))) for each in batch]
        nll_B = np.asarray(_batch_nll(params, *batch, model_config), np.float64)
        sums.append(nll_B[: _BATCH_SIZE - missing])
    return np.concatenate(sums)


@functools.partial(jax.jit, static_argnames="config")
def _batch_nll(params: dict, tokens_BL: jax.Array, counted_BL: jax.Array, config: ModelConfig):
    B, L = tokens_BL.shape
    inputs = {"tokens": tokens_BL, "positions": jnp.broadcast_to(jnp.arange(L), (B, L))}
    final_BLD = forward(params, inputs, config, mask=Mask(causal=True))["final"]
    logits_BLV = embeddings.token_logits(params["streams"], final_BLD[:, :-1], config)
    target_BL = jnp.take_along_axis(logits_BLV, tokens_BL[:, 1:, None], axis=-1)[..., 0]
    nll_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - target_BL
    return jnp.sum(nll_BL * counted_BL[:, 1:], axis=-1)


def encode_for_scoring(
    tokenizer: Tokenizer, texts: list[str], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns token ids [N, length], BOS first, the mask of tokens scored, and byte counts [N].

    Returns:
      tokens int32 [N, length], counted bool [N, length], and the bytes of the counted tokens [N].
    """
    tokens_NL = np.zeros((len(texts), length), np.int32)
    tokens_NL[:, 0] = tokenizer.bos
    for row, ids in zip(tokens_NL, tokenizer.encode(texts), strict=True):
        row[1 : 1 + len(ids)] = ids[: length - 1]
    counted_NL = tokens_NL >= NUM_SPECIALS
    return tokens_NL, counted_NL, decoded_byte_counts(tokenizer, tokens_NL)


def decoded_byte_counts(tokenizer: Tokenizer, tokens_NL: np.ndarray) -> np.ndarray:
    """Returns the number of UTF-8 bytes that each row of tokens decodes to, int [N]."""
    all_ids = range(tokenizer.vocab_size)
    lengths_V = np.array([len(each) for each in tokenizer.token_bytes(all_ids)])
    return lengths_V[tokens_NL].sum(1)


def held_out_bits_per_byte(
    params: dict, texts: list[str], tokenizer: Tokenizer, model_config: ModelConfig, length: int
) -> Interval:
    """Returns a model's bits per byte on the first `length` tokens of texts, with an interval."""
    tokens_NL, counted_NL, bytes_N = encode_for_scoring(tokenizer, texts, length)
    nll_N = sequence_nll(params, tokens_NL, counted_NL, model_config)
    return half_sample_interval(ratio_statistic(nll_N / math.log(2), bytes_N), len(texts))


@dataclasses.dataclass(frozen=True, eq=False)
class ScorerLM:
    """A fixed language model that scores samples in bits per byte."""

    params: dict
    model_config: ModelConfig
    tokenizer: Tokenizer

    def statistic(self, sample: Sample) -> StatisticFn:
        """Returns a function from text weights to bits per byte of continuations given prompts."""
        counted_NL = np.zeros(sample.tokens_NL.shape, bool)
        counted_NL[:, sample.prompt_len :] = True
        nll_N = sequence_nll(self.params, sample.tokens_NL, counted_NL, self.model_config)
        bytes_N = decoded_byte_counts(self.tokenizer, sample.tokens_NL[:, sample.prompt_len :])
        return ratio_statistic(nll_N / math.log(2), bytes_N)


# Embedders.


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedModelEmbedder:
    """Text embedder that averages a published model's final hidden states; cached on disk."""

    info: EmbedderInfo
    model: model_zoo.PublishedModel

    @property
    def name(self) -> str:
        """Returns a phrase that describes the vectors."""
        return (
            f"the mean over a text of the final output of {self.info.name} "
            f"({self.info.source}; license {self.info.license}), {self.model.config.d_model} "
            "numbers of unit length"
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns vectors of unit length; over 128 tokens only a text's beginning and end count."""
        config, params = self.model.config, self.model.params
        ids = self.model.encode(
            texts, min(_EMBEDDER_TOKENS, config.max_seq_len or _EMBEDDER_TOKENS)
        )
        feature_config = FeatureConfig("mean", causal=self.model.causal, layers=(-1,))
        features = cached_features(self.info.digest, params, config, ids, feature_config)
        return unit_length(features.values[:, 0])


@dataclasses.dataclass(frozen=True, eq=False)
class EmbedderSpec:
    """A chosen text embedder that is not yet fitted to texts.

    Attributes:
      info: as in the study's config.
      model: a published model; None for TF-IDF of the study's own texts.
    """

    info: EmbedderInfo
    model: model_zoo.PublishedModel | None = None

    def build(self, texts: Sequence[str]) -> Embedder:
        """Returns the embedder, fitted on real `texts` if it is TF-IDF."""
        if self.model is None:
            return fit_tfidf_embedder(texts)
        return PublishedModelEmbedder(self.info, self.model)


def find_embedder(name: str) -> EmbedderSpec:
    """Returns the spec of TF-IDF, or loads a published model and returns its spec.

    Args:
      name: `TFIDF`, or a published model as `model_zoo.load_published` takes it.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    if name == TFIDF:
        return EmbedderSpec(EmbedderInfo(TFIDF))
    if model_zoo.find_or_fetch_model(name) is None:
        raise UserError(
            f"--embedder={name}: must be {TFIDF}, {', '.join(model_zoo.MODEL_ZOO)}, a model folder "
            "(config.json, safetensors) or a GGUF file"
        )
    model = model_zoo.load_published(name)
    return EmbedderSpec(EmbedderInfo(name, model.source, model.license, model.digest()), model)


# Metrics of a sample.


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceStats:
    """Statistics of a domain's real text, against which samples are measured."""

    real_NE: np.ndarray
    embedder: Embedder
    scorer: ScorerLM
    bits_per_byte: float
    zipf: float

    @classmethod
    def from_sample(cls, real: Sample, embedder: Embedder, scorer: ScorerLM) -> ReferenceStats:
        """Returns the statistics of a sample of real text."""
        all_texts = np.ones((1, len(real)))
        words = [split_words(text) for text in real.texts]
        return cls(
            embedder(real.texts),
            embedder,
            scorer,
            float(scorer.statistic(real)(all_texts)[0]),
            float(diversity.zipf_exponent(ngram_counts(words, 1))(all_texts)[0]),
        )


def measure_sample(
    sample: Sample, reference: ReferenceStats, training_ngrams: TrainingNgrams
) -> dict[str, Interval]:
    """Returns every text quality metric of a batch of generated texts, each with an interval."""
    texts = [split_words(text) for text in sample.texts]
    bits_per_byte = reference.scorer.statistic(sample)
    zipf = diversity.zipf_exponent(ngram_counts(texts, 1))
    statistics = {
        "mauve": mauve(reference.real_NE, reference.embedder(sample.texts)),
        "scorer_bits_per_byte": bits_per_byte,
        "scorer_gap": lambda weights_RN: np.abs(
            bits_per_byte(weights_RN) - reference.bits_per_byte
        ),
        "distinct_2": diversity.distinct_n(ngram_counts(texts, 2)),
        "self_bleu": intervals.mean_statistic(diversity.self_bleu(texts)),
        "repetition": ratio_statistic(*diversity.repetition_counts(texts)),
        "zipf": zipf,
        "zipf_gap": lambda weights_RN: np.abs(zipf(weights_RN) - reference.zipf),
        "novelty": ratio_statistic(*training_ngrams.count_novel(texts)),
        "longest_copy": intervals.mean_statistic(training_ngrams.longest_copies(texts)),
    }
    values = {
        name: half_sample_interval(
            statistic, len(sample), bounds=(0.0, 1.0 if name in _FRACTIONS else math.inf)
        )
        for name, statistic in statistics.items()
    }
    invalid = sum(bool(find_faults(text)) for text in sample.texts)
    return values | {"invalid": intervals.wilson_interval(invalid, len(sample))}
