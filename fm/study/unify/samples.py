"""What the joint model makes in each format: from nothing, and going on from half a test item."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from fm.data.layouts import Layout
from fm.study import exhibits, making
from fm.study.exhibits import png
from fm.study.pretraining import Pretrained
from fm.study.tasks import Task
from fm.study.unify.config import UnifyConfig
from fm.study.unify.pretraining import Ready
from fm.training.joint import Joint

Row = dict[str, Any]
_COUNT = 3


def rows(task: Task, ready: Ready, config: UnifyConfig) -> list[Row]:
    """Samples of a task's format; none where the next piece was never asked for."""
    assert ready.run is not None
    objectives = tuple(
        (name, objective)
        for name, objective in config.joint.objectives
        if name == "text" or name in ready.reads.layouts
    )
    found = Pretrained(ready.reads, ready.run.params, Joint(objectives))
    if not found.objective_of(task.modality).next:
        return []
    about = {"task": task.name, "arm": "joint"}
    if task.text:
        return [about | row for row in exhibits.written(task, found.reads, found.params)]
    layout = found.reads.layouts[task.modality]
    test = np.asarray(task.test.inputs(range(_COUNT)))
    made = [("from nothing", making.make(found, task.modality, count=_COUNT, seed=0))]
    for n in range(len(test)):
        one = making.make(found, task.modality, count=1, seed=n, given=test[n])
        made += [("a test item", test[n : n + 1]), ("its first half, continued", one)]
    return [
        about | {"modality": task.modality, "caption": caption} | shown(example, layout)
        for caption, examples in made
        for example in examples
    ]


def shown(example: np.ndarray, layout: Layout) -> Row:
    """A picture of an example, and the sound or clip itself, in base64."""
    kind = making.ENDINGS[layout.modality]
    if kind == "png":
        return {"png": png(example)}
    return {
        "png": png(layout.picture(example)),
        kind: base64.b64encode(making.encoded(example, layout)).decode(),
    }
