"""The flags of published models: which one, how it is prompted and how it reads a task's data."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from absl import flags

from fm.adaptation.methods import METHODS
from fm.adaptation.prompting import PromptTemplate
from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.hf.encoders import encoder_modality
from fm.study import presets
from fm.study.config import PublishedConfig, PublishedEncoderConfig
from fm.study.model_folders import PUBLISHED, find_model
from fm.study.published_encoder_arm import readable_modalities
from fm.study.task_registry import TaskSpec
from fm.study.task_types import task_type_of


def define_prompts(values: flags.FlagValues) -> None:
    """Defines --template, --answers, --num_fewshot and --max_length."""
    flags.DEFINE_string(
        "template",
        None,
        "prompt of published models, with {text} and, at its end, {answer}",
        flag_values=values,
    )
    flags.DEFINE_list(
        "answers", None, "words for each class in the prompt, in class order", flag_values=values
    )
    flags.DEFINE_list(
        "num_fewshot",
        ["0"],
        "numbers of solved examples in a prompt; each is tried",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_length",
        None,
        "tokens of a text that a published model reads, half from each end; by default "
        f"{presets.published_max_length('default')}, or {presets.published_max_length('full')} in "
        "the full profile",
        flag_values=values,
        lower_bound=8,
    )


def check_prompts(values: flags.FlagValues) -> None:
    """Raises UserError for flags of `define_prompts` that are wrong whatever the data."""
    _num_fewshot(values)
    if values["template"].value is not None:
        PromptTemplate(values["template"].value, tuple(values["answers"].value or ("a", "b")))


def published_config(
    values: flags.FlagValues,
    model: str,
    spec: TaskSpec,
    data: Dataset,
    profile: str = "default",
) -> PublishedConfig | PublishedEncoderConfig | None:
    """Returns how a published model reads this data; None if it does not, or not such labels.

    A label is a class, a number or a set of classes; only classes are answers to prompts. An
    encoder of images or sounds is fine-tuned if --adapt is given.

    Args:
      values: flags.
      model: name or folder of the published model.
      spec: of the task.
      data: of the task.
      profile: gives the number of tokens read unless --max_length does.

    Raises:
      UserError: the number of answers is not that of the classes.
    """
    task_type, reads = task_type_of(data), encoder_modality(model)
    if data.modality not in readable_modalities(reads) or not task_type.predicts_by_head:
        return None
    if reads is not None:
        given = not values["adapt"].using_default_value
        return PublishedEncoderConfig(model, finetuned=given and _trains(values["adapt"].value))
    classes = data.classes if task_type.predicts_classes else ()
    answers = tuple(values["answers"].value or (classes and spec.prompt_answers) or classes)
    if answers and not classes:
        raise UserError(
            f"--answers={','.join(answers)}: {spec.name} is a {task_type.name} task; only classes "
            "are answers to prompts"
        )
    if len(answers) != len(data.classes):
        raise UserError(
            f"--answers={','.join(answers)}: takes {len(data.classes)}, one for each class of "
            f"{spec.name}: {', '.join(data.classes)}"
        )
    return PublishedConfig(
        model=model,
        max_length=values["max_length"].value or presets.published_max_length(profile),
        template=values["template"].value or spec.prompt_template,
        answers=answers,
        num_fewshot=_num_fewshot(values),
    )


def _trains(methods: Sequence[str]) -> bool:
    """Returns whether an adaptation method trains the model itself."""
    return any(METHODS[name].updates_model for name in methods)


def _num_fewshot(values: flags.FlagValues) -> tuple[int, ...]:
    texts = values["num_fewshot"].value
    if not texts or not all(re.fullmatch(r" *[0-9]{1,3} *", text) for text in texts):
        raise UserError(f"--num_fewshot={','.join(texts)}: takes numbers from 0, such as 0,4")
    return tuple(sorted({int(text) for text in texts}))


def published_methods(values: flags.FlagValues) -> list[str]:
    """Returns the adaptation methods asked for that leave a published model as it is."""
    return [name for name in values["adapt"].value if not METHODS[name].updates_model]


def listed_published_methods() -> str:
    """Returns the names of the adaptation methods that leave a model as it is, in words."""
    return " or ".join(method.name for method in METHODS.values() if not method.updates_model)


def published_model(values: flags.FlagValues, default: str | None) -> str | None:
    """Returns the model of the published arm, None for no such arm."""
    model = values["model"].value
    named = not values["arms"].using_default_value and "published" in values["arms"].value
    if model is None and (named or values["profile"].value != "quick"):
        model = default
    if named and not model:
        raise UserError("--arms=published: needs --model=NAME, such as minilm-l6")
    if not model or "published" not in values["arms"].value:
        return None
    if not named and encoder_modality(model) is None and not published_methods(values):
        methods = ",".join(values["adapt"].value)
        print(
            f"skipping the published arm: --adapt={methods} trains the model, but published "
            f"weights stay as they are; add {listed_published_methods()} to use it",
            file=sys.stderr,
        )
        return None
    return find_model(model, (PUBLISHED,)).name
