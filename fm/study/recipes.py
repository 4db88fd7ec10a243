"""The recipes: how each format's models are built, pretrained and adapted by default.

What was tried on the way here, and what it gave, is in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.errors import UserError
from fm.model.config import ModelConfig, sized
from fm.study.config import Recipe
from fm.study.joint import JointRecipe
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.transfer.features import Reading
from fm.transfer.finetune import FinetuneConfig

PROFILES = ("quick", "default", "full")


def text(profile: str = "default") -> Recipe:
    """Of documents."""
    default = Recipe(
        model=ModelConfig(depth=1, width=128, heads=4, kv_heads=4, hidden=256),
        objective=Objective(next=0.03125, masked=0.0, bag=0.96875, hide=0.75),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.01),
        steps=1200,
        batch_size=32,
        vocab=4096,
        length=256,
        windows=2,
        finetune=FinetuneConfig(
            steps=40, epochs=4.0, batch_size=16, keep=64, reading=Reading(view=64)
        ),
        learning_rates=(1e-2,),
        penalties=(100.0, 1000.0),
        scale="standardise",
    )
    return _profiled(default, profile)


def image(profile: str = "default") -> Recipe:
    """Of small pictures."""
    default = Recipe(
        model=ModelConfig(depth=2, width=64, heads=2, kv_heads=2, hidden=256),
        objective=Objective(next=0.5, masked=0.5, hide=0.5),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.003),
        steps=800,
        batch_size=64,
        patch=2,
        finetune=FinetuneConfig(steps=40, epochs=6.0, batch_size=32, reading=Reading("concat")),
        learning_rates=(3e-3,),
        penalties=(0.001, 0.01),
        scale="l2",
    )
    return _profiled(default, profile)


def audio(profile: str = "default") -> Recipe:
    """Of short sounds: as pictures, and tuned for longer."""
    return _profiled(_tuned(image(), steps=80), profile)


def video(profile: str = "default") -> Recipe:
    """Of short clips, where what happens matters and not where."""
    whole = _tuned(image(), steps=80, reading=Reading("mean"))
    recipe = dataclasses.replace(
        whole, scale="standardise", penalties=(10.0, 100.0), learning_rates=(1e-3, 3e-3)
    )
    return _profiled(recipe, profile)


def joint(profile: str = "default") -> JointRecipe:
    """Of one model of several formats."""
    of_pieces = image().objective
    default = JointRecipe(
        model=ModelConfig(depth=2, width=96, heads=3, kv_heads=3, hidden=192),
        objectives=(
            ("text", Objective(next=0.0625, masked=0.0, bag=0.9375, hide=0.75)),
            ("image", of_pieces),
            ("audio", of_pieces),
            ("video", of_pieces),
        ),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.005),
        steps=800,
        batch_size=96,
        vocab=4096,
        length=256,
    )
    return dataclasses.replace(default, steps=_steps(default.steps, profile))


def _tuned(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, **changes))


def _steps(steps: int, profile: str) -> int:
    return {"quick": steps // 30, "default": steps, "full": 8 * steps}[profile]


def _profiled(recipe: Recipe, profile: str) -> Recipe:
    if profile not in PROFILES:
        raise UserError(f"profile {profile!r} is not known; accepted are {', '.join(PROFILES)}")
    if profile == "quick":
        return dataclasses.replace(
            recipe,
            steps=recipe.steps // 30,
            windows=1,
            finetune=dataclasses.replace(
                recipe.finetune, steps=recipe.finetune.steps // 4, epochs=0.0
            ),
            learning_rates=recipe.learning_rates[:1],
            penalties=recipe.penalties[:1],
        )
    return dataclasses.replace(recipe, steps=(8 if profile == "full" else 1) * recipe.steps)


def with_size(recipe: Recipe, size: str) -> Recipe:
    """The recipe with a model from the size dial."""
    return dataclasses.replace(recipe, model=sized(size))


def with_patch(recipe: Recipe, side: int) -> Recipe:
    """The recipe with square patches of another side, in pixels."""
    return dataclasses.replace(recipe, patch=side)


def entities(profile: str = "default") -> Recipe:
    """Of named entities: sentences, read piece by piece and tuned for longer."""
    quick = profile == "quick"
    whole = _tuned(
        for_format("text", profile),
        steps=25 if quick else 100,
        keep=0,
        epochs=0.0 if quick else 8.0,
        reading=Reading(),
    )
    return dataclasses.replace(whole, length=64, learning_rates=(5e-3,))


def for_task(modality: str, kind: str, profile: str = "default") -> Recipe:
    """The recipe of a format, or of what a task asks of it (`fm.study.kinds.METRICS`)."""
    return entities(profile) if kind == "entities" else for_format(modality, profile)


def for_format(modality: str, profile: str = "default") -> Recipe:
    """The recipe of a format.

    Raises:
      UserError: for a format without one.
    """
    known = {"text": text, "image": image, "audio": audio, "video": video}
    if modality not in known:
        raise UserError(f"no recipe for {modality!r}; there are recipes for {', '.join(known)}")
    return known[modality](profile)
