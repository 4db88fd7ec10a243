"""The models: one an arm, and the judge, each with its checkpoints along the way."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import re

import jax
import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import text_batches
from fm.data.pieces import text_pieces
from fm.model.config import ModelConfig
from fm.study.text_quality.config import Diet, Part, TextQualityConfig
from fm.study.text_quality.corpora import Domain, part_texts
from fm.training import sharding
from fm.training.checkpoint import load_params
from fm.training.loop import Start, train
from fm.training.objectives import Objective
from fm.training.peak import gemm_rate
from fm.training.run import RunConfig, Trained
from fm.training.unit import BitsPerByte

JUDGE = Diet("judge", "Equal parts of other texts of A and B.", (Part("A"), Part("B")), ())


@dataclasses.dataclass(frozen=True, eq=False)
class Arms:
    """What trains and finds the models of a study.

    Attributes:
      config: of the study.
      found: the domains.
      tokenizer: of all.
      out: folder of the models.
    """

    config: TextQualityConfig
    found: dict[str, Domain]
    tokenizer: bpe.Tokenizer
    out: pathlib.Path

    @property
    def model(self) -> ModelConfig:
        """The architecture, of all arms."""
        return dataclasses.replace(self.config.model, vocab=self.tokenizer.vocab_size)

    def folder(self, diet: Diet) -> pathlib.Path:
        """Of a model."""
        return self.out / slug(diet.name)

    def params(self, diet: Diet, step: int) -> dict:
        """Of a trained model, at a step that was kept."""
        return load_params(self.folder(diet) / "checkpoints", step)[0]

    def train(self, diet: Diet) -> Trained:
        """Trains a model, or goes on where an earlier call stopped.

        Raises:
          UserError: the loss stopped being finite.
        """
        config, steps = self.config, self.config.steps_of(diet)
        texts = [self._texts(diet, part) for part in diet.parts]
        pieces = [text_pieces(self.tokenizer, each, config.length) for each in texts]
        tokens = sum(len(piece) for each in pieces for piece in each)
        own_bytes = sum(len(text.encode()) for each in texts for text in each)
        batches = text_batches(
            pieces,
            batch_size=config.batch_size,
            length=config.length,
            seed=config.seed,
            weights=[part.weight for part in diet.parts],
        )
        return train(
            self._start(diet),
            batches,
            self.model,
            Objective(next=1.0, masked=0.0),
            config.optimizer,
            RunConfig(
                steps=steps,
                seed=config.seed,
                checkpoint_every=steps // 4,
                keep_every=steps // 4,
                log_every=max(1, steps // 40),
            ),
            out=self.folder(diet),
            unit=BitsPerByte(own_bytes / tokens),
            label=diet.name,
            peak=gemm_rate(self.model.dtype),
            identity={
                "texts": hashlib.sha256("\0".join(map("\1".join, texts)).encode()).hexdigest(),
                "tokenizer": self.tokenizer.digest(),
            },
        )

    def _texts(self, diet: Diet, part: Part) -> list[str]:
        if diet is JUDGE:
            return self.found[part.domain].judge
        return part_texts(part, self.found)

    def _start(self, diet: Diet) -> Start:
        if diet.start is None:
            # The judge starts elsewhere, so that it shares nothing with the arms.
            seed = self.config.seed + (diet is JUDGE)
            return functools.partial(sharding.fresh, jax.random.key(seed), self.model)
        before = next(each for each in self.config.diets if each.name == diet.start)
        return self.params(before, self.config.steps // 2)


def slug(name: str) -> str:
    """A name made of letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def rows(tokenizer: bpe.Tokenizer, texts: list[str], length: int) -> tuple[np.ndarray, ...]:
    """The beginnings of texts as rows to be scored.

    Returns:
      tokens int32 [N, length], led by BOS; counted bool [N, length]; UTF-8 bytes counted, int [N].
    """
    tokens_NL = np.zeros((len(texts), length), np.int32)
    tokens_NL[:, 0] = tokenizer.bos
    for row, ids in zip(tokens_NL, tokenizer.encode(texts), strict=True):
        row[1 : 1 + len(ids)] = ids[: length - 1]
    counted_NL = tokens_NL >= bpe.SPECIALS
    return tokens_NL, counted_NL, spelled_bytes(tokenizer, tokens_NL)


def spelled_bytes(tokenizer: bpe.Tokenizer, tokens_NL: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each row's tokens stand for, int [N]."""
    lengths_V = np.array([len(each) for each in tokenizer.spelled(range(tokenizer.vocab_size))])
    return lengths_V[tokens_NL].sum(1)
