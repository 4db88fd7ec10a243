"""What `fm pretrain` trains on what: one data set, text read from disk, or several data sets."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Self

from fm.data.datasets import Dataset, Split
from fm.study import joint_pretraining
from fm.study.config import Recipe, short_name
from fm.study.dry_run import StageEstimate, joint_stage, pretraining_stage
from fm.study.extension import extended_config
from fm.study.joint_pretraining import JointRecipe
from fm.study.model_card import DataSource
from fm.study.pretraining import describe_pretraining_attention, pretrain, pretrain_streamed
from fm.study.processing import Processor, build_processor
from fm.study.seen_examples import save_corpus_ids
from fm.study.step_estimate import StepEstimate, recipe_step
from fm.study.streamed_text import StreamedText
from fm.training.config import TrainResult


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainingRun:
    """Pretraining on one data set: what is trained on what, and how.

    Attributes:
      config: as in config.json.
      recipe: of model and training.
      sources: name and data of each data set.
      cadence: keyword arguments of `fm.study.pretraining.pretrain_config`.
      data: what a model card says of the data.
    """

    config: dict[str, Any]
    recipe: Recipe | JointRecipe
    sources: Any
    cadence: dict[str, Any]
    data: tuple[DataSource, ...]

    @property
    def seed(self) -> int:
        """Random seed."""
        return self.config["seed"]

    @property
    def units(self) -> tuple[str, str]:
        """What is read and the unit of its loss, in words."""
        is_text = self.sources.modality == "text"
        return ("tokens", "bits per byte") if is_text else ("patches", "bits per dimension")

    def corpora(self) -> list[Split]:
        """Returns the examples of each data set that are trained on."""
        return [self.sources.train]

    def save_ids(self, out_dir: pathlib.Path) -> None:
        """Writes the ids of the examples, see `fm.study.seen_examples`."""
        save_corpus_ids(self.corpora(), out_dir)

    def extending(self, out_dir: pathlib.Path) -> Self:
        """Returns the run as a continuation of the finished, shorter run in a folder, if any.

        Raises:
          UserError: see `fm.study.extension.extended_config`.
        """
        config = extended_config(self.config, out_dir)
        if "extended_from" not in config:
            return self
        cadence = self.cadence | {"extended_from": tuple(config["extended_from"])}
        return dataclasses.replace(self, config=config, cadence=cadence)

    def stage(self) -> StageEstimate:
        """Returns what --dry_run prints of it."""
        data: Dataset = self.sources
        estimate = recipe_step(self.recipe, data.modality, data.train, data.info.get("rate"))
        return self._stage(estimate, f"{len(data.train):,} examples")

    def _stage(self, estimate: StepEstimate, examples: str) -> StageEstimate:
        name = f"pretraining on {short_name(self.config['dataset']['name'])}"
        stage = pretraining_stage(name, self.recipe.steps, estimate, self.recipe, examples=examples)
        if (minutes := self.recipe.max_pretrain_minutes) is None:
            return stage
        end = f"until the validation loss is flat, or {minutes:g} min are over"
        return dataclasses.replace(stage, details=(*stage.details, end), seconds=60 * minutes)

    def build_processor(self, out_dir: pathlib.Path) -> Processor:
        """Returns tokenizer and layouts; trains the tokenizer if the folder has none."""
        data: Dataset = self.sources
        return build_processor(
            data.train, data.modality, self.recipe, out_dir, data.info.get("rate")
        )

    def attention(self, processor: Processor) -> dict[str, str]:
        """Returns the attention implementations that training uses and why, by modality."""
        modality, objective = self.sources.modality, self.recipe.objective
        return {
            modality: describe_pretraining_attention(processor, modality, objective, self.recipe)
        }

    def train(self, processor: Processor, out_dir: pathlib.Path) -> TrainResult:
        """Trains or resumes in the folder."""
        data: Dataset = self.sources
        return pretrain(
            data.train,
            data.modality,
            self.recipe,
            processor,
            seed=self.seed,
            out_dir=out_dir,
            run_name=short_name(self.config["dataset"]["name"]),
            **self.cadence,
        )


class StreamedPretrainingRun(PretrainingRun):
    """Pretraining on text that is read from disk; its sources are a `StreamedText`."""

    def save_ids(self, out_dir: pathlib.Path) -> None:
        """Writes the ids of the documents, see `fm.study.seen_examples`."""
        self.sources.save_ids(out_dir)

    def stage(self) -> StageEstimate:
        """Returns what --dry_run prints of it."""
        text: StreamedText = self.sources
        estimate = recipe_step(self.recipe, text.modality, None)
        return self._stage(estimate, f"{text.plan.size / 1e6:,.0f} MB of text, streamed")

    def build_processor(self, out_dir: pathlib.Path) -> Processor:
        """Tokenizes the text; trains the tokenizer first if the folder has none."""
        return self.sources.build_processor(self.recipe, out_dir)

    def train(self, processor: Processor, out_dir: pathlib.Path) -> TrainResult:
        """Trains or resumes in the folder."""
        return pretrain_streamed(
            self.sources.tokenized(),
            self.recipe,
            processor,
            seed=self.seed,
            out_dir=out_dir,
            run_name=short_name(self.sources.name),
            **self.cadence,
        )


class JointPretrainingRun(PretrainingRun):
    """Pretraining of one model on several data sets; see `PretrainingRun`."""

    @property
    def units(self) -> tuple[str, str]:
        """What is read and the unit of its loss, in words."""
        return "tokens and patches", "bits per byte or dimension"

    def corpora(self) -> list[Split]:
        """Returns the examples of each data set that are trained on."""
        return [source.corpus for source in self.sources]

    def stage(self) -> StageEstimate:
        """Returns what --dry_run prints of it."""
        name = f"pretraining on {', '.join(source.name for source in self.sources)}"
        return joint_stage(name, self.recipe, self.sources)

    def attention(self, processor: Processor) -> dict[str, str]:
        """Returns the attention implementations that training uses and why, by modality."""
        modalities = {source.modality for source in self.sources}
        return {
            modality: describe_pretraining_attention(processor, modality, objective, self.recipe)
            for modality, objective in self.recipe.objectives
            if modality in modalities
        }

    def build_processor(self, out_dir: pathlib.Path) -> Processor:
        """Returns tokenizer and layouts; trains the tokenizer if the folder has none."""
        return joint_pretraining.build_joint_processor(self.sources, self.recipe, out_dir)

    def train(self, processor: Processor, out_dir: pathlib.Path) -> TrainResult:
        """Trains or resumes in the folder."""
        return joint_pretraining.pretrain_joint(
            self.sources,
            self.recipe,
            processor,
            seed=self.seed,
            out_dir=out_dir,
            run_name="joint",
            **self.cadence,
        )
