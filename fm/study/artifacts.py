"""What a reader can look at: learning curves, generated samples, mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fm.data.media import PatchLayout, layout_of
from fm.data.tokenizer import NUM_SPECIALS
from fm.model.generate import generate
from fm.model.sample_continuous import sample_patches
from fm.model.sampling import SamplingConfig
from fm.study import sampling
from fm.study.arms import ARMS, rivals_of
from fm.study.built_arm import BuiltArm, InitialModel
from fm.study.cells import Cell
from fm.study.config import JointRecipe
from fm.study.head_task_types import HeadTaskType
from fm.study.pretraining import PretrainedModel
from fm.study.processing import Processor
from fm.study.task import Task
from fm.training.multitask import MultitaskObjective
from fm.training.objectives import PretrainingObjective

Row = dict[str, Any]
_NUM_TEXT_SAMPLES, _PROMPT_TOKENS, _SAMPLE_TOKENS = 3, 8, 64
_NUM_PATCH_SAMPLES = 8
_NUM_CONTINUATIONS = 3
_MAX_MISTAKES, _MAX_CHARACTERS = 4, 600


def pretraining_curves(task: Task, arms: Mapping[str, BuiltArm]) -> list[Row]:
    """Returns pretraining loss curves over tokens, a row per arm (first run only)."""
    unit = _loss_unit(task.modality, task.config.recipe.objective)
    return [
        {"task": task.name, "arm": arm, "kind": "pretrain", "unit": unit, **built.runs[0].curve}
        for arm, built in arms.items()
        if built.runs
    ]


def _loss_unit(modality: str, objective: PretrainingObjective) -> str:
    if not objective.causal_lm:
        return "loss in bits"
    return "bits per byte" if modality == "text" else "bits per dimension"


def modality_curve_rows(
    models: Mapping[tuple[str, str], InitialModel], objectives: Mapping[str, PretrainingObjective]
) -> list[Row]:
    """Returns pretraining loss curves of each modality over the tokens of that modality, as rows.

    Args:
      models: pretrained models by arm and modality.
      objectives: by modality.

    Returns:
      Rows whose `task` is the modality, and `share` its share of all tokens seen in the run.
    """
    return [
        {
            "task": modality,
            "arm": arm,
            "kind": "pretrain",
            "unit": _loss_unit(modality, objectives[modality]),
            **modality_curve(model.runs[0].curve, modality),
        }
        for (arm, modality), model in models.items()
    ]


def modality_curve(curve: Mapping[str, list[float]], modality: str) -> Row:
    """Returns one modality's loss in a joint run against the number of that modality's tokens seen.

    Of the tokens between two records, those of the modality are counted by its share. Validations
    are interpolated between the records.
    """
    tokens = np.asarray(curve["tokens"], float)
    own = np.cumsum(np.diff(tokens, prepend=0.0) * curve[f"{modality}/share"])
    at_validation = np.interp(curve["validation_tokens"], [0.0, *tokens], [0.0, *own])
    return {
        "tokens": own.tolist(),
        "value": curve[f"{modality}/value"],
        "validation_tokens": at_validation.tolist(),
        "validation": curve[f"{modality}/validation"],
        "share": float(own[-1] / tokens[-1]),
    }


def generated_sample_rows(task: Task, arms: Mapping[str, BuiltArm]) -> list[Row]:
    """Returns results rows of text or media samples that each pretrained causal model generates."""
    if not task.config.recipe.objective.causal_lm:
        return []
    rows = []
    for arm, built in arms.items():
        if not built.runs or built.processor is None:
            continue
        params = built.runs[0].params
        if task.is_text:
            samples = text_sample_rows(task, built.processor, params)
        else:
            samples = _patch_sample_rows(task.modality, built.processor, params)
        rows += [{"task": task.name, "arm": arm} | row for row in samples]
    return rows


def text_sample_rows(task: Task, processor: Processor, params: dict) -> list[Row]:
    """Returns generated continuations of the first words of some test texts, as rows."""
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    texts = task.test.texts(range(min(_NUM_TEXT_SAMPLES, len(task.test))))
    token_ids = tokenizer.encode(texts)
    prompt_length = min(_PROMPT_TOKENS, *map(len, token_ids))
    generated = generate(
        params,
        [[tokenizer.bos, *ids[:prompt_length]] for ids in token_ids],
        processor.model,
        sampling_config=SamplingConfig(temperature=0.8),
        max_new_tokens=_SAMPLE_TOKENS,
        suppress_tokens=range(NUM_SPECIALS),
    )
    return [
        {
            "modality": "text",
            "prompt": tokenizer.decode(ids[:prompt_length]),
            "text": tokenizer.decode(new),
        }
        for ids, new in zip(token_ids, generated, strict=True)
    ]


def _patch_sample_rows(modality: str, processor: Processor, params: dict) -> list[Row]:
    layout = processor.layouts[modality]
    patches = sample_patches(
        params,
        jnp.asarray(layout.positions()),
        jax.random.key(0),
        processor.model,
        modality=modality,
        num_samples=_NUM_PATCH_SAMPLES,
    )
    return [
        {
            "modality": modality,
            "caption": "unprompted",
            "png": base64_png(layout.to_picture(example)),
        }
        for example in layout.from_patches(np.asarray(patches))
    ]


def continuation_sample_rows(task: Task, model: InitialModel, recipe: JointRecipe) -> list[Row]:
    """Returns rows of a joint model's samples: continued test items and unprompted ones."""
    processor, params = model.processor, model.runs[0].params
    objectives = tuple(
        (name, objective)
        for name, objective in recipe.objectives
        if name == "text" or name in processor.layouts
    )
    pretrained = PretrainedModel(processor, params, MultitaskObjective(objectives))
    if not pretrained.objective_of(task.modality).causal_lm:
        return []
    key = {"task": task.name, "arm": "joint"}
    if task.is_text:
        return [key | row for row in text_sample_rows(task, processor, params)]
    layout = processor.layouts[task.modality]
    test = np.asarray(task.test.inputs(range(_NUM_CONTINUATIONS)))
    unprompted = sampling.sample_examples(
        pretrained, task.modality, count=_NUM_CONTINUATIONS, seed=0
    )
    captioned = [("from nothing", unprompted)]
    for n in range(len(test)):
        continued = sampling.sample_examples(
            pretrained, task.modality, count=1, seed=n, init_example=test[n]
        )
        captioned += [
            ("a test item", test[n : n + 1]),
            ("its first half, continued", continued),
        ]
    return [
        key
        | {"modality": task.modality, "caption": caption}
        | base64_preview_files(example, layout)
        for caption, examples in captioned
        for example in examples
    ]


