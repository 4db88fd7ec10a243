"""What the joint model makes in each format: from nothing, and going on from half a test item."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from fm.data.layouts import Layout
from fm.study import artifacts, sampling
from fm.study.artifacts import base64_png
from fm.study.multitask import InitialModel
from fm.study.multitask_config import MultitaskConfig
from fm.study.pretraining import PretrainedModel
from fm.study.tasks import Task
from fm.training.multitask import MultitaskObjective

Row = dict[str, Any]
_COUNT = 3


def multitask_sample_rows(task: Task, ready: InitialModel, config: MultitaskConfig) -> list[Row]:
    """Samples of a task's format; none where the next piece was never asked for."""
    assert ready.run is not None
    objectives = tuple(
        (name, objective)
        for name, objective in config.joint.objectives
        if name == "text" or name in ready.processor.layouts
    )
    found = PretrainedModel(ready.processor, ready.run.params, MultitaskObjective(objectives))
    if not found.objective_of(task.modality).causal_lm:
        return []
    about = {"task": task.name, "arm": "joint"}
    if task.is_text:
        return [
            about | row for row in artifacts.text_sample_rows(task, found.processor, found.params)
        ]
    layout = found.processor.layouts[task.modality]
    test = np.asarray(task.test.inputs(range(_COUNT)))
    made = [("from nothing", sampling.sample_examples(found, task.modality, count=_COUNT, seed=0))]
    for n in range(len(test)):
        one = sampling.sample_examples(found, task.modality, count=1, seed=n, init_example=test[n])
        made += [("a test item", test[n : n + 1]), ("its first half, continued", one)]
    return [
        about | {"modality": task.modality, "caption": caption} | preview_fields(example, layout)
        for caption, examples in made
        for example in examples
    ]


def preview_fields(example: np.ndarray, layout: Layout) -> Row:
    """A picture of an example, and the sound or clip itself, in base64."""
    content, extension = sampling.encode_example(example, layout)
    fields = {"png": base64_png(layout.to_picture(example))}
    if extension != "png":
        fields[extension] = base64.b64encode(content).decode()
    return fields
