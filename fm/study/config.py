"""What a study runs: tasks, arms, budgets, seeds, and the recipe of each format."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.transfer.finetune import FinetuneConfig
from fm.transfer.lora import LoraConfig
from fm.transfer.prompts import Template

SCHEMA = 1
ARMS = ("scratch", "self", "upstream", "imported", "classical")
# The ways from a model to a task: all of it trained, none of it, adapters, or none and no head.
METHODS = ("full", "probe", "lora", "prompt")
MOST_SEEDS = 1000
ADAPT = ("probe", "full")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the models of one format are built, pretrained and adapted.

    Attributes:
      model: architecture; `vocab` and `continuous` are set from the data.
      objective: of pretraining.
      optimizer: of pretraining.
      steps: of pretraining.
      batch_size: sequences per step.
      vocab: tokens of the BPE vocabulary (text).
      length: tokens in a sequence (text).
      windows: sequences of a document read when adapting (text).
      patch: side of a square patch in pixels (images).
      finetune: full fine-tuning, but for the learning rate.
      learning_rates: the grid of full fine-tuning.
      penalties: the grid of the linear probe, in L2 penalties.
      scale: of the probe's features, "standardise" or "l2" (rows of unit length).
      adapters: of LoRA.
      adapter_rates: the grid of LoRA.
    """

    model: ModelConfig
    objective: Objective
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    finetune: FinetuneConfig
    learning_rates: tuple[float, ...]
    penalties: tuple[float, ...]
    scale: str = "l2"
    vocab: int = 0
    length: int = 0
    windows: int = 1
    patch: int = 0
    adapters: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    adapter_rates: tuple[float, ...] = (1e-2,)

    def __post_init__(self):
        for name in ("steps", "batch_size", "windows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rates", "penalties", "adapter_rates"):
            tried = getattr(self, name)
            if not tried or not all(0 < value < float("inf") for value in tried):
                raise UserError(f"{name}={tried} takes numbers above 0, at least one")

    def trials(self, adapt: tuple[str, ...], prompts: int = 2) -> int:
        """Settings every arm may try, by the methods asked for; prompts have `prompts` of them."""
        sizes = {
            "probe": len(self.penalties),
            "full": len(self.learning_rates),
            "lora": len(self.adapter_rates),
            "prompt": prompts,
        }
        return sum(sizes[method] for method in adapt)


@dataclasses.dataclass(frozen=True)
class ImportedConfig:
    """A published model as an arm, and how it reads and is asked.

    Attributes:
      model: name, folder or file, as `fm.transfer.published.find` takes it.
      length: the most tokens of a text it reads, half from its beginning and half from its end.
      words: template of prompts, see `fm.transfer.prompts.Template`.
      answers: of prompts, one for each class.
      shots: solved examples that lead a prompt; each number is tried, 0 is none.
    """

    model: str
    length: int
    words: str
    answers: tuple[str, ...]
    shots: tuple[int, ...] = (0,)

    def __post_init__(self):
        if self.length < 8:
            raise UserError(f"imported: length={self.length} must be at least 8 tokens")
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots={self.shots} takes numbers from 0, none of them twice")
        Template(self.words, self.answers)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One task: what is classified, and with how many labels.

    Attributes:
      dataset: name or path, as `fm.data.sources.load` takes it.
      upstream: the data the upstream arm is pretrained on, or None.
      budgets: numbers of labels.
      recipe: see `Recipe`; None for the recipe of the data's format.
      test_items: at most this many test items are scored.
      corpus_items: of each corpus, the training data included, at most this many examples are
        used; None for all.
      data_dir: where prepared data sets lie.
      text_column: of files.
      label_column: of files.
      target_column: of files, the text to write.
      label_field: of files' names.
      speaker_field: of files' names.
      fingerprint: of the data as loaded, so that changed files are not taken for the same.
      without: arms of the study that this task has not.
      imported: the model of the imported arm; None if there is none.
    """

    dataset: str
    upstream: str | None
    budgets: tuple[int, ...]
    recipe: Recipe
    test_items: int = 1000
    corpus_items: int | None = None
    data_dir: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    target_column: str = ""
    label_field: int | None = None
    speaker_field: int | None = None
    fingerprint: str = ""
    without: tuple[str, ...] = ()
    imported: ImportedConfig | None = None


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A whole study.

    Attributes:
      experiment: name of the experiment.
      tasks: see `TaskConfig`.
      arms: some of `ARMS`.
      seeds: runs per cell; each draws its own labels and initialisation.
      search_seeds: the grid is searched on the first so many seeds, the same for every arm.
      pretrain_seeds: pretrained checkpoints per arm, shared out over the seeds.
      adapt: some of `METHODS`; an arm tries the settings of those it can.
    """

    experiment: str
    tasks: tuple[TaskConfig, ...]
    arms: tuple[str, ...] = ARMS
    seeds: int = 8
    search_seeds: int = 2
    pretrain_seeds: int = 1
    adapt: tuple[str, ...] = ADAPT

    def __post_init__(self):
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"arm {arm!r} is not known; accepted are {', '.join(ARMS)}")
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise UserError(
                f"arms={','.join(self.arms)}: a comparison takes at least two, none of them twice, "
                "such as scratch,self"
            )
        check_methods(self.adapt)
        fed = [arm for arm in self.arms if arm in ("scratch", "self", "upstream")]
        if fed and set(self.adapt) == {"prompt"}:
            raise UserError(
                f"--adapt=prompt: {', '.join(fed)} cannot follow prompts; add probe, full or lora, "
                "or leave them out of --arms"
            )
        for task in self.tasks:
            if len(self.arms_of(task)) < 2:
                raise UserError(
                    f"arms={','.join(self.arms)}: {task.dataset} has but "
                    f"{', '.join(self.arms_of(task)) or 'none'} of them, a comparison takes two"
                )
        for name in ("seeds", "search_seeds", "pretrain_seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        check_seeds(self.seeds)
        if self.search_seeds > self.seeds or self.pretrain_seeds > self.seeds:
            raise UserError(
                f"search_seeds={self.search_seeds} and pretrain_seeds={self.pretrain_seeds} "
                f"can be at most seeds={self.seeds}"
            )

    def arms_of(self, task: TaskConfig) -> tuple[str, ...]:
        """The arms that a task has."""
        return tuple(arm for arm in self.arms if arm not in task.without)


def check_seeds(seeds: int) -> None:
    """Raises UserError for more than `MOST_SEEDS`: labels of each are drawn before all else."""
    if seeds > MOST_SEEDS:
        raise UserError(f"--seeds={seeds}: takes 1 to {MOST_SEEDS}")


def check_methods(adapt: tuple[str, ...]) -> None:
    """Raises UserError unless each is one of `METHODS`, once."""
    for method in adapt:
        if method not in METHODS:
            raise UserError(f"--adapt: {method!r} is not known; accepted are {', '.join(METHODS)}")
    if not adapt or len(set(adapt)) < len(adapt):
        raise UserError(
            f"--adapt={','.join(adapt)}: takes at least one of {', '.join(METHODS)}, none twice"
        )


def as_json(config: StudyConfig) -> dict:
    """A study as plain JSON, its tasks by data set, so that two studies compare field by field."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain | {"tasks": {task["dataset"]: task for task in plain["tasks"]}}


def digest(config: StudyConfig) -> str:
    """Short hash of everything in a study."""
    text = json.dumps(as_json(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
