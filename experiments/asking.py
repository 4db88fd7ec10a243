"""Flags that say how a published model reads a text and is asked about it."""

from __future__ import annotations

import re

from absl import flags

from fm.adaptation.prompting import PromptTemplate
from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.hf import model_zoo
from fm.hf.model_zoo import MODEL_ZOO
from fm.study.config import PublishedConfig

# Of data sets whose classes are not words a text would be called.
TEMPLATES = {"film_reviews": ("Review: {text}\nSentiment: {answer}", ("negative", "positive"))}
_WORDS = "{text}\nThe above is: {answer}"


def define(values: flags.FlagValues) -> None:
    """--template, --answers, --shots and --tokens."""
    flags.DEFINE_string(
        "template",
        None,
        "prompt of published models, with {text} and at its end {answer}",
        flag_values=values,
    )
    flags.DEFINE_list(
        "answers", None, "one for each class, in the order of their names", flag_values=values
    )
    flags.DEFINE_list(
        "shots", ["0"], "solved examples that lead a prompt; each is tried", flag_values=values
    )
    flags.DEFINE_integer(
        "tokens",
        64,
        "the most of a text that a published model reads, from both its ends",
        flag_values=values,
        lower_bound=8,
    )


def check(values: flags.FlagValues, model: str | None) -> None:
    """Raises what needs no data to be found wrong; fetches nothing."""
    if model and model not in MODEL_ZOO and model_zoo.locate_model(model) is None:
        raise UserError(
            f"--imported={model}: neither a model's folder (config.json, safetensors), a GGUF "
            f"file, nor one of the names known: {', '.join(MODEL_ZOO)}"
        )
    _shots(values)
    if values["template"].value is not None:
        PromptTemplate(values["template"].value, tuple(values["answers"].value or ("a", "b")))


def imported(
    values: flags.FlagValues, model: str, name: str, data: Dataset
) -> PublishedConfig | None:
    """How the model reads and is asked about this data; None for data that is not text.

    Raises:
      UserError: there are not as many answers as classes, or the template lacks a place.
    """
    if data.modality != "text" or not data.classes:
        return None
    words, answers = TEMPLATES.get(name, (_WORDS, data.classes))
    if values["answers"].value is not None:
        answers = tuple(values["answers"].value)
    if len(answers) != len(data.classes):
        raise UserError(
            f"--answers={','.join(answers)}: takes {len(data.classes)}, one for each class of "
            f"{name}: {', '.join(data.classes)}"
        )
    return PublishedConfig(
        model=model,
        max_length=values["tokens"].value,
        template=values["template"].value or words,
        answers=tuple(answers),
        num_fewshot=_shots(values),
    )


def _shots(values: flags.FlagValues) -> tuple[int, ...]:
    texts = values["shots"].value
    if not texts or not all(re.fullmatch(r" *[0-9]{1,3} *", text) for text in texts):
        raise UserError(f"--shots={','.join(texts)}: takes numbers from 0, such as 0,4")
    return tuple(sorted({int(text) for text in texts}))
