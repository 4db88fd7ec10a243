"""Every default of the studies: recipes by modality, and what quick, default and full mean.

Experiments that led to these values are in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from fm.adaptation.features import FeatureConfig
from fm.adaptation.finetune import FinetuneConfig
from fm.data.media import get_modality
from fm.errors import UserError
from fm.model.config import ModelConfig, config_for_size
from fm.study.config import JointRecipe, Recipe
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig

PROFILES = ("quick", "default", "full")


@dataclasses.dataclass(frozen=True)
class StudyPreset:
    """Size of a study for a profile (quick, default or full): label budgets, seeds, data limits.

    Attributes:
      label_budgets: numbers of labels.
      seeds: runs per cell.
      max_test_items: test items scored.
      max_corpus_items: examples used of each corpus; None for all.
      excluded_arms: arms that run only if they are asked for.
    """

    label_budgets: tuple[int, ...]
    seeds: int = 8
    max_test_items: int = 1000
    max_corpus_items: int | None = None
    excluded_arms: tuple[str, ...] = ()


_SLOW_ARMS = ("self_training", "scratch_compute_matched")
COMPARE = {
    "quick": StudyPreset((20, 100), 3, 200, 3000, _SLOW_ARMS),
    "default": StudyPreset((20, 50, 150, 400), excluded_arms=_SLOW_ARMS),
    "full": StudyPreset((20, 50, 150, 400, 1000)),
}
MULTITASK = {
    "quick": StudyPreset((50,), 2, 60, 2000),
    "default": StudyPreset((50, 200), 8, 300),
    "full": StudyPreset((50, 200, 800), 8, 300),
}
MAX_INSTRUCTION_LENGTH = 128
INSTRUCTION_LEARNING_RATES = (4e-3,)
# Pretraining steps of a profile, as a multiple of the default (quick: rounded down).
_STEPS = {"quick": lambda steps: steps // 30, "default": lambda s: s, "full": lambda s: 8 * s}


def check_profile(profile: str) -> str:
    """Returns the profile name; raises UserError if it is unknown.

    Raises:
      UserError: it is not one of `PROFILES`.
    """
    if profile not in PROFILES:
        raise UserError(f"--profile={profile}: must be one of {', '.join(PROFILES)}")
    return profile


def text_recipe(profile: str = "default") -> Recipe:
    """Returns the recipe for text documents."""
    recipe = Recipe(
        model=ModelConfig(num_layers=1, d_model=128, num_heads=4, num_kv_heads=4, mlp_dim=256),
        objective=PretrainingObjective(
            causal_lm=0.03125, masked_lm=0.0, bag_of_words=0.96875, mask_ratio=0.75
        ),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.01),
        steps=1200,
        batch_size=32,
        vocab_size=4096,
        seq_len=256,
        num_windows=2,
        finetune=FinetuneConfig(
            min_steps=120,
            batch_size=16,
            tokens_kept=32,
            class_weight="balanced",
            feature_config=FeatureConfig(chunk_length=64),
        ),
        learning_rates=(1e-2, 3e-3, 3e-2),
    )
    return _for_profile(recipe, profile)


def image_recipe(profile: str = "default") -> Recipe:
    """Returns the model, pretraining and adaptation configuration for small images."""
    recipe = Recipe(
        model=ModelConfig(num_layers=2, d_model=64, num_heads=2, num_kv_heads=2, mlp_dim=256),
        objective=PretrainingObjective(causal_lm=0.5, masked_lm=0.5, mask_ratio=0.5),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.003),
        steps=800,
        batch_size=64,
        patch_size=2,
        finetune=FinetuneConfig(
            min_steps=120,
            batch_size=16,
            class_weight="balanced",
            feature_config=FeatureConfig("concat"),
        ),
        learning_rates=(3e-3, 1e-3, 1e-2),
        regularizers=("weight_decay", "dropout", "affine_erase"),
    )
    return _for_profile(recipe, profile)


def audio_recipe(profile: str = "default") -> Recipe:
    """Returns the recipe for short sounds: the image recipe with masks of time and frequency."""
    recipe = dataclasses.replace(
        image_recipe(), regularizers=("weight_decay", "dropout", "spec_augment")
    )
    return _for_profile(recipe, profile)


def video_recipe(profile: str = "default") -> Recipe:
    """Returns the recipe for short clips; features are averaged over space and time."""
    base = _with_finetune(image_recipe(), feature_config=FeatureConfig("mean"))
    recipe = dataclasses.replace(base, regularizers=("weight_decay", "dropout", "shift_erase"))
    return _for_profile(recipe, profile)


def ner_recipe(profile: str = "default") -> Recipe:
    """Returns the recipe for named entity recognition: short texts, longer fine-tuning."""
    quick = check_profile(profile) == "quick"
    recipe = _with_finetune(
        text_recipe(profile),
        min_steps=25 if quick else 120,
        tokens_kept=0,
        class_weight=None,
        feature_config=FeatureConfig(),
    )
    rates = (5e-3,) if quick else (5e-3, 1.5e-3, 1.5e-2)
    return dataclasses.replace(recipe, seq_len=64, learning_rates=rates)


def joint_recipe(profile: str = "default") -> JointRecipe:
    """Returns the recipe for one model of all modalities."""
    of_patches = image_recipe().objective
    of_text = PretrainingObjective(
        causal_lm=0.0625, masked_lm=0.0, bag_of_words=0.9375, mask_ratio=0.75
    )
    return JointRecipe(
        model=ModelConfig(num_layers=2, d_model=96, num_heads=3, num_kv_heads=3, mlp_dim=192),
        objectives=(
            ("text", of_text),
            ("image", of_patches),
            ("audio", of_patches),
            ("video", of_patches),
        ),
        optimizer=OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.005),
        steps=_STEPS[check_profile(profile)](800),
        batch_size=96,
        vocab_size=4096,
        seq_len=256,
    )


# Recipes by modality, and those of task types that have one of their own: profile -> Recipe.
RECIPES: dict[str, Callable[[str], Recipe]] = {
    "text": text_recipe,
    "image": image_recipe,
    "audio": audio_recipe,
    "video": video_recipe,
}
TASK_TYPE_RECIPES: dict[str, Callable[[str], Recipe]] = {"ner": ner_recipe}


def register_recipe(modality: str, build: Callable[[str], Recipe]) -> None:
    """Registers a function from profile name to `Recipe` as the recipe of a modality."""
    RECIPES[modality] = build


def modality_recipe(modality: str, profile: str = "default") -> Recipe:
    """Returns a modality's default model, pretraining and adaptation settings for a profile.

    Raises:
      UserError: it has none.
    """
    build = RECIPES.get(modality) or get_modality(modality).recipe
    if build is None:
        raise UserError(f"no recipe for {modality!r}; there are recipes for {', '.join(RECIPES)}")
    return build(profile)


def task_recipe(modality: str, task_type: str, profile: str = "default") -> Recipe:
    """Returns the recipe of the task type if it has its own, else that of the modality."""
    if task_type in TASK_TYPE_RECIPES:
        return TASK_TYPE_RECIPES[task_type](profile)
    return modality_recipe(modality, profile)


def task_recipe_for_joint_model(
    modality: str, task_type: str, joint: JointRecipe, profile: str
) -> Recipe:
    """Returns a task's recipe with the architecture replaced by the joint model's."""
    recipe = task_recipe(modality, task_type, profile)
    return dataclasses.replace(
        recipe,
        model=joint.model,
        vocab_size=joint.vocab_size,
        finetune=_shortened(recipe.finetune, profile),
    )


def instruction_tuning_config(profile: str) -> FinetuneConfig:
    """Returns the instruction tuning config of a profile; set its learning rate before use."""
    return _shortened(FinetuneConfig(min_steps=384, min_epochs=14.0, batch_size=24), profile)


def with_model_size(recipe: Recipe, size: str) -> Recipe:
    """Returns the recipe with its model resized to a named size of `config_for_size`."""
    return dataclasses.replace(recipe, model=config_for_size(size))


def with_fitting_patch_size(recipe: Recipe, shape: list[int] | None) -> Recipe:
    """Returns an image recipe with the smallest patch size that gives at most 64 whole patches.

    Args:
      recipe: of images; its patch size is the smallest one tried.
      shape: of an example; [height, width, channels] of an image, anything else changes nothing.

    Raises:
      UserError: no patch of at most 32 pixels does.
    """
    if shape is None or len(shape) != 3:
        return recipe
    height, width, _ = shape
    for side in range(recipe.patch_size, 33):
        if height % side == 0 and width % side == 0 and height * width // side**2 <= 64:
            return dataclasses.replace(recipe, patch_size=side)
    raise UserError(f"images of {height}x{width} cannot be divided into at most 64 square patches")


def _with_finetune(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, **changes))


def _for_profile(recipe: Recipe, profile: str) -> Recipe:
    recipe = dataclasses.replace(recipe, steps=_STEPS[check_profile(profile)](recipe.steps))
    if profile == "full":
        return dataclasses.replace(recipe, search_grid="product")
    if profile != "quick":
        return recipe
    finetune = recipe.finetune
    return dataclasses.replace(
        recipe,
        num_windows=1,
        finetune=dataclasses.replace(finetune, min_steps=10, min_epochs=0.0, max_epochs=8),
        learning_rates=recipe.learning_rates[:1],
        regularizers=recipe.regularizers[:1],
        l2_penalties=(1e-3, 1e-1),
    )


def _shortened(config: FinetuneConfig, profile: str) -> FinetuneConfig:
    if profile != "quick":
        return config
    return dataclasses.replace(config, min_steps=min(config.min_steps, 10), min_epochs=0.0)
