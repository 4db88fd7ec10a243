"""The registry of task types. To add one, subclass `TaskType` and call `register_task_type`."""

from __future__ import annotations

from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.study.head_task_types import Classification, MultiLabel, Regression
from fm.study.sequence_task_types import NamedEntityRecognition, TextGeneration
from fm.study.task import TaskType

TASK_TYPES: dict[str, TaskType] = {}


def register_task_type(task_type: TaskType) -> None:
    """Registers a task type, replacing any of its name; the last registered is matched first."""
    earlier = {name: other for name, other in TASK_TYPES.items() if name != task_type.name}
    TASK_TYPES.clear()
    TASK_TYPES.update({task_type.name: task_type} | earlier)


def task_type_of(dataset: Dataset) -> TaskType:
    """Returns the task type that matches the data set's labels; of several, the latest registered.

    Raises:
      UserError: there is none.
    """
    for task_type in TASK_TYPES.values():
        if task_type.matches(dataset):
            return task_type
    raise UserError(
        f"{dataset.name} has no labels to learn; a task needs at least 2 classes, words with "
        "entity tags, or target texts"
    )


for _task_type in (
    TextGeneration(),
    NamedEntityRecognition(),
    Regression(),
    MultiLabel(),
    Classification(),
):
    register_task_type(_task_type)
