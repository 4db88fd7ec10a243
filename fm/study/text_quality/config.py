"""Configuration of a text quality study: training sets, sampling configs, sizes, profiles."""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.config_io import parse, to_plain
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.sampling import SamplingConfig
from fm.study.config import check_training, check_vocab_size
from fm.study.presets import check_profile
from fm.training.optimizer import OptimizerConfig

EXPERIMENT = "text_quality"
# Three checkpoints are at fractions of the steps, and of half of them.
STEPS_MULTIPLE = 8
DOMAINS = ("A", "B")
# Default embedder of each profile; the quick one downloads nothing.
DEFAULT_EMBEDDERS = {"quick": "tfidf", "default": "minilm-l6", "full": "minilm-l6"}


@dataclasses.dataclass(frozen=True)
class CorpusPart:
    """One domain's texts in a training set: sampling weight, fraction of texts used, noise rate.

    Attributes:
      domain: "A" or "B".
      weight: relative share of the training tokens.
      fraction: fraction of the domain's training texts, from the first on.
      noise_rate: fraction of characters that are dropped, doubled or replaced.
    """

    domain: str
    weight: float = 1.0
    fraction: float = 1.0
    noise_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Texts that one arm trains on: a weighted mixture of parts of the domains' corpora.

    Attributes:
      name: of the arm.
      description: one sentence.
      parts: components of the training set.
      prompt_domains: domains whose prompts it continues.
      init_from: arm whose checkpoint at half its steps this one starts from, for the other half of
        the steps; or None.
    """

    name: str
    description: str
    parts: tuple[CorpusPart, ...]
    prompt_domains: tuple[str, ...]
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class EmbedderInfo:
    """Identity of the text embedder behind the MAUVE scores: name, source, license, hash.

    Attributes:
      name: of a published model, or "tfidf" (fitted on the study's own texts).
      source: where the model comes from.
      license: of the model.
      digest: of its architecture and parameters.
    """

    name: str
    source: str = ""
    license: str = ""
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class TextQualityConfig:
    """Data, training sets, model, training and sampling settings of a text quality study.

    Attributes:
      domains: names or paths of data sets A and B.
      training_sets: the arms.
      sampling_configs: used by every arm at its end; the first is plain sampling.
      model: architecture; its vocabulary is set by the tokenizer.
      optimizer: of all training runs.
      steps: per arm, a multiple of 8.
      batch_size: sequences per step.
      vocab_size: of the one BPE tokenizer all arms share.
      seq_len: tokens per sequence.
      train_bytes: most bytes per domain for the arms; the scorer gets half as many of other texts.
      num_texts: texts per sample, and of real text.
      prompt_tokens: tokens of a held-out text given as the prompt.
      max_new_tokens: tokens generated per text, never fewer, so that samples compare.
      num_held_out: texts of each domain held out, for prompts and real samples.
      num_early_sampling_configs: how many of `sampling_configs` earlier checkpoints use too.
      embedder: embeds texts for the MAUVE-style area.
      seed: of everything random.
      data_dir: folder of prepared data sets.
      text_column: of csv and jsonl files.
      encoding: of text files.
      fingerprints: of the loaded data.
      smoke_test: made with the quick profile: its figures are not to be quoted. Only a config that
        is one says so in its JSON.
    """

    domains: tuple[str, str]
    training_sets: tuple[TrainingSet, ...]
    sampling_configs: tuple[SamplingConfig, ...]
    model: ModelConfig
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    vocab_size: int
    seq_len: int
    train_bytes: int
    num_texts: int
    prompt_tokens: int
    max_new_tokens: int
    num_held_out: int
    num_early_sampling_configs: int = 2
    embedder: EmbedderInfo = EmbedderInfo("tfidf")
    seed: int = 0
    data_dir: str | None = None
    text_column: str = "text"
    encoding: str = "utf-8"
    fingerprints: tuple[str, ...] = ()
    smoke_test: bool = False

    def __post_init__(self):
        if self.steps < STEPS_MULTIPLE or self.steps % STEPS_MULTIPLE:
            raise UserError(f"steps={self.steps} must be a multiple of {STEPS_MULTIPLE}")
        check_training(self)
        check_vocab_size(self.vocab_size)
        if self.num_texts < 8 or self.num_held_out < 2 * self.num_texts:
            raise UserError(
                f"num_texts={self.num_texts} must be at least 8, and "
                f"num_held_out={self.num_held_out} at least twice that"
            )
        if self.prompt_tokens + self.max_new_tokens + 1 > self.seq_len:
            raise UserError(
                f"prompt_tokens={self.prompt_tokens}, max_new_tokens={self.max_new_tokens} and BOS "
                f"do not fit into seq_len={self.seq_len}"
            )

    def steps_of(self, training_set: TrainingSet) -> int:
        """Returns the steps of an arm's own training."""
        return self.steps // 2 if training_set.init_from else self.steps

    def checkpoint_steps(self, training_set: TrainingSet) -> dict[str, int]:
        """Returns the steps of the evaluated checkpoints by stage: "1/4", "1/2", "end"."""
        steps = self.steps_of(training_set)
        return {"1/4": steps // 4, "1/2": steps // 2, "end": steps}

    def sampling_configs_at(self, stage: str) -> tuple[SamplingConfig, ...]:
        """Returns all sampling configs for the end, the first few for earlier stages."""
        if stage == "end":
            return self.sampling_configs
        return self.sampling_configs[: self.num_early_sampling_configs]


def to_json(config: TextQualityConfig) -> dict:
    """Returns a text quality config as a JSON-able dict."""
    values = to_plain(config)
    training_sets = {each.pop("name"): each for each in values.pop("training_sets")}
    if not config.smoke_test:
        del values["smoke_test"]
    return {"experiment": EXPERIMENT, **values, "training_sets": training_sets}


def from_json(saved: dict[str, Any]) -> TextQualityConfig:
    """Inverse of `to_json`.

    Raises:
      UserError: a field is missing, unknown or of another type.
    """
    fields = {name: value for name, value in saved.items() if name != "experiment"}
    training_sets = fields.get("training_sets")
    if not isinstance(training_sets, dict):
        raise UserError("training_sets must be an object by name")
    named = [{"name": name, **each} for name, each in training_sets.items()]
    return parse(TextQualityConfig, fields | {"training_sets": named}, "config")


def make_training_sets(profile: str) -> tuple[TrainingSet, ...]:
    """Returns the training sets of a study profile; "quick" has only some of them."""
    a, b, few = CorpusPart("A"), CorpusPart("B"), CorpusPart("B", fraction=1 / 16)
    training_sets = (
        TrainingSet("A", "A alone.", (a,), ("A",)),
        TrainingSet("A75 B25", "Three parts A, one part B.", (CorpusPart("A", 3.0), b), DOMAINS),
        TrainingSet("A50 B50", "A and B in equal parts.", (a, b), DOMAINS),
        TrainingSet("A25 B75", "One part A, three parts B.", (a, CorpusPart("B", 3.0)), DOMAINS),
        TrainingSet("B", "B alone.", (b,), ("B",)),
        TrainingSet(
            "A repeats",
            "Half of the tokens from all of A, half from one in 64 of its texts, repeated.",
            (a, CorpusPart("A", fraction=1 / 64)),
            ("A",),
        ),
        TrainingSet(
            "A noisy",
            "Half A, half A with one character in ten dropped, doubled or replaced.",
            (a, CorpusPart("A", noise_rate=0.1)),
            ("A",),
        ),
        TrainingSet(
            "A 1/8",
            "One in 8 texts of A, in more epochs.",
            (CorpusPart("A", fraction=1 / 8),),
            ("A",),
        ),
        TrainingSet(
            "A 1/64",
            "One in 64 texts of A, in many epochs.",
            (CorpusPart("A", fraction=1 / 64),),
            ("A",),
        ),
        TrainingSet("few B", "One in 16 texts of B, from scratch.", (few,), ("B",)),
        TrainingSet(
            "A, few B",
            "Pretrained on A for half of the tokens, then fine-tuned on the same few texts of B.",
            (few,),
            ("B",),
            init_from="A",
        ),
    )
    if profile != "quick":
        return training_sets
    quick = ("A", "A50 B50", "A 1/64", "few B", "A, few B")
    return tuple(each for each in training_sets if each.name in quick)


SAMPLING_CONFIGS = (
    SamplingConfig(),
    SamplingConfig(temperature=0.7),
    SamplingConfig(temperature=0.4),
    SamplingConfig(temperature=1.3),
    SamplingConfig(top_p=0.6),
    SamplingConfig(top_p=0.9),
    SamplingConfig(min_p=0.1),
)


def make_config(profile: str, domains: tuple[str, str], **options) -> TextQualityConfig:
    """Returns the text quality config of a profile for two domains.

    Args:
      profile: quick, default or full.
      domains: data sets A and B.
      **options: further fields of `TextQualityConfig`, such as `data_dir`.

    Raises:
      UserError: unknown profile.
    """
    check_profile(profile)
    default = TextQualityConfig(
        domains=domains,
        training_sets=make_training_sets(profile),
        sampling_configs=SAMPLING_CONFIGS,
        model=ModelConfig(num_layers=2, d_model=128, num_heads=2, num_kv_heads=2, mlp_dim=512),
        optimizer=OptimizerConfig(learning_rate=0.02, adam_learning_rate=0.01),
        steps=160,
        batch_size=40,
        vocab_size=1024,
        seq_len=96,
        train_bytes=3_500_000,
        num_texts=128,
        prompt_tokens=12,
        max_new_tokens=64,
        num_held_out=512,
        **options,
    )
    if profile == "full":
        return dataclasses.replace(
            default,
            steps=12 * default.steps,
            num_texts=512,
            train_bytes=40_000_000,
            num_held_out=2048,
            num_early_sampling_configs=len(SAMPLING_CONFIGS),
        )
    if profile == "quick":
        return dataclasses.replace(
            default,
            model=ModelConfig(num_layers=1, d_model=64, num_heads=2, num_kv_heads=2, mlp_dim=128),
            sampling_configs=(SAMPLING_CONFIGS[0], SAMPLING_CONFIGS[2], SAMPLING_CONFIGS[5]),
            steps=24,
            batch_size=16,
            vocab_size=512,
            train_bytes=300_000,
            num_texts=24,
            num_held_out=96,
            smoke_test=True,
        )
    return default
