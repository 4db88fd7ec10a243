"""The built-in tasks: one `TaskSpec` each. To add a task, pass one more to `register_task`."""

from __future__ import annotations

import dataclasses

from fm.adaptation.instruction_tuning import InstructionPhrasings
from fm.errors import UserError
from fm.study.config import short_name


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Registry entry of a task: its name, data set, instruction phrasings and prompt template.

    Attributes:
      name: as in --tasks and in results.
      dataset: name or path, as `fm.data.load.load` takes it; "" if it is `name`.
      phrasings: instructions in words, the last of which is held out from training; empty for
        generic ones.
      answers: words for each class in instructions; empty for the names of the classes.
      prompt_template: for published models, see `fm.adaptation.prompting.PromptTemplate`.
      prompt_answers: words for each class in that template; empty for the names of the classes.
      mixture_weight: share of the rows of a joint pretraining step, in any unit.
      out_of_domain_dataset: what the out_of_domain arm is pretrained on; None for no such arm.
      upstream_datasets: what the `upstream` ablation pretrains on, from near to far.
      test_slice: first of the test items scored, in the fixed random order of the test split; items
        before it have been scored by earlier results.
      suites: task suites it belongs to: "compare", "compare_full", "multitask", "ablate".
    """

    name: str
    dataset: str = ""
    phrasings: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    prompt_template: str = "{text}\nThe above is: {answer}"
    prompt_answers: tuple[str, ...] = ()
    mixture_weight: float = 1.0
    out_of_domain_dataset: str | None = None
    upstream_datasets: tuple[str, ...] = ()
    test_slice: int = 0
    suites: tuple[str, ...] = ()

    def instruction(self, classes: tuple[str, ...] | None) -> InstructionPhrasings:
        """Returns the task as an instruction.

        Args:
          classes: class names; None if the answer is generated text.

        Raises:
          UserError: `answers` does not fit the classes, or two answers are equal.
        """
        name = self.name.replace("_", " ")
        generic = (f"{name}: which is it?", f"{name}: say which.", f"{name}: what is it?")
        phrasings = self.phrasings or generic
        if classes is None:
            return InstructionPhrasings(self.name, phrasings)
        answers = self.answers or tuple(each.replace("_", " ") for each in classes)
        if len(answers) != len(classes):
            raise UserError(
                f"{self.name} has {len(classes)} classes, but its task spec {len(answers)} answers"
            )
        return InstructionPhrasings(self.name, phrasings, answers)


TASKS: dict[str, TaskSpec] = {}


def register_task(spec: TaskSpec) -> None:
    """Adds a task to the registry, or replaces the one with the same name."""
    TASKS[spec.name] = spec


def task_spec_or_default(name: str) -> TaskSpec:
    """Returns a registered task's spec, or a default spec for another data set's name or path."""
    return TASKS.get(name) or TaskSpec(short_name(name), dataset=name)


def suite(name: str) -> tuple[str, ...]:
    """Returns the names of the registered tasks that belong to a suite."""
    return tuple(spec.name for spec in TASKS.values() if name in spec.suites)


_BUILT_IN = (
    TaskSpec(
        "film_reviews",
        phrasings=(
            "is this film review good or bad?",
            "say whether the writer of the review liked the film.",
            "what does the review think of the film, good or bad?",
        ),
        answers=("bad", "good"),
        prompt_template="Review: {text}\nSentiment: {answer}",
        prompt_answers=("negative", "positive"),
        mixture_weight=20.0,
        out_of_domain_dataset="docstrings",
        upstream_datasets=("tweet_entities", "docstrings"),
        test_slice=1200,
        suites=("compare", "compare_full", "multitask"),
    ),
    TaskSpec(
        "tweet_entities",
        phrasings=(
            "list the names in the text and what kind each is of.",
            "which names does this text have? give kind and name.",
            "find the names in this text and their kinds.",
        ),
        mixture_weight=8.0,
        out_of_domain_dataset="film_reviews",
        upstream_datasets=("film_reviews", "docstrings"),
        suites=("compare_full", "multitask"),
    ),
    TaskSpec(
        "docstring_topics",
        phrasings=(
            "which package is this text about?",
            "name the package that the text is from.",
            "what package does this text belong to?",
        ),
        mixture_weight=12.0,
        suites=("multitask",),
    ),
    TaskSpec(
        "docstring_summaries",
        phrasings=(
            "give a short summary of the text.",
            "sum up this text in one line.",
            "write one line that says what the text says.",
        ),
        mixture_weight=8.0,
        suites=("multitask",),
    ),
    TaskSpec(
        "digits",
        phrasings=(
            "which digit is in the picture?",
            "name the digit that the image shows.",
            "what digit does this picture show?",
        ),
        answers=(
            *("zero", "one", "two", "three", "four"),
            *("five", "six", "seven", "eight", "nine"),
        ),
        mixture_weight=16.0,
        out_of_domain_dataset="photos",
        upstream_datasets=("moving_digit_frames", "photos"),
        suites=("compare", "compare_full", "multitask", "ablate"),
    ),
    TaskSpec(
        "spoken_words",
        phrasings=(
            "which word is spoken?",
            "name the word in the sound.",
            "what word does the voice say?",
        ),
        mixture_weight=16.0,
        suites=("compare_full", "multitask"),
    ),
    TaskSpec(
        "moving_digits",
        phrasings=(
            "how does the digit move?",
            "name the motion in the clip.",
            "what motion does this clip show?",
        ),
        mixture_weight=16.0,
        suites=("multitask",),
    ),
)
for _spec in _BUILT_IN:
    register_task(_spec)
