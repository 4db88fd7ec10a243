"""What a study of text runs: training sets, decodings, sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.sampling import SamplingConfig
from fm.training.optimizer import OptimizerConfig

SCHEMA = 1
DOMAINS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class CorpusPart:
    """One ingredient of a training set.

    Attributes:
      domain: "A" or "B".
      weight: its share of the tokens, in any unit.
      fraction: share of the domain's training texts it has, from the first on.
      noise_rate: share of characters that are dropped, doubled or replaced.
    """

    domain: str
    weight: float = 1.0
    fraction: float = 1.0
    noise_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """One arm: what its model was fed. All see the same number of tokens.

    Attributes:
      name: of the arm.
      description: one sentence on what it was fed.
      parts: see `Part`.
      prompt_domains: the domains it is asked to write in.
      init_from: the arm it goes on from, at half that arm's steps, for the other half; or None.
    """

    name: str
    description: str
    parts: tuple[CorpusPart, ...]
    prompt_domains: tuple[str, ...]
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class EmbedderInfo:
    """Whose vectors the MAUVE-style area compares texts by.

    Attributes:
      name: of a published model, as asked for; or "terms", those of the study's own texts.
      source: where the model comes from.
      license: of the model.
      digest: of its architecture and numbers.
    """

    name: str
    source: str = ""
    license: str = ""
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class TextQualityConfig:
    """A whole study of text.

    Attributes:
      domains: data sets A and B, names or paths.
      training_sets: the arms.
      sampling_configs: of every arm at its end; the first is the plain one.
      num_early_sampling_configs: how many of them, from the first on, are looked at before the end.
      model: architecture, but for its vocabulary.
      optimizer: of all training.
      steps: of every arm, a multiple of 8.
      batch_size: sequences per step.
      vocab_size: tokens of the one BPE vocabulary that all arms share.
      seq_len: tokens in a sequence.
      train_bytes: of each domain, at most, for the arms; the judge gets half as much of others.
      num_texts: in every sample, and of real text.
      prompt_tokens: of a held-out text that are given.
      max_new_tokens: that are written, no fewer, so that samples compare.
      num_held_out: texts of each domain set aside; prompts and real samples are taken from them.
      embedder: whose vectors texts are compared by.
      seed: of everything random.
      data_dir: where prepared data sets lie.
      text_column: of files.
      fingerprints: of the data as loaded.
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
    embedder: EmbedderInfo = EmbedderInfo("terms")
    seed: int = 0
    data_dir: str | None = None
    text_column: str = "text"
    fingerprints: tuple[str, ...] = ()

    def __post_init__(self):
        if self.steps < 8 or self.steps % 8:
            raise UserError(f"steps={self.steps} must be a multiple of 8")
        if self.num_texts < 8 or self.num_held_out < 2 * self.num_texts:
            raise UserError(
                f"num_texts={self.num_texts} must be at least 8, and num_held_out={self.num_held_out} twice that"
            )
        if self.prompt_tokens + self.max_new_tokens + 1 > self.seq_len:
            raise UserError(
                f"prompt_tokens={self.prompt_tokens} and max_new_tokens={self.max_new_tokens} do not fit a "
                f"sequence of seq_len={self.seq_len} with its start"
            )

    def steps_of(self, diet: TrainingSet) -> int:
        """Steps of an arm's own training."""
        return self.steps // 2 if diet.init_from else self.steps

    def checkpoint_steps(self, diet: TrainingSet) -> dict[str, int]:
        """The checkpoints looked at: their name and step."""
        steps = self.steps_of(diet)
        return {"1/4": steps // 4, "1/2": steps // 2, "end": steps}

    def sampling_configs_at(self, stage: str) -> tuple[SamplingConfig, ...]:
        """At the end all; at the checkpoints before it the first few, to save time."""
        return (
            self.sampling_configs
            if stage == "end"
            else self.sampling_configs[: self.num_early_sampling_configs]
        )


def to_json(config: TextQualityConfig) -> dict:
    """A study as plain JSON, its arms by name."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    diets = {diet.pop("name"): diet for diet in plain.pop("diets")}
    return {"experiment": "text_quality", **plain, "diets": diets}


def config_digest(config: TextQualityConfig) -> str:
    """Short hash of everything in a study."""
    text = json.dumps(to_json(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Whose vectors a profile compares texts by: in the quick one nothing is fetched.
DEFAULT_EMBEDDERS = {"quick": "terms", "default": "minilm-l6", "full": "minilm-l6"}
PROFILES = tuple(DEFAULT_EMBEDDERS)
FEW_TEXTS_FRACTION = 1 / 16


def make_training_sets(profile: str) -> tuple[TrainingSet, ...]:
    """The arms, for a first and a second domain."""
    a, b, few = CorpusPart("A"), CorpusPart("B"), CorpusPart("B", fraction=FEW_TEXTS_FRACTION)
    every = (
        TrainingSet("A", "A alone.", (a,), ("A",)),
        TrainingSet("A75 B25", "Three parts A, one part B.", (CorpusPart("A", 3.0), b), ("A", "B")),
        TrainingSet("A50 B50", "A and B in equal parts.", (a, b), ("A", "B")),
        TrainingSet("A25 B75", "One part A, three parts B.", (a, CorpusPart("B", 3.0)), ("A", "B")),
        TrainingSet("B", "B alone.", (b,), ("B",)),
        TrainingSet(
            "A repeats",
            "Half of it all of A, half of it one in 64 of its texts, over and over.",
            (a, CorpusPart("A", fraction=1 / 64)),
            ("A",),
        ),
        TrainingSet(
            "A noisy",
            "Half of it A, half of it A with one character in ten dropped, doubled or replaced.",
            (a, CorpusPart("A", noise_rate=0.1)),
            ("A",),
        ),
        TrainingSet(
            "A 1/8",
            "One in 8 texts of A, in more passes.",
            (CorpusPart("A", fraction=1 / 8),),
            ("A",),
        ),
        TrainingSet(
            "A 1/64",
            "One in 64 texts of A, in many passes.",
            (CorpusPart("A", fraction=1 / 64),),
            ("A",),
        ),
        TrainingSet("few B", "One in 16 texts of B, from scratch.", (few,), ("B",)),
        TrainingSet(
            "A, few B",
            "Pretrained on A for half of the tokens, then tuned on the same few texts of B.",
            (few,),
            ("B",),
            init_from="A",
        ),
    )
    if profile != "quick":
        return every
    kept = ("A", "A50 B50", "A 1/64", "few B", "A, few B")
    return tuple(diet for diet in every if diet.name in kept)


SAMPLING_CONFIGS = (
    SamplingConfig(),
    SamplingConfig(temperature=0.7),
    SamplingConfig(temperature=0.4),
    SamplingConfig(temperature=1.3),
    SamplingConfig(top_p=0.6),
    SamplingConfig(top_p=0.9),
    SamplingConfig(min_p=0.1),
)


def make_config(profile: str, domains: tuple[str, str], **where) -> TextQualityConfig:
    """The study of a profile.

    Args:
      profile: one of `PROFILES`.
      domains: data sets A and B.
      **where: fields that say where data lies.

    Raises:
      UserError: an unknown profile.
    """
    if profile not in PROFILES:
        raise UserError(f"profile {profile!r} is not known; accepted are {', '.join(PROFILES)}")
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
        **where,
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
        )
    return default
