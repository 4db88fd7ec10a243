"""The recipes: how each format's models are built, pretrained and adapted by default.

What was tried on the way here, and what it gave, is in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.adaptation.features import FeatureConfig
from fm.adaptation.finetune import FinetuneConfig
from fm.errors import UserError
from fm.model.config import ModelConfig, config_for_size
from fm.study.config import Recipe
from fm.study.joint_pretraining import JointRecipe
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig

PROFILES = ("quick", "default", "full")


def text_recipe(profile: str = "default") -> Recipe:
    """Of documents."""
    default = Recipe(
        model=ModelConfig(num_layers=1, d_model=128, num_heads=4, num_kv_heads=4, mlp_dim=256),
        objective=Objective(
            causal_lm=0.03125, masked_lm=0.0, bag_of_words=0.96875, mask_ratio=0.75
        ),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.01),
        steps=1200,
        batch_size=32,
        vocab_size=4096,
        seq_len=256,
        num_windows=2,
        finetune=FinetuneConfig(
            min_steps=40,
            min_epochs=4.0,
            batch_size=16,
            tokens_kept=64,
            feature_config=FeatureConfig(chunk_length=64),
        ),
        learning_rates=(1e-2,),
        l2_penalties=(100.0, 1000.0),
        feature_scaling="standardise",
    )
    return _profiled(default, profile)


def image_recipe(profile: str = "default") -> Recipe:
    """Of small pictures."""
    default = Recipe(
        model=ModelConfig(num_layers=2, d_model=64, num_heads=2, num_kv_heads=2, mlp_dim=256),
        objective=Objective(causal_lm=0.5, masked_lm=0.5, mask_ratio=0.5),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.003),
        steps=800,
        batch_size=64,
        patch_size=2,
        finetune=FinetuneConfig(
            min_steps=40, min_epochs=6.0, batch_size=32, feature_config=FeatureConfig("concat")
        ),
        learning_rates=(3e-3,),
        l2_penalties=(0.001, 0.01),
        feature_scaling="l2",
    )
    return _profiled(default, profile)


def audio_recipe(profile: str = "default") -> Recipe:
    """Of short sounds: as pictures, and tuned for longer."""
    return _profiled(_tuned(image_recipe(), steps=80), profile)


def video_recipe(profile: str = "default") -> Recipe:
    """Of short clips, where what happens matters and not where."""
    whole = _tuned(image_recipe(), steps=80, reading=FeatureConfig("mean"))
    recipe = dataclasses.replace(
        whole,
        feature_scaling="standardise",
        l2_penalties=(10.0, 100.0),
        learning_rates=(1e-3, 3e-3),
    )
    return _profiled(recipe, profile)


def joint_recipe(profile: str = "default") -> JointRecipe:
    """Of one model of several formats."""
    of_pieces = image_recipe().objective
    default = JointRecipe(
        model=ModelConfig(num_layers=2, d_model=96, num_heads=3, num_kv_heads=3, mlp_dim=192),
        objectives=(
            (
                "text",
                Objective(causal_lm=0.0625, masked_lm=0.0, bag_of_words=0.9375, mask_ratio=0.75),
            ),
            ("image", of_pieces),
            ("audio", of_pieces),
            ("video", of_pieces),
        ),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.005),
        steps=800,
        batch_size=96,
        vocab_size=4096,
        seq_len=256,
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
            num_windows=1,
            finetune=dataclasses.replace(
                recipe.finetune, min_steps=recipe.finetune.min_steps // 4, min_epochs=0.0
            ),
            learning_rates=recipe.learning_rates[:1],
            l2_penalties=recipe.l2_penalties[:1],
        )
    return dataclasses.replace(recipe, steps=(8 if profile == "full" else 1) * recipe.steps)


def with_model_size(recipe: Recipe, size: str) -> Recipe:
    """The recipe with a model from the size dial."""
    return dataclasses.replace(recipe, model=config_for_size(size))


def with_patch_size(recipe: Recipe, side: int) -> Recipe:
    """The recipe with square patches of another side, in pixels."""
    return dataclasses.replace(recipe, patch_size=side)


def ner_recipe(profile: str = "default") -> Recipe:
    """Of named entities: sentences, read piece by piece and tuned for longer."""
    quick = profile == "quick"
    whole = _tuned(
        modality_recipe("text", profile),
        steps=25 if quick else 100,
        keep=0,
        epochs=0.0 if quick else 8.0,
        reading=FeatureConfig(),
    )
    return dataclasses.replace(whole, seq_len=64, learning_rates=(5e-3,))


def task_recipe(modality: str, task_type: str, profile: str = "default") -> Recipe:
    """The recipe of a format, or of what a task asks of it (`fm.study.task_types.METRICS`)."""
    return ner_recipe(profile) if task_type == "entities" else modality_recipe(modality, profile)


def modality_recipe(modality: str, profile: str = "default") -> Recipe:
    """The recipe of a format.

    Raises:
      UserError: for a format without one.
    """
    known = {
        "text": text_recipe,
        "image": image_recipe,
        "audio": audio_recipe,
        "video": video_recipe,
    }
    if modality not in known:
        raise UserError(f"no recipe for {modality!r}; there are recipes for {', '.join(known)}")
    return known[modality](profile)


MULTITASK_TASKS = (
    *("film_reviews", "tweet_entities", "docstring_topics", "docstring_summaries"),
    *("digits", "spoken_words", "moving_digits"),
)
# Rows of a step: half of them text.
MULTITASK_WEIGHTS = {
    **{"film_reviews": 20.0, "docstring_topics": 12.0},
    **{"tweet_entities": 8.0, "docstring_summaries": 8.0},
    **{"digits": 16.0, "spoken_words": 16.0, "moving_digits": 16.0},
}
INSTRUCTION_LENGTH = 128
INSTRUCTION_LEARNING_RATES = (4e-3,)


def multitask_recipe(modality: str, task_type: str, joint: JointRecipe, profile: str) -> Recipe:
    """Adaptation of a model of the joint architecture to a task of a format and kind."""
    recipe = task_recipe(modality, task_type, profile)
    return dataclasses.replace(
        recipe,
        model=joint.model,
        vocab_size=joint.vocab_size,
        finetune=_short(recipe.finetune, profile),
    )


def instruction_tuning_config(profile: str) -> FinetuneConfig:
    """Tuning to instructions."""
    return _short(FinetuneConfig(min_steps=384, min_epochs=14.0, batch_size=24), profile)


def _short(finetune: FinetuneConfig, profile: str) -> FinetuneConfig:
    if profile != "quick":
        return finetune
    return dataclasses.replace(finetune, min_steps=min(finetune.min_steps, 10), min_epochs=0.0)
