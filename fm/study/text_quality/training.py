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
from fm.data.tokenizer import tokenize_chunks
from fm.model.config import ModelConfig
from fm.study.text_quality.config import CorpusPart, TextQualityConfig, TrainingSet
from fm.study.text_quality.corpora import Domain, part_texts
from fm.training import train_state
from fm.training.checkpoint import load_params
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import BitsPerByte
from fm.training.objectives import Objective
from fm.training.runtime import gemm_flops_per_second
from fm.training.train_loop import train
from fm.training.trial import ParamsOrInit

SCORER_SET = TrainingSet(
    "judge", "Equal parts of other texts of A and B.", (CorpusPart("A"), CorpusPart("B")), ()
)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelTrainer:
    """What trains and finds the models of a study.

    Attributes:
      config: of the study.
      domains: the domains.
      tokenizer: of all.
      out_dir: folder of the models.
    """

    config: TextQualityConfig
    domains: dict[str, Domain]
    tokenizer: bpe.Tokenizer
    out_dir: pathlib.Path

    @property
    def model_config(self) -> ModelConfig:
        """The architecture, of all arms."""
        return dataclasses.replace(self.config.model, vocab_size=self.tokenizer.vocab_size)

    def model_dir(self, diet: TrainingSet) -> pathlib.Path:
        """Of a model."""
        return self.out_dir / slug(diet.name)

    def params(self, diet: TrainingSet, step: int) -> dict:
        """Of a trained model, at a step that was kept."""
        return load_params(self.model_dir(diet) / "checkpoints", step)[0]

    def train(self, diet: TrainingSet) -> TrainResult:
        """Trains a model, or goes on where an earlier call stopped.

        Raises:
          UserError: the loss stopped being finite.
        """
        config, steps = self.config, self.config.steps_of(diet)
        texts = [self._texts(diet, part) for part in diet.parts]
        pieces = [tokenize_chunks(self.tokenizer, each, config.seq_len) for each in texts]
        tokens = sum(len(piece) for each in pieces for piece in each)
        own_bytes = sum(len(text.encode()) for each in texts for text in each)
        batches = text_batches(
            pieces,
            batch_size=config.batch_size,
            length=config.seq_len,
            seed=config.seed,
            weights=[part.weight for part in diet.parts],
        )
        return train(
            self._start(diet),
            batches,
            self.model_config,
            Objective(causal_lm=1.0, masked_lm=0.0),
            config.optimizer,
            TrainConfig(
                steps=steps,
                seed=config.seed,
                checkpoint_every=steps // 4,
                keep_period=steps // 4,
                log_every=max(1, steps // 40),
            ),
            out_dir=self.model_dir(diet),
            metric_unit=BitsPerByte(own_bytes / tokens),
            run_name=diet.name,
            gemm_flops_per_second=gemm_flops_per_second(self.model_config.dtype),
            identity={
                "texts": hashlib.sha256("\0".join(map("\1".join, texts)).encode()).hexdigest(),
                "tokenizer": self.tokenizer.digest(),
            },
        )

    def _texts(self, diet: TrainingSet, part: CorpusPart) -> list[str]:
        if diet is SCORER_SET:
            return self.domains[part.domain].scorer_train
        return part_texts(part, self.domains)

    def _start(self, diet: TrainingSet) -> ParamsOrInit:
        if diet.init_from is None:
            # The judge starts elsewhere, so that it shares nothing with the arms.
            seed = self.config.seed + (diet is SCORER_SET)
            return functools.partial(train_state.init_sharded, jax.random.key(seed), self.model_config)
        before = next(each for each in self.config.training_sets if each.name == diet.init_from)
        return self.params(before, self.config.steps // 2)


def slug(name: str) -> str:
    """A name made of letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def encode_for_scoring(
    tokenizer: bpe.Tokenizer, texts: list[str], length: int
) -> tuple[np.ndarray, ...]:
    """The beginnings of texts as rows to be scored.

    Returns:
      tokens int32 [N, length], led by BOS; counted bool [N, length]; UTF-8 bytes counted, int [N].
    """
    tokens_NL = np.zeros((len(texts), length), np.int32)
    tokens_NL[:, 0] = tokenizer.bos
    for row, ids in zip(tokens_NL, tokenizer.encode(texts), strict=True):
        row[1 : 1 + len(ids)] = ids[: length - 1]
    counted_NL = tokens_NL >= bpe.NUM_SPECIALS
    return tokens_NL, counted_NL, decoded_byte_counts(tokenizer, tokens_NL)


def decoded_byte_counts(tokenizer: bpe.Tokenizer, tokens_NL: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each row's tokens stand for, int [N]."""
    lengths_V = np.array([len(each) for each in tokenizer.token_bytes(range(tokenizer.vocab_size))])
    return lengths_V[tokens_NL].sum(1)