def base64_preview_files(example: np.ndarray, layout: PatchLayout) -> Row:
    """Returns an example as base64 files by extension: png, plus wav (audio) or gif (video)."""
    content, extension = sampling.encode_example(example, layout)
    fields = {"png": base64_png(layout.to_picture(example))}
    if extension != "png":
        fields[extension] = base64.b64encode(content).decode()
    return fields


def mistake_rows(task: Task, cells: Sequence[Cell]) -> list[Row]:
    """Returns test items that a pretrained arm gets wrong at the largest label budget.

    The arm is the first one pretrained on a corpus, with its first seed, and its baseline the last
    baseline. Only of tasks with one label per example: of others the score of an answer is kept,
    not the answer.
    """
    task_type = task.task_type
    if not isinstance(task_type, HeadTaskType):
        return []
    num_labels = max(task.config.label_budgets)
    cell_of = {cell.arm: cell for cell in cells if cell.num_labels == num_labels}
    present = [spec for spec in ARMS.values() if spec.name in cell_of]
    arms = [spec.name for spec in present if spec.pretrained and spec.corpus]
    arm = arms[0] if arms else next(iter(cell_of))
    rivals = [name for name in rivals_of(arm) if name in cell_of]
    baseline = rivals[-1] if rivals else next(iter(cell_of))
    predictions, others = cell_of[arm].predictions[0], cell_of[baseline].predictions[0]
    truths = task_type.truths(task.test, task.dataset)
    truths = task_type.strata(task.test) if truths is None else truths
    texts = [
        task_type.short_texts(values, task.dataset.classes)
        for values in (truths, predictions, others)
    ]
    rows = []
    for item in task_type.wrong_items(predictions, truths)[:_MAX_MISTAKES]:
        if task.is_text:
            content = {"text": task.test.texts([item])[0][:_MAX_CHARACTERS]}
        else:
            content = {"png": base64_png(_picture(task, item))}
        rows.append(
            {
                "task": task.name,
                "arm": arm,
                "num_labels": num_labels,
                "item": task.test.ids[item],
                "truth": texts[0][item],
                "prediction": texts[1][item],
                "baseline": baseline,
                "baseline_prediction": texts[2][item],
                "modality": task.modality,
                **content,
            }
        )
    return rows


def _picture(task: Task, item: int) -> np.ndarray:
    example = np.asarray(task.test.inputs([item]))[0]
    info = task.dataset.info
    return layout_of(task.modality, info["shape"], info["rate"]).to_picture(example)


def base64_png(image: np.ndarray) -> str:
    """Returns an image, uint8 [height, width, channels], as base64-encoded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
