"""The study's defaults: how each kind of task is adapted to, and how the one network is tuned.

What was tried on the way here, and what it gave, is in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses

from fm.study import recipes
from fm.study.config import Recipe
from fm.study.joint import JointRecipe
from fm.transfer.finetune import FinetuneConfig

TASKS = (
    *("film_reviews", "tweet_entities", "docstring_topics", "docstring_summaries"),
    *("digits", "spoken_words", "moving_digits"),
)
# Rows of a step: half of them text.
WEIGHTS = {
    **{"film_reviews": 20.0, "docstring_topics": 12.0},
    **{"tweet_entities": 8.0, "docstring_summaries": 8.0},
    **{"digits": 16.0, "spoken_words": 16.0, "moving_digits": 16.0},
}
LENGTH = 128
FOLLOWING_RATES = (4e-3,)


def adapting(modality: str, kind: str, joint: JointRecipe, profile: str) -> Recipe:
    """Adaptation of a model of the joint architecture to a task of a format and kind."""
    recipe = recipes.for_task(modality, kind, profile)
    return dataclasses.replace(
        recipe, model=joint.model, vocab=joint.vocab, finetune=_short(recipe.finetune, profile)
    )


def following(profile: str) -> FinetuneConfig:
    """Tuning to instructions."""
    return _short(FinetuneConfig(steps=384, epochs=14.0, batch_size=24), profile)


def _short(finetune: FinetuneConfig, profile: str) -> FinetuneConfig:
    if profile != "quick":
        return finetune
    return dataclasses.replace(finetune, steps=min(finetune.steps, 10), epochs=0.0)
