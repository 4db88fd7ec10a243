"""Training of the study's models: one per training set, and the scorer."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import re

import jax

from fm.data import tokenizer as bpe
from fm.data.batches import text_batches
from fm.data.tokenizer import tokenize_chunks
from fm.model.config import ModelConfig
from fm.study.pretraining import device_rates
from fm.study.text_quality.config import CorpusPart, TextQualityConfig, TrainingSet
from fm.study.text_quality.corpora import Domain, part_texts
from fm.training.checkpoint import load_params
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import BitsPerByte
from fm.training.objectives import PretrainingObjective
from fm.training.train_loop import train
from fm.training.train_state import init_sharded
from fm.training.trial import ParamsOrInit

SCORER_SET = TrainingSet(
    "scorer", "Equal parts of other texts of A and B.", (CorpusPart("A"), CorpusPart("B")), ()
)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelTrainer:
    """Trains the models of a text quality study, one per training set, and loads checkpoints.

    Attributes:
      config: of the study.
      domains: by letter.
      tokenizer: of all models.
      out_dir: folder of the models.
    """

    config: TextQualityConfig
    domains: dict[str, Domain]
    tokenizer: bpe.Tokenizer
    out_dir: pathlib.Path

    @property
    def model_config(self) -> ModelConfig:
        """The architecture of all models."""
        return dataclasses.replace(self.config.model, vocab_size=self.tokenizer.vocab_size)

    def model_dir(self, training_set: TrainingSet) -> pathlib.Path:
        """Returns the folder of a model."""
        return self.out_dir / slug(training_set.name)

    def params(self, training_set: TrainingSet, step: int) -> dict:
        """Returns the parameters of a trained model's checkpoint."""
        return load_params(self.model_dir(training_set) / "checkpoints", step)[0]

    def train(self, training_set: TrainingSet) -> TrainResult:
        """Trains a model, or resumes its training.

        Raises:
          UserError: the loss became non-finite.
        """
        config, steps = self.config, self.config.steps_of(training_set)
        texts = [self._texts(training_set, part) for part in training_set.parts]
        chunks = [tokenize_chunks(self.tokenizer, each, config.seq_len) for each in texts]
        num_tokens = sum(len(chunk) for each in chunks for chunk in each)
        num_bytes = sum(len(text.encode()) for each in texts for text in each)
        batches = text_batches(
            chunks,
            batch_size=config.batch_size,
            length=config.seq_len,
            seed=config.seed,
            weights=[part.weight for part in training_set.parts],
        )
        return train(
            self._params_or_init(training_set),
            batches,
            self.model_config,
            PretrainingObjective(causal_lm=1.0, masked_lm=0.0),
            config.optimizer,
            TrainConfig(
                steps=steps,
                seed=config.seed,
                checkpoint_every=steps // 4,
                keep_period=steps // 4,
                log_every=max(1, steps // 40),
            ),
            out_dir=self.model_dir(training_set),
            metric_unit=BitsPerByte(num_bytes / num_tokens),
            run_name=training_set.name,
            **device_rates(self.model_config.dtype),
            identity={
                "texts": hashlib.sha256("\0".join(map("\1".join, texts)).encode()).hexdigest(),
                "tokenizer": self.tokenizer.digest(),
            },
        )

    def _texts(self, training_set: TrainingSet, part: CorpusPart) -> list[str]:
        if training_set is SCORER_SET:
            return self.domains[part.domain].scorer_train
        return part_texts(part, self.domains)

    def _params_or_init(self, training_set: TrainingSet) -> ParamsOrInit:
        if training_set.init_from is None:
            # The scorer has another seed, so that it shares nothing with the arms.
            seed = self.config.seed + (training_set is SCORER_SET)
            return functools.partial(init_sharded, jax.random.key(seed), self.model_config)
        before = next(
            each for each in self.config.training_sets if each.name == training_set.init_from
        )
        return self.params(before, self.config.steps // 2)


def slug(name: str) -> str:
    """Returns a name as a file name: lower case, with dashes for other characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
