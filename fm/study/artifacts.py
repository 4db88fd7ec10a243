"""What a reader can look at: learning curves, samples, mistakes."""

from __future__ import annotations

import base64
import io
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fm.adaptation.methods import HParams, method_of
from fm.adaptation.task_model import TaskModel
from fm.data.layouts import layout_of
from fm.data.tokenizer import NUM_SPECIALS
from fm.evaluation.label_efficiency import steps_to_quality
from fm.model.generate import generate
from fm.model.sample_continuous import sample_patches
from fm.model.sampling import SamplingConfig
from fm.study.arms import PretrainedArm
from fm.study.cells import Cell, parallel_map
from fm.study.processing import Processor
from fm.study.tasks import Task

Row = dict[str, Any]
_CURVE_POINTS = 4
_CURVE_ITEMS = 200
_SAMPLES = 3
_PROMPT_TOKENS = 8
_SAMPLE_TOKENS = 64


def pretraining_curves(task: Task, fed: dict[str, PretrainedArm]) -> list[Row]:
    """Loss against pieces seen, of each arm's first pretraining run."""
    unit = "bits per byte" if task.is_text else "bits per dimension"
    if not task.config.recipe.objective.causal_lm:
        unit = "loss in bits"
    return [
        {"task": task.name, "arm": arm, "kind": "pretrain", "unit": unit, **each.runs[0].curve}
        for arm, each in fed.items()
        if each.runs
    ]


def adaptation_curves(
    task: Task, fed: dict[str, PretrainedArm], cells: list[Cell], seeds: int
) -> tuple[list[Row], dict[str, int | None]]:
    """Accuracy after ever longer fine-tuning on the largest budget, and steps to scratch's level.

    Each point is a run of its own with its own schedule, on the first `seeds` seeds and a part of
    the test items; no setting is chosen by it. None of a task that asks for more than a class.
    """
    if task.task_type != "class":
        return [], {}
    labels = max(task.config.label_budgets)
    full = task.config.recipe.finetune.num_steps(labels)
    steps = sorted({max(1, round(full * 2.0**-k)) for k in range(_CURVE_POINTS)})
    rows, values = [], {}
    for arm, each in fed.items():
        cell = next(c for c in cells if (c.arm, c.num_labels) == (arm, labels))
        tuned = [trial for trial in cell.trials if method_of(trial["config"]).updates_model]
        if not tuned:
            continue
        best = max(tuned, key=lambda trial: trial["validation"])["config"]
        items = np.arange(min(_CURVE_ITEMS, len(task.test)))
        right = np.asarray(task.test.labels)[items]

        def guessed(place, model=each.arm.model, cell=cell, best=best, items=items):
            n, seed = place
            return _guessed(task, model, cell, best, n, seed, items)

        drawn = range(len(task.train_idx[:seeds]))
        made = parallel_map(guessed, list(itertools.product(steps, drawn)))
        hits = np.reshape(np.stack(made) == right, (len(steps), -1))
        values[arm] = hits.mean(axis=1).tolist()
        place = {"task": task.name, "arm": arm, "kind": "adapt", "labels": labels}
        rows.append(place | {"unit": "accuracy", "steps": steps, "value": values[arm]})
    if "scratch" not in values:
        return rows, {}
    goal = values["scratch"][-1]
    return rows, {arm: steps_to_quality(steps, each, goal) for arm, each in values.items()}


def _guessed(
    task: Task,
    model: TaskModel,
    cell: Cell,
    hparams: HParams,
    num_steps: int,
    seed: int,
    items: np.ndarray,
) -> np.ndarray:
    """Predicted classes of some test items after `num_steps` of fine-tuning on a cell's labels."""
    if hparams == cell.hparams and num_steps == model.recipe.finetune.num_steps(cell.num_labels):
        return cell.predictions[seed][items]  # the cell is that very run
    train_idx = task.train_idx[seed][: cell.num_labels]
    labels = np.asarray(task.dataset.train.labels)[train_idx]
    method = method_of(hparams)
    rows = task.pool_rows(train_idx)
    fitted = method.fit(model, rows, labels, seed, hparams, num_steps=num_steps)
    return method.predict(model, fitted, model.test_from + items)


