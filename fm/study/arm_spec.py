"""What an arm of a study says of itself: how it is named, built, compared, costed and plotted."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

from fm.study.built_arm import BuiltArm, InitialModel
from fm.study.config import Recipe, StudyConfig
from fm.study.stages import StagePlan
from fm.study.task import Task

# Pretraining corpora that `fm.study.tasks.prepare_task` decontaminates.
IN_DOMAIN, OUT_OF_DOMAIN, JOINT = "in_domain", "out_of_domain", "joint"
# What the model of a pretrained arm without a corpus was pretrained on, by others.
PUBLISHED_DATA = "published data"


class ArmContext(Protocol):
    """Protocol of what arms are built from: study config, output folder and initial models.

    Attributes:
      config: of the study.
      out_dir: folder of the study.
      loaded: by (task, arm), what `ArmSpec.load` returned.
      stages: of the study, with the number and time of each.
    """

    stages: StagePlan

    @property
    def config(self) -> StudyConfig: ...  # noqa: D102
    @property
    def out_dir(self) -> pathlib.Path: ...  # noqa: D102
    @property
    def loaded(self) -> dict[tuple[str, str], Any]: ...  # noqa: D102

    def initial_model(self, task: Task, corpus: str, *, pretrained: bool) -> InitialModel:
        """Returns the model of a corpus: pretrained on it, or fresh with its processor."""
        ...


@dataclasses.dataclass(frozen=True)
class CostAllocation:
    """How an arm's pretraining and tuning cost is shared among tasks.

    Attributes:
      pretraining: "none"; "per_modality" (shared by the tasks of a modality); "shared" (by all
        tasks); or "unknown" (paid by others).
      tuning: "per_task", or "shared" if one model is tuned for all tasks at once.
      is_network: whether its FLOPs and parameters are counted.
      no_break_even_reason: why there is no number of tasks from which pretraining pays off.
    """

    pretraining: str = "none"
    tuning: str = "per_task"
    is_network: bool = True
    no_break_even_reason: str = ""


@dataclasses.dataclass(frozen=True)
class PlotStyle:
    """Color, line style and marker of an arm in plots."""

    color: str = "#777777"
    linestyle: str | tuple[int, tuple[int, ...]] = ":"
    marker: str = "*"


@dataclasses.dataclass(frozen=True)
class ArmSpec:
    """Registry entry of a study arm: how it is named, built, compared, costed and plotted.

    Attributes:
      name: as in --arms and in results.
      title: the arm as the subject of a sentence; {data} stands for the task's kind of data.
      description: one sentence on what it learns from.
      build: builds the arm of a task.
      load: loads what is to be checked before anything is trained; the context keeps it.
      corpus: pretraining corpus, "in_domain", "out_of_domain" or "joint"; None if it has none.
      pretrained: whether its model learned anything before it sees labels.
      rivals: arms it is compared with; None for every arm without pretraining.
      cost: see `CostAllocation`.
      style: see `PlotStyle`; colors are Okabe and Ito's (2008), safe for color-blind readers.
      experiments: the experiments that offer it.
      task_types: names of the task types it can solve; empty for all.
      follows_prompts: whether it may support the adaptation method "prompt".
      needs_text: whether one of the study's tasks must be text, which gives its model a tokenizer.
      matches_pretraining_cost: whether it spends what pretraining costs another arm.
      trains_network: (recipe, number of labels) -> whether adapting it trains a network by
        gradient steps, for estimates of its time.
    """

    name: str
    title: str
    description: str
    build: Callable[[Task, Any], BuiltArm]
    load: Callable[[Task, StudyConfig], Any] | None = None
    corpus: str | None = None
    pretrained: bool = False
    rivals: tuple[str, ...] | None = None
    cost: CostAllocation = CostAllocation()
    style: PlotStyle = PlotStyle()
    experiments: tuple[str, ...] = ("compare",)
    task_types: tuple[str, ...] = ()
    follows_prompts: bool = True
    needs_text: bool = False
    matches_pretraining_cost: bool = False
    trains_network: Callable[[Recipe, int], bool] = lambda recipe, num_labels: False

    @property
    def pretraining_corpus(self) -> str | None:
        """Returns the corpus that the study pretrains a model on for it, None if there is none."""
        if self.pretrained:
            return self.corpus
        return IN_DOMAIN if self.matches_pretraining_cost else None

    @property
    def is_published(self) -> bool:
        """Whether its model was pretrained by others, so that nobody has to pretrain for it."""
        return self.pretrained and self.corpus is None

    @property
    def depends_on_pretraining(self) -> bool:
        """Whether its results depend on how models are pretrained in the study."""
        return self.matches_pretraining_cost or (self.pretrained and not self.is_published)
