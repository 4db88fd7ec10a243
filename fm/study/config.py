"""What a study runs: tasks, arms, budgets, seeds, and the recipe of each format."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.lora import LoraConfig
from fm.adaptation.methods import METHODS, check_methods
from fm.adaptation.prompting import PromptTemplate
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig

SCHEMA = 1
COMPARE_ARMS = ("scratch", "in_domain", "out_of_domain", "published", "classical")
MAX_SEEDS = 1000
DEFAULT_METHODS = ("probe", "full")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the models of one format are built, pretrained and adapted.

    Attributes:
      model: architecture; `vocab_size` and `continuous` are set from the data.
      objective: of pretraining.
      optimizer: of pretraining.
      steps: of pretraining.
      batch_size: sequences per step.
      vocab_size: tokens of the BPE vocabulary (text).
      seq_len: tokens in a sequence (text).
      num_windows: sequences of a document read when adapting (text).
      patch_size: side of a square patch in pixels (images).
      finetune: full fine-tuning, but for the learning rate.
      learning_rates: the grid of full fine-tuning.
      l2_penalties: the grid of the linear probe, in L2 penalties.
      feature_scaling: of the probe's features, "standardise" or "l2" (rows of unit length).
      lora: of LoRA.
      lora_learning_rates: the grid of LoRA.
    """

    model: ModelConfig
    objective: Objective
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    finetune: FinetuneConfig
    learning_rates: tuple[float, ...]
    l2_penalties: tuple[float, ...]
    feature_scaling: str = "l2"
    vocab_size: int = 0
    seq_len: int = 0
    num_windows: int = 1
    patch_size: int = 0
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    lora_learning_rates: tuple[float, ...] = (1e-2,)

    def __post_init__(self):
        for name in ("steps", "batch_size", "num_windows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rates", "l2_penalties", "lora_learning_rates"):
            tried = getattr(self, name)
            if not tried or not all(0 < value < float("inf") for value in tried):
                raise UserError(f"{name}={tried} takes numbers above 0, at least one")


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """A published model as an arm, and how it reads and is asked.

    Attributes:
      model: name, folder or file, as `fm.hf.model_zoo.load_published` takes it.
      max_length: the most tokens of a text it reads, half from its beginning and half from its end.
      template: template of prompts, see `fm.adaptation.prompting.PromptTemplate`.
      answers: of prompts, one for each class.
      num_fewshot: solved examples that lead a prompt; each number is tried, 0 is none.
    """

    model: str
    max_length: int
    template: str
    answers: tuple[str, ...]
    num_fewshot: tuple[int, ...] = (0,)

    def __post_init__(self):
        if self.max_length < 8:
            raise UserError(f"imported: max_length={self.max_length} must be at least 8 tokens")
        if (
            not self.num_fewshot
            or min(self.num_fewshot) < 0
            or len(set(self.num_fewshot)) < len(self.num_fewshot)
        ):
            raise UserError(
                f"num_fewshot={self.num_fewshot} takes numbers from 0, none of them twice"
            )
        PromptTemplate(self.template, self.answers)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One task: what is classified, and with how many labels.

    Attributes:
      dataset: name or path, as `fm.data.load.load` takes it.
      out_of_domain_dataset: the data the upstream arm is pretrained on, or None.
      label_budgets: numbers of labels.
      recipe: see `Recipe`; None for the recipe of the data's format.
      max_test_items: at most this many test items are scored.
      max_corpus_items: of each corpus, the training data included, at most this many examples are
        used; None for all.
      data_dir: where prepared data sets lie.
      text_column: of files.
      label_column: of files.
      target_column: of files, the text to write.
      label_field: of files' names.
      speaker_field: of files' names.
      fingerprint: of the data as loaded, so that changed files are not taken for the same.
      excluded_arms: arms of the study that this task has not.
      published: the model of the imported arm; None if there is none.
    """

    dataset: str
    out_of_domain_dataset: str | None
    label_budgets: tuple[int, ...]
    recipe: Recipe
    max_test_items: int = 1000
    max_corpus_items: int | None = None
    data_dir: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    target_column: str = ""
    label_field: int | None = None
    speaker_field: int | None = None
    fingerprint: str = ""
    excluded_arms: tuple[str, ...] = ()
    published: PublishedConfig | None = None


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
      methods: some of `METHODS`; an arm tries the settings of those it can.
    """

    experiment: str
    tasks: tuple[TaskConfig, ...]
    arms: tuple[str, ...] = COMPARE_ARMS
    seeds: int = 8
    search_seeds: int = 2
    pretrain_seeds: int = 1
    methods: tuple[str, ...] = DEFAULT_METHODS

    def __post_init__(self):
        for arm in self.arms:
            if arm not in COMPARE_ARMS:
                raise UserError(f"arm {arm!r} is not known; accepted are {', '.join(COMPARE_ARMS)}")
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise UserError(
                f"arms={','.join(self.arms)}: a comparison takes at least two, none of them twice, "
                "such as scratch,self"
            )
        check_methods(self.methods)
        fed = [arm for arm in self.arms if arm in ("scratch", "in_domain", "out_of_domain")]
        if fed and all(METHODS[method].published_models_only for method in self.methods):
            raise UserError(
                f"--adapt={','.join(self.methods)}: {', '.join(fed)} cannot follow prompts; add "
                "probe, full or lora, or leave them out of --arms"
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
        return tuple(arm for arm in self.arms if arm not in task.excluded_arms)


def check_seeds(seeds: int) -> None:
    """Raises UserError for more than `MOST_SEEDS`: labels of each are drawn before all else."""
    if seeds > MAX_SEEDS:
        raise UserError(f"--seeds={seeds}: takes 1 to {MAX_SEEDS}")


def to_dict(config: StudyConfig) -> dict:
    """A study as plain JSON, its tasks by data set, so that two studies compare field by field."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain | {"tasks": {task["dataset"]: task for task in plain["tasks"]}}


def config_hash(config: StudyConfig) -> str:
    """Short hash of everything in a study."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