def sample_rows(task: Task, fed: dict[str, PretrainedArm]) -> list[Row]:
    """What each pretrained model makes up, given a few words or nothing."""
    if not task.config.recipe.objective.causal_lm:
        return []
    rows = []
    for arm, each in fed.items():
        if not each.runs:
            continue
        made = (
            text_sample_rows(task, each.processor, each.runs[0].params)
            if task.is_text
            else _pictures(task, each)
        )
        rows += [{"task": task.name, "arm": arm} | row for row in made]
    return rows


def text_sample_rows(task: Task, reads: Processor, params: dict) -> list[Row]:
    """How a model goes on with the first words of some test items."""
    tokenizer = reads.tokenizer
    assert tokenizer is not None
    started = tokenizer.encode(task.test.texts(range(min(_SAMPLES, len(task.test)))))
    shared = min(_PROMPT_TOKENS, *map(len, started))
    drawn = generate(
        params,
        [[tokenizer.bos, *ids[:shared]] for ids in started],
        reads.model,
        sampling_config=SamplingConfig(temperature=0.8),
        max_new_tokens=_SAMPLE_TOKENS,
        suppress_tokens=range(NUM_SPECIALS),
    )
    return [
        {
            "modality": "text",
            "prompt": tokenizer.decode(ids[:shared]),
            "text": tokenizer.decode(new),
        }
        for ids, new in zip(started, drawn, strict=True)
    ]


def _pictures(task: Task, fed: PretrainedArm) -> list[Row]:
    """Of sounds and clips what `Layout.picture` shows."""
    layout = fed.processor.layouts[task.modality]
    drawn = sample_patches(
        fed.runs[0].params,
        jnp.asarray(layout.positions()),
        jax.random.key(0),
        fed.processor.model,
        modality=task.modality,
        num_samples=8,
    )
    made = layout.from_patches(np.asarray(drawn))
    return [
        {
            "modality": task.modality,
            "caption": "unprompted",
            "png": base64_png(layout.to_picture(each)),
        }
        for each in made
    ]


def mistake_rows(task: Task, cells: list[Cell], most: int = 4) -> list[Row]:
    """Test items the best-fed arm gets wrong at the largest budget, first seed, as they are.

    None of a task that asks for more than a class: an answer is kept as its score there.
    """
    if task.task_type != "class":
        return []
    labels = max(task.config.label_budgets)
    at = {cell.arm: cell for cell in cells if cell.num_labels == labels}
    arm = next(arm for arm in ("in_domain", "out_of_domain", *at) if arm in at)
    baseline = next(arm for arm in ("classical", "scratch", *at) if arm in at)
    guessed, other = at[arm].predictions[0], at[baseline].predictions[0]
    truth, names = np.asarray(task.test.labels), task.dataset.classes
    rows = []
    for item in np.flatnonzero(guessed != truth)[:most]:
        content = (
            {"modality": "text", "text": task.test.texts([item])[0][:600]}
            if task.is_text
            else {"modality": task.modality, "png": base64_png(_picture(task, item))}
        )
        rows.append(
            {
                "task": task.name,
                "arm": arm,
                "labels": labels,
                "item": task.test.ids[item],
                "truth": names[truth[item]],
                "prediction": names[guessed[item]],
                "baseline": baseline,
                "baseline_prediction": names[other[item]],
                **content,
            }
        )
    return rows


def _picture(task: Task, item: int) -> np.ndarray:
    info = task.dataset.info
    example = np.asarray(task.test.inputs([item]))[0]
    if task.modality == "image":
        return example
    return layout_of(task.modality, info["shape"], info["rate"]).to_picture(example)


def base64_png(image: np.ndarray) -> str:
    """An image uint8 [height, width, channels] as a base64 PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
