"""Configurations of the studies: recipe, task, comparison and multitask study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any, ClassVar

import numpy as np

from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.lora import LoraConfig
from fm.adaptation.methods import check_methods, regularization
from fm.adaptation.prompting import PromptTemplate
from fm.config_io import to_plain
from fm.data.patches import DEFAULT_IMAGE_SIZE, check_image_size
from fm.data.readers.examples import FurtherColumns
from fm.data.tokenizer import MIN_VOCAB_SIZES, TOKENIZERS
from fm.errors import UserError
from fm.evaluation.design import check_design
from fm.evaluation.statistics import DEFAULT_MARGIN
from fm.files import expand_path
from fm.model.config import ModelConfig
from fm.study.comparisons import BEST_RIVAL, PRIMARY
from fm.study.transfer import check_transfer
from fm.training.objectives import PretrainingObjective, objective_rows
from fm.training.optimizer import OptimizerConfig

MAX_SEEDS = 1000
SPLITS = ("test", "development")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
DEFAULT_METHODS = ("probe", "full")
SEARCH_GRIDS = ("star", "product")
# Fields of a task's data that its JSON leaves out where they are not given, so that the hashes of
# earlier configs stay as they are.
FURTHER_DATA_FIELDS = (
    *("unlabeled", "validation", "test"),
    *(field.name for field in dataclasses.fields(FurtherColumns)),
)
# Relative to the mean squared length of the features that a probe reads.
L2_PENALTIES = tuple(10.0 ** (n / 2) for n in range(-7, 2))
# Fields of a recipe that say how a pretrained model is adapted.
_ADAPTATION_FIELDS = (
    *("finetune", "learning_rates", "regularizers", "search_grid", "l2_penalties"),
    *("num_windows", "lora", "lora_learning_rates", "transfer", "transfer_step"),
    "finetune_beside_classical_from",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How models of one modality are built, pretrained and adapted.

    Attributes:
      model: architecture; `vocab_size` and `patch_dims` are set from the data.
      objective: pretraining objective.
      name: tells the recipes of a task apart; "" for the first.
      optimizer: of pretraining.
      steps: of pretraining.
      batch_size: sequences per pretraining step.
      grad_accum_steps: microbatches that each batch of pretraining is split into.
      early_stopping_patience: lets pretraining go past `steps`, at a constant learning rate, until
        the validation loss (measured 8 times in `steps`) has not fallen by 0.2% so many times in a
        row; the rate then falls to 0. None takes `steps`.
      max_pretrain_minutes: lets pretraining go past `steps` in the same way, until this much time
        has been spent; None for no limit.
      keep_period: pretraining keeps a checkpoint at each multiple of this step; None: the last.
      transfer: what of the checkpoint adaptation starts from, see `fm.study.transfer.TRANSFERS`.
      transfer_step: the pretraining step whose checkpoint that is; None for the last.
      vocab_size: size of the tokenizer's vocabulary (text).
      tokenizer: "bpe", or "symbols" for texts whose symbols are separated by spaces.
      seq_len: tokens in a sequence (text).
      num_windows: sequences of a document that adaptation reads (text).
      patch_size: side of a square patch in pixels (images).
      raster: whether patches have one position, their order, instead of row and column or time.
      finetune: full fine-tuning, except for what the grids set; `max_epochs` bounds a search.
      learning_rates: grid of full fine-tuning, the middle first.
      regularizers: grid of fine-tuning: names of `fm.adaptation.methods.regularization`.
      search_grid: "product" tries every pair of these, "star" every learning rate with the first
        regularizer and every regularizer with the first learning rate.
      l2_penalties: grid of the linear probe, ascending and evenly spaced on a log scale; see
        `fm.adaptation.linear_probe.fit_probe`. A search widens it.
      finetune_beside_classical_from: labels from which the arm that reads the network's features
        beside a classical model's tries to fine-tune the network instead; None for never.
      lora: adapter configuration.
      lora_learning_rates: grid of LoRA.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "penalties": "l2_penalties",
        "vocab": "vocab_size",
        "length": "seq_len",
        "windows": "num_windows",
        "patch": "patch_size",
        "adapters": "lora",
        "adapter_rates": "lora_learning_rates",
    }
    ADDED_FIELDS: ClassVar[tuple[str, ...]] = ("grad_accum_steps", "tokenizer", "raster")

    model: ModelConfig
    objective: PretrainingObjective
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    finetune: FinetuneConfig
    learning_rates: tuple[float, ...]
    regularizers: tuple[str, ...] = ("weight_decay", "dropout")
    search_grid: str = "star"
    l2_penalties: tuple[float, ...] = L2_PENALTIES
    vocab_size: int = 0
    seq_len: int = 0
    num_windows: int = 1
    patch_size: int = 0
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    finetune_beside_classical_from: int | None = 100
    lora_learning_rates: tuple[float, ...] = (1e-2,)
    name: str = ""
    early_stopping_patience: int | None = None
    max_pretrain_minutes: float | None = None
    keep_period: int | None = None
    transfer: str = "all"
    transfer_step: int | None = None
    grad_accum_steps: int = 1
    tokenizer: str = "bpe"
    raster: bool = False

    def __post_init__(self):
        check_transfer(self.transfer, self.model.num_layers)
        self._check_transfer_step()
        for name in ("steps", "batch_size", "num_windows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        check_training(self)
        for name in ("learning_rates", "l2_penalties", "lora_learning_rates"):
            values = getattr(self, name)
            if not values or not all(0 < value < float("inf") for value in values):
                raise UserError(f"{name}={values}: takes one or more numbers above 0")
        for name in (
            *("early_stopping_patience", "max_pretrain_minutes"),
            "finetune_beside_classical_from",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name}={value}: takes a number above 0, or none")
        steps = np.diff(np.log(self.l2_penalties))
        if len(steps) and (steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-3)):
            raise UserError(f"l2_penalties={self.l2_penalties}: must ascend by equal factors")
        if not self.regularizers or len(set(self.regularizers)) < len(self.regularizers):
            raise UserError(f"regularizers={self.regularizers}: takes one or more different names")
        for name in self.regularizers:
            regularization(name)
        if self.tokenizer not in TOKENIZERS:
            raise UserError(f"tokenizer={self.tokenizer!r}: must be one of {', '.join(TOKENIZERS)}")
        check_vocab_size(self.vocab_size, self.tokenizer)
        if self.search_grid not in SEARCH_GRIDS:
            raise UserError(
                f"search_grid={self.search_grid!r}: must be one of {', '.join(SEARCH_GRIDS)}"
            )

    def _check_transfer_step(self) -> None:
        step, period = self.transfer_step, self.keep_period
        if period is not None and not 1 <= period <= self.steps:
            raise UserError(f"keep_period={period}: must be 1 to steps={self.steps}")
        if step is None or step == self.steps:
            return
        if period is None or not 1 <= step < self.steps or step % period:
            raise UserError(
                f"transfer_step={step}: must be a multiple of keep_period={period} below "
                f"steps={self.steps}"
            )

    def pretraining_fields(self) -> dict[str, Any]:
        """Returns as JSON the fields that a pretraining run depends on."""
        plain = to_plain(self)
        return {name: value for name, value in plain.items() if name not in _ADAPTATION_FIELDS}


@dataclasses.dataclass(frozen=True)
class JointRecipe:
    """How one model of several modalities is built and pretrained.

    Attributes:
      model: architecture; `vocab_size`, `patch_dims` and `position_axes` are set from the data.
      objectives: (modality, objective) pairs.
      optimizer: of pretraining.
      steps: of pretraining.
      batch_size: rows per step, over all modalities.
      vocab_size: size of the BPE vocabulary.
      seq_len: tokens in a row of text.
      grad_accum_steps: microbatches that each batch is split into.
    """

    ADDED_FIELDS: ClassVar[tuple[str, ...]] = ("grad_accum_steps",)

    model: ModelConfig
    objectives: tuple[tuple[str, PretrainingObjective], ...]
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    vocab_size: int
    seq_len: int
    grad_accum_steps: int = 1

    def __post_init__(self):
        check_training(self)
        check_vocab_size(self.vocab_size)


def check_vocab_size(vocab_size: int, tokenizer: str = "bpe") -> None:
    """Raises UserError for a vocabulary that a kind of tokenizer cannot have; 0 is none at all."""
    least = MIN_VOCAB_SIZES[tokenizer]
    if vocab_size and vocab_size < least:
        raise UserError(f"vocab_size={vocab_size}: must be at least {least} for {tokenizer}")


def check_training(recipe: Any) -> None:
    """Raises UserError unless the warm-up is shorter than the run and microbatches are equal.

    Args:
      recipe: config with `optimizer`, `steps` and `batch_size`, and maybe `grad_accum_steps` and
        `objective`.
    """
    warmup, parts = recipe.optimizer.warmup_steps, getattr(recipe, "grad_accum_steps", 1)
    if warmup is not None and warmup >= recipe.steps:
        raise UserError(f"warmup_steps={warmup}: must be below steps={recipe.steps}")
    if parts < 1 or recipe.batch_size % parts:
        raise UserError(
            f"grad_accum_steps={parts}: must be at least 1 and divide batch_size="
            f"{recipe.batch_size}"
        )
    if parts == 1 or not hasattr(recipe, "objective"):
        return
    for name, rows in objective_rows(recipe.objective, recipe.batch_size).items():
        if (rows.stop - rows.start) % parts:
            raise UserError(
                f"grad_accum_steps={parts}: must divide the rows of each objective; {name} has "
                f"{rows.stop - rows.start} of the {recipe.batch_size} rows of a batch (a run of "
                "one objective, such as causal_lm:1, has one kind)"
            )


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """How a published model is used as an arm: which model, its input length and prompt.

    Attributes:
      model: name, folder or file, as `fm.hf.model_zoo.load_published` takes it.
      max_length: tokens read of a text, half from its beginning and half from its end.
      template: see `fm.adaptation.prompting.PromptTemplate`.
      answers: text of each class in a prompt.
      num_fewshot: numbers of solved examples in a prompt, each of them a trial.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "length": "max_length",
        "words": "template",
        "shots": "num_fewshot",
    }

    model: str
    max_length: int
    template: str
    answers: tuple[str, ...]
    num_fewshot: tuple[int, ...] = (0,)

    def __post_init__(self):
        if self.max_length < 8:
            raise UserError(f"published: max_length={self.max_length} must be at least 8 tokens")
        shots = self.num_fewshot
        if not shots or min(shots) < 0 or len(set(shots)) < len(shots):
            raise UserError(f"num_fewshot={shots}: takes different numbers from 0")
        PromptTemplate(self.template, self.answers)


