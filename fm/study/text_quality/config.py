"""What a study of text runs: training sets, decodings, sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.sampling import Decoding
from fm.training.optimizer import OptimizerConfig

SCHEMA = 1
DOMAINS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class Part:
    """One ingredient of a training set.

    Attributes:
      domain: "A" or "B".
      weight: its share of the tokens, in any unit.
      texts: share of the domain's training texts it has, from the first on.
      noise: share of characters that are dropped, doubled or replaced.
    """

    domain: str
    weight: float = 1.0
    texts: float = 1.0
    noise: float = 0.0


@dataclasses.dataclass(frozen=True)
class Diet:
    """One arm: what its model was fed. All see the same number of tokens.

    Attributes:
      name: of the arm.
      says: one sentence on what it was fed.
      parts: see `Part`.
      writes: the domains it is asked to write in.
      start: the arm it goes on from, at half that arm's steps, for the other half; or None.
    """

    name: str
    says: str
    parts: tuple[Part, ...]
    writes: tuple[str, ...]
    start: str | None = None


@dataclasses.dataclass(frozen=True)
class Whose:
    """Whose vectors the MAUVE-style area compares texts by.

    Attributes:
      name: of a published model, as asked for; or "terms", those of the study's own texts.
      source: where the model comes from.
      licence: of the model.
      digest: of its architecture and numbers.
    """

    name: str
    source: str = ""
    licence: str = ""
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class TextQualityConfig:
    """A whole study of text.

    Attributes:
      domains: data sets A and B, names or paths.
      diets: the arms.
      decodings: of every arm at its end; the first is the plain one.
      early: how many of them, from the first on, are looked at before the end.
      model: architecture, but for its vocabulary.
      optimizer: of all training.
      steps: of every arm, a multiple of 8.
      batch_size: sequences per step.
      vocab: tokens of the one BPE vocabulary that all arms share.
      length: tokens in a sequence.
      train_bytes: of each domain, at most, for the arms; the judge gets half as much of others.
      texts: in every sample, and of real text.
      prompt_tokens: of a held-out text that are given.
      new_tokens: that are written, no fewer, so that samples compare.
      held_out: texts of each domain set aside; prompts and real samples are taken from them.
      features: whose vectors texts are compared by.
      seed: of everything random.
      data_dir: where prepared data sets lie.
      text_column: of files.
      fingerprints: of the data as loaded.
    """

    domains: tuple[str, str]
    diets: tuple[Diet, ...]
    decodings: tuple[Decoding, ...]
    model: ModelConfig
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    vocab: int
    length: int
    train_bytes: int
    texts: int
    prompt_tokens: int
    new_tokens: int
    held_out: int
    early: int = 2
    features: Whose = Whose("terms")
    seed: int = 0
    data_dir: str | None = None
    text_column: str = "text"
    fingerprints: tuple[str, ...] = ()

    def __post_init__(self):
        if self.steps < 8 or self.steps % 8:
            raise UserError(f"steps={self.steps} must be a multiple of 8")
        if self.texts < 8 or self.held_out < 2 * self.texts:
            raise UserError(
                f"texts={self.texts} must be at least 8, and held_out={self.held_out} twice that"
            )
        if self.prompt_tokens + self.new_tokens + 1 > self.length:
            raise UserError(
                f"prompt_tokens={self.prompt_tokens} and new_tokens={self.new_tokens} do not fit a "
                f"sequence of length={self.length} with its start"
            )

    def steps_of(self, diet: Diet) -> int:
        """Steps of an arm's own training."""
        return self.steps // 2 if diet.start else self.steps

    def stages(self, diet: Diet) -> dict[str, int]:
        """The checkpoints looked at: their name and step."""
        steps = self.steps_of(diet)
        return {"1/4": steps // 4, "1/2": steps // 2, "end": steps}

    def decodings_at(self, stage: str) -> tuple[Decoding, ...]:
        """At the end all; at the checkpoints before it the first few, to save time."""
        return self.decodings if stage == "end" else self.decodings[: self.early]


def as_json(config: TextQualityConfig) -> dict:
    """A study as plain JSON, its arms by name."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    diets = {diet.pop("name"): diet for diet in plain.pop("diets")}
    return {"experiment": "text_quality", **plain, "diets": diets}


def digest(config: TextQualityConfig) -> str:
    """Short hash of everything in a study."""
    text = json.dumps(as_json(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
