"""The built-in tasks in words: what is wanted, several ways each, and the answers."""

from __future__ import annotations

from fm.adaptation.instruction_tuning import Instruction
from fm.errors import UserError

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDINGS = {
    "film_reviews": (
        "is this film review good or bad?",
        "say whether the writer of the review liked the film.",
        "what does the review think of the film, good or bad?",
    ),
    "tweet_entities": (
        "list the names in the text and what kind each is of.",
        "which names does this text have? give kind and name.",
        "find the names in this text and their kinds.",
    ),
    "docstring_topics": (
        "which package is this text about?",
        "name the package that the text is from.",
        "what package does this text belong to?",
    ),
    "docstring_summaries": (
        "give a short summary of the text.",
        "sum up this text in one line.",
        "write one line that says what the text says.",
    ),
    "digits": (
        "which digit is in the picture?",
        "name the digit that the image shows.",
        "what digit does this picture show?",
    ),
    "spoken_words": (
        "which word is spoken?",
        "name the word in the sound.",
        "what word does the voice say?",
    ),
    "moving_digits": (
        "how does the digit move?",
        "name the motion in the clip.",
        "what motion does this clip show?",
    ),
}
_ANSWERS = {"film_reviews": ("bad", "good"), "digits": _DIGITS}


def task_instruction(name: str, task_type: str, classes: tuple[str, ...]) -> Instruction:
    """The instruction of a task: its own words, or plain ones made of its name and classes.

    Args:
      name: of the task.
      task_type: see `fm.study.task_types`.
      classes: names of the classes, if that is what is asked for.

    Raises:
      UserError: two classes of one name.
    """
    plain = name.replace("_", " ")
    wordings = _WORDINGS.get(
        name, (f"{plain}: which is it?", f"{plain}: say which.", f"{plain}: what is it?")
    )
    if task_type != "class":
        return Instruction(name, wordings)
    answers = _ANSWERS.get(name, tuple(each.replace("_", " ") for each in classes))
    if len(answers) != len(classes):
        raise UserError(f"{name} has {len(classes)} classes, not the {len(answers)} it is known by")
    return Instruction(name, wordings, answers)