@dataclasses.dataclass(frozen=True)
class PublishedEncoderConfig:
    """How a published encoder of images or sounds is used as an arm.

    Attributes:
      model: folder, as `fm.hf.encoders.load_encoder` takes it.
      finetuned: whether adaptation methods may train it; else its features are read as they are.
    """

    model: str
    finetuned: bool = False


@dataclasses.dataclass(frozen=True)
class TaskConfig(FurtherColumns):
    """Configuration of one task of a study: data sets, label budgets and recipe.

    What some files have besides are the fields of `FurtherColumns`.

    Attributes:
      dataset: name or path, as `fm.data.load.load` takes it.
      out_of_domain_dataset: what the `out_of_domain` arm is pretrained on, or None.
      label_budgets: numbers of labels, ascending.
      recipe: see `Recipe`.
      other_recipes: further recipes of another kind; every network arm is built by each, and each
        seed chooses among them on its own labels.
      upstream_datasets: what the `upstream` ablation pretrains on, from near to far.
      out_of_domain_size_of: a data set to whose size the out-of-domain corpus is cut, in
        characters of text or examples; None leaves it whole.
      max_test_items: limit of the test items scored.
      split: "test", or "development": a part of the training split plays the test, whose items are
        then in neither.
      test_slice: first of the test items scored, in the fixed random order of the test split.
      max_corpus_items: limit of the examples of each corpus, training data included; None for all.
      data_dir: folder of prepared TFDS data sets.
      text_column: of files.
      label_column: of files.
      target_column: of files; the text to generate.
      label_field: part of a file name that is the label.
      speaker_field: part of a file name that is the speaker.
      item_group: column of the group of an example; "" for the data's own, if it has one.
      encoding: of text files.
      image_size: largest side of images and frames in pixels.
      unlabeled: files of unlabeled examples beside `dataset`, separated by commas.
      validation: a file beside it, see `fm.data.load.load`.
      test: a file beside it that is the test split.
      fingerprint: of the data as loaded, so that a changed file is not taken for the same.
      excluded_arms: arms of the study that this task does not have.
      published: the model of the `published` arm, or None.
      name: of the task; by default made of `dataset`, see `short_name`.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "upstream": "out_of_domain_dataset",
        "budgets": "label_budgets",
        "test_items": "max_test_items",
        "corpus_items": "max_corpus_items",
        "without": "excluded_arms",
        "imported": "published",
    }

    dataset: str
    out_of_domain_dataset: str | None
    label_budgets: tuple[int, ...]
    recipe: Recipe
    other_recipes: tuple[Recipe, ...] = ()
    max_test_items: int = 1000
    split: str = "test"
    test_slice: int = 0
    max_corpus_items: int | None = None
    data_dir: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    target_column: str = ""
    label_field: int | None = None
    speaker_field: int | None = None
    item_group: str = ""
    encoding: str = "utf-8"
    image_size: int = DEFAULT_IMAGE_SIZE
    fingerprint: str = ""
    excluded_arms: tuple[str, ...] = ()
    published: PublishedConfig | PublishedEncoderConfig | None = None
    name: str = ""
    upstream_datasets: tuple[str, ...] = ()
    out_of_domain_size_of: str | None = None
    unlabeled: str = ""
    validation: str = ""
    test: str = ""

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", short_name(self.dataset))
        if self.split not in SPLITS:
            raise UserError(f"--split={self.split}: must be one of {', '.join(SPLITS)}")
        recipes = [recipe.name for recipe in (self.recipe, *self.other_recipes)]
        if len(set(recipes)) < len(recipes):
            raise UserError(f"recipes {', '.join(map(repr, recipes))}: must have different names")
        if self.test_slice < 0:
            raise UserError(f"--test_slice={self.test_slice}: takes a number from 0")
        check_image_size(self.image_size)

    def load_options(self) -> dict[str, Any]:
        """Returns the keyword arguments of `fm.data.load.load` for this task's data."""
        names = ("data_dir", "text_column", "label_column", "target_column", "label_field")
        names += ("speaker_field", "item_group", "encoding", "image_size")
        given = [name for name in FURTHER_DATA_FIELDS if getattr(self, name)]
        return {name: getattr(self, name) for name in (*names, *given)}


