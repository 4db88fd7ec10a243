"""`results.json` as typed records (schema 2), see `fm.report.parsing` for how it is read.

Every field may be absent: a list is then empty, a value None.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from fm.report.records import (
    AblationResults,
    AmortizedCost,
    BreakEven,
    ChangedInstructionScore,
    Comparison,
    ComputeCost,
    Crossing,
    Curve,
    Decision,
    Decontamination,
    GroupScore,
    LabelEfficiency,
    LearningCurve,
    Method,
    MethodCost,
    Mistake,
    Number,
    PretrainedModel,
    Sample,
    ScalingFit,
    SeedScore,
    Text,
)

# Stands for the best of all arms without pretraining in comparisons and crossings.
BEST_RIVAL = "best rival"
# What an arm of a model that others trained was pretrained on.
PUBLISHED_DATA = "published data"
LineStyle = str | tuple[int, tuple[int, ...]]


class Arm(msgspec.Struct):
    """An arm of a study as reports show it: name, title, description and matplotlib style.

    Attributes:
      name: as in the other sections.
      title: noun phrase for sentences; `{data}` stands for the task's `data_noun`.
      description: one sentence on what the arm learned from.
      pretrained_on: what it saw before the labels; None if nothing. Decides who is a baseline, and
        whether its weights are published ones (`PUBLISHED_DATA`).
      color, linestyle, marker: how matplotlib draws it.
    """

    name: str
    title: str = ""
    description: str = ""
    pretrained_on: Text = None
    color: Text = None
    linestyle: LineStyle | None = None
    marker: Text = None

    @property
    def is_published(self) -> bool:
        """Whether its model was pretrained by others, so that nobody has to pretrain for it."""
        return self.pretrained_on == PUBLISHED_DATA


class PublishedWeights(msgspec.Struct):
    """The published model that an arm of a task starts from: name, source, license, sizes."""

    model: Text = None
    source: Text = None
    licence: Text = None
    parameters: Number = None
    tokens: Number = None
    reading: Text = None


class TestSlice(msgspec.Struct):
    """The test items that a task was scored on.

    Attributes:
      scored_before: at least so many configurations had been scored on them before this study;
        "unknown" if no record could be read.
      sealed: whether they were kept apart until the recipe was frozen.
    """

    name: Text = None
    items: Number = None
    scored_before: Number | str = None
    sealed: bool | None = None


class Task(msgspec.Struct):
    """A task of a study and its data set.

    Attributes:
      data_noun: names the data, for example "images".
      target: what an item's label is where it is not one class: "label_set" or "value".
      majority_rate: share of the test items of the most frequent class.
      item_group: column whose values group the test items (a writer, a source); None if none.
      published_models: by arm; in the file each is in a field named after the arm.
      variant_test_slices: where studies are set side by side, the test slice of each.
      shrunk: {"from": typical [height, width], "to": [height, width] as arms read them, "count"} of
        images that were made smaller; None if none was.
    """

    name: Text = None
    title: Text = None
    modality: Text = None
    data_noun: Text = None
    classes: list[str] | None = None
    target: Text = None
    majority_rate: Number = None
    metric: Text = None
    item_group: Text = None
    train: Number = None
    test: Number = None
    description: Text = None
    licence: Text = None
    fingerprint: Text = None
    split: Text = None
    published_models: dict[str, PublishedWeights] = {}
    test_slice: TestSlice | None = None
    variant_test_slices: dict[str, TestSlice] = {}
    shrunk: dict[str, Any] | None = None

    @property
    def has_one_class(self) -> bool:
        """Whether every item has one of `classes`, so that always naming one has an accuracy."""
        return bool(self.classes) and self.target is None


class Claim(msgspec.Struct):
    """A claim: on each task an arm beats a baseline or is within `margin` points of it."""

    arm: str
    baseline: str
    text: str
    margin: Number = None


class Results(msgspec.Struct):
    """Parsed and validated contents of a study's results.json."""

    experiment: str = ""
    config: dict[str, Any] = {}
    config_hash: str = ""
    versions: dict[str, Any] = {}
    device: dict[str, Any] = {}
    xla_flags: str = ""
    attention: dict[str, Any] = {}
    arms: list[Arm] = []
    claims: list[Claim] = []
    pretrained: list[PretrainedModel] = []
    tasks: list[Task] = []
    cells: list[SeedScore] = []
    comparisons: list[Comparison] = []
    decisions: list[Decision] = []
    learning_curves: list[LearningCurve] = []
    crossings: list[Crossing] = []
    label_efficiency: list[LabelEfficiency] = []
    compute_cost: list[ComputeCost] = []
    decontamination: list[Decontamination] = []
    curves: list[Curve] = []
    samples: list[Sample] = []
    mistakes: list[Mistake] = []
    methods: list[MethodCost] = []
    instruction_following: list[ChangedInstructionScore] = []
    amortized_cost: list[AmortizedCost] = []
    break_even: list[BreakEven] = []
    adaptation_methods: list[Method] = []
    ablations: list[AblationResults] = []
    scaling_fits: list[ScalingFit] = []
    group_scores: list[GroupScore] = []

    @property
    def smoke_test(self) -> bool:
        """Whether it was run with the quick profile, too small to conclude anything from."""
        return is_smoke_test(self.config)

    @property
    def setting(self) -> str:
        """The setting whose values are compared side by side; "" in a study that is not that."""
        return self.experiment.removeprefix("ablate ") if "ablate " in self.experiment else ""

    def arm(self, name: str | None) -> Arm:
        """Returns the arm with this name."""
        return next((arm for arm in self.arms if arm.name == name), Arm(name or ""))

    @property
    def published_arms(self) -> list[str]:
        """The names of arms of published weights, which are told apart from own pretraining."""
        return [arm.name for arm in self.arms if arm.is_published]

    def arm_names(self, names: Iterable[str | None]) -> list[str]:
        """Returns the distinct names, in the order of `arms`."""
        given = set(names)
        return [arm.name for arm in self.arms if arm.name in given]

    def runs(self, task: str | None, arm: str | None, num_labels: Number) -> list[SeedScore]:
        """Returns the cells of an arm on a task, by seed; with None those of all label budgets."""
        return [
            cell
            for cell in self.cells
            if (cell.task, cell.arm) == (task, arm) and num_labels in (None, cell.num_labels)
        ]

    def improving_budgets(self, task: str | None, arm: str | None) -> list[Number]:
        """Returns the label budgets at which most runs of an arm were still improving."""
        marks: dict[Number, list[bool]] = {}
        for cell in self.runs(task, arm, None):
            marks.setdefault(cell.num_labels, []).append(bool(cell.still_improving))
        return [budget for budget, each in marks.items() if sum(each) * 2 >= len(each)]

    def num_checkpoints(self, task: str | None) -> int:
        """Returns how many pretrained checkpoints the intervals of a task are over, at least 1."""
        numbers = [row.checkpoints for row in self.comparisons if row.task == task]
        return int(max((number for number in numbers if number), default=1))

    def task_names(self) -> list[str]:
        """Returns the tasks in declared order, then in order of first appearance."""
        rows = [row.task for row in (*self.cells, *self.comparisons)]
        return list(dict.fromkeys(name for name in (*(t.name for t in self.tasks), *rows) if name))

    def task(self, name: str | None) -> Task:
        """Returns the declared task with this name, or a task inferred from its cells."""
        declared = next((task for task in self.tasks if task.name == name), Task(name))
        cells = (cell for cell in self.cells if cell.task == name)
        first = next(cells, SeedScore())
        metric, modality = declared.metric or first.metric, declared.modality or first.modality
        title = declared.title or capitalize_first(name or "all tasks")
        return msgspec.structs.replace(
            declared, title=title, metric=metric or "accuracy", modality=modality
        )


def is_smoke_test(config: dict[str, Any]) -> bool:
    """Returns whether a config, or the first of those of variants side by side, is a smoke test."""
    variants = [each for each in config.values() if isinstance(each, dict)]
    return bool(config.get("smoke_test")) or any(each.get("smoke_test") for each in variants)


def capitalize_first(text: str) -> str:
    """Returns the text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]