def short_name(dataset: str) -> str:
    """Returns a data set's name or path without folders, file endings and version.

    The folder `sent/1.0.0` of a prepared data set is called "sent"; "." by its own name; and
    `hf:owner/name` of the Hugging Face hub "name".
    """
    path = expand_path(dataset.removeprefix("hf:"))
    named = [part for part in path.parts if not _VERSION.fullmatch(part)]
    if not named or named[-1] == "..":
        parts = pathlib.Path(os.path.abspath(path)).parts  # noqa: PTH100 (`resolve` follows links)
        named = [part for part in parts if not _VERSION.fullmatch(part)]
    last = named[-1]
    return re.split("[.:]", last.lstrip("."))[0] or last


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Configuration of a study that compares arms on tasks.

    Attributes:
      experiment: name of the experiment.
      tasks: see `TaskConfig`.
      arms: names of registered arms, see `fm.study.arms.check_arms`.
      seeds: runs per cell; each draws its own labels and initial parameters.
      pretrain_seeds: pretraining runs per arm, shared out over the seeds.
      methods: adaptation methods; an arm tries those it supports.
      label_cost: price of one label, in any currency; None to price none.
      primary: the (arm, rival) pairs declared before results are seen, each in the mean over label
        budgets; the rival "best rival" stands for every arm without pretraining.
      equivalence_margin: of two one-sided tests, in units of the score (0.01: a point).
      smoke_test: made with the quick profile: its figures are not to be quoted. Only a config that
        is one says so in its JSON.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {"adapt": "methods"}
    MIN_ARMS: ClassVar[int] = 2

    experiment: str = "compare"
    tasks: tuple[TaskConfig, ...]
    arms: tuple[str, ...] = ("scratch", "in_domain", "out_of_domain", "published", "classical")
    seeds: int = 8
    pretrain_seeds: int = 1
    methods: tuple[str, ...] = DEFAULT_METHODS
    label_cost: float | None = None
    primary: tuple[tuple[str, str], ...] = PRIMARY
    equivalence_margin: float = DEFAULT_MARGIN
    smoke_test: bool = False

    def __post_init__(self):
        check_methods(self.methods)
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"tasks {', '.join(names) or 'none'}: takes one or more of different names; rename "
                "a file or folder if two have the same"
            )
        if len(self.arms) < self.MIN_ARMS or len(set(self.arms)) < len(self.arms):
            raise UserError(
                f"--arms={','.join(self.arms)}: takes two or more different arms, such as "
                "scratch,in_domain"
            )
        for task in self.tasks:
            arms = self.arms_of(task)
            if len(arms) < self.MIN_ARMS:
                raise UserError(
                    f"--arms={','.join(self.arms)}: {task.name} has only "
                    f"{', '.join(arms) or 'none'} of them; a comparison takes two"
                )
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise UserError(f"--seeds={self.seeds}: must be 1 to {MAX_SEEDS}")
        if not 1 <= self.pretrain_seeds <= self.seeds:
            raise UserError(
                f"--pretrain_seeds={self.pretrain_seeds}: must be 1 to --seeds={self.seeds}"
            )
        check_design(self.seeds, self.pretrain_seeds)

    def arms_of(self, task: TaskConfig) -> tuple[str, ...]:
        """Returns the arms of one task."""
        return tuple(arm for arm in self.arms if arm not in task.excluded_arms)

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as JSON, with the tasks by name so that configs compare by field."""
        plain = to_plain(self)
        if not self.smoke_test:
            del plain["smoke_test"]
        tasks = {}
        for task in plain["tasks"]:
            absent = [name for name in FURTHER_DATA_FIELDS if not task[name]]
            tasks[task["name"]] = {key: task[key] for key in task if key not in absent}
        return plain | {"tasks": tasks}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskConfig(StudyConfig):
    """Configuration of a study that compares one joint model with a network per task.

    Attributes:
      joint: pretraining on all modalities together. A model of one modality is trained on as many
        rows of it per step.
      weights: (task, weight) pairs: share of each task's data in the rows of its modality.
      instruction_tuning: the learning rate is replaced by each of `instruction_learning_rates`.
      instruction_learning_rates: grid of instruction tuning.
      max_instruction_length: tokens of an instruction, its input and its answer.
      ablations: names of registered ablations of pretraining, see `fm.study.ablations`.
    """

    experiment: str = "multitask"
    arms: tuple[str, ...] = ("scratch", "in_domain", "joint", "instruction_tuned", "classical")
    joint: JointRecipe
    weights: tuple[tuple[str, float], ...]
    instruction_tuning: FinetuneConfig
    instruction_learning_rates: tuple[float, ...]
    max_instruction_length: int
    ablations: tuple[str, ...] = ()
    primary: tuple[tuple[str, str], ...] = (("joint", BEST_RIVAL), ("joint", "scratch"))

    def __post_init__(self):
        super().__post_init__()
        if len({task.label_budgets for task in self.tasks}) > 1:
            raise UserError("--label_budgets: must be the same for all tasks of one model")
        names = [task.name for task in self.tasks]
        unknown = {name for name, _ in self.weights} - set(names)
        if unknown:
            raise UserError(f"--mixture: {min(unknown)} is not one of the tasks {', '.join(names)}")


def config_hash(config: dict[str, Any]) -> str:
    """Returns a short hash of a config's JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
