"""Every default of the studies: recipes by modality, and what quick, default and full mean.

Experiments that led to these values are in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fm.adaptation.features import PLAIN_LAST, FeatureConfig
from fm.adaptation.finetune import FinetuneConfig
from fm.data.datasets import Dataset
from fm.data.media import get_modality, layout_of
from fm.data.patches import DEFAULT_IMAGE_SIZE, is_large, max_patches
from fm.data.prepare import tell_once
from fm.errors import UserError
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.sizes import config_for_size, with_arch
from fm.study.config import JointRecipe, Recipe
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig

PROFILES = ("quick", "default", "full")
_AnyRecipe = TypeVar("_AnyRecipe", Recipe, JointRecipe)


@dataclasses.dataclass(frozen=True)
class StudyPreset:
    """Size of a study for a profile (quick, default or full): label budgets, seeds, data limits.

    Attributes:
      label_budgets: numbers of labels.
      seeds: runs per cell.
      max_test_items: test items scored.
      max_corpus_items: examples used of each corpus, labeled ones first; None for all.
      excluded_arms: arms that run only if they are asked for.
    """

    label_budgets: tuple[int, ...]
    seeds: int = 8
    max_test_items: int = 1000
    max_corpus_items: int | None = None
    excluded_arms: tuple[str, ...] = ()


_SLOW_ARMS = ("self_training", "scratch_compute_matched", "out_of_domain")
COMPARE = {
    "quick": StudyPreset((20, 100), 3, 200, 3000, _SLOW_ARMS),
    "default": StudyPreset((20, 100, 400), 6, excluded_arms=_SLOW_ARMS),
    "full": StudyPreset((20, 100, 400, 1000), max_test_items=3000),
}
MULTITASK = {
    "quick": StudyPreset((50,), 2, 60, 2000),
    "default": StudyPreset((50, 200), 8, 300),
    "full": StudyPreset((50, 200, 800), 8, 300),
}
MAX_INSTRUCTION_LENGTH = 128
INSTRUCTION_LEARNING_RATES = (4e-3,)
# Texts and all modalities together are pretrained so many times as long by the full profile.
_FULL_STEPS = 4


def check_profile(profile: str) -> str:
    """Returns the profile name; raises UserError if it is unknown.

    Raises:
      UserError: it is not one of `PROFILES`.
    """
    if profile not in PROFILES:
        raise UserError(f"--profile={profile}: must be one of {', '.join(PROFILES)}")
    return profile


def first_test_item(unseen_from: int, profile: str) -> int:
    """Returns where the test items of a profile begin, so that no profile uses up another's.

    A quick run is a check and scores items that have been scored before; a full one those that
    follow the default's.

    Args:
      unseen_from: the first item that no result has scored, 0 if there is no such mark.
      profile: one of `PROFILES`.
    """
    if profile == "quick" or not unseen_from:
        return 0
    return unseen_from + (COMPARE["default"].max_test_items if profile == "full" else 0)


def published_max_length(profile: str) -> int:
    """Returns the number of tokens of a text that a published model reads in a profile.

    The networks trained here read up to 512. Features of 64 take 90 CPU seconds in the default job.
    """
    return 256 if check_profile(profile) == "full" else 64


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
            min_steps=30,
            max_epochs=32,
            batch_size=16,
            tokens_kept=32,
            class_weight="balanced",
            feature_config=FeatureConfig(chunk_length=64),
        ),
        learning_rates=(1e-2, 3e-3, 3e-2),
        # On development reviews it costs 0.4 points at 100 labels and 0.7 at 400.
        finetune_beside_classical_from=None,
    )
    return _for_profile(recipe, profile, in_full=_FULL_STEPS)


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
            min_steps=30,
            max_epochs=32,
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
        min_steps=25 if quick else 80,
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
        steps=_steps(800, profile, in_full=_FULL_STEPS),
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


def _token_objectives(recipe: Recipe) -> Recipe:
    """Returns a recipe that predicts next and hidden tokens, for texts of a sentence or two."""
    objective = PretrainingObjective(causal_lm=0.5, masked_lm=0.5, mask_ratio=0.3)
    recipe = dataclasses.replace(recipe, objective=objective, seq_len=128, num_windows=1)
    return _with_finetune(recipe, tokens_kept=0, feature_config=FeatureConfig())


def _large_patches(recipe: Recipe) -> Recipe:
    """Returns a recipe of patches three times the side, most of them hidden, and mean features."""
    objective = PretrainingObjective(causal_lm=0.0, masked_lm=1.0, mask_ratio=0.75)
    recipe = dataclasses.replace(recipe, objective=objective, patch_size=3 * recipe.patch_size)
    return _with_finetune(recipe, feature_config=FeatureConfig("mean"))


# Recipes of another kind by modality and name, made from a task's first recipe.
OTHER_RECIPES: dict[str, dict[str, Callable[[Recipe], Recipe]]] = {
    "text": {"token_objectives": _token_objectives},
    "image": {"large_patches": _large_patches},
}


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


def with_model(recipe: _AnyRecipe, size: str | None = None, arch: str | None = None) -> _AnyRecipe:
    """Returns the recipe with a model of a named size and architecture.

    Args:
      recipe: the recipe.
      size: see `config_for_size`; None leaves the recipe's size.
      arch: see `with_arch`; None leaves the recipe's architecture, or with a size fm's.

    The dtype stays.
    """
    model = recipe.model
    if size is not None:
        model = config_for_size(size, arch or "fm", dtype=model.dtype)
    elif arch is not None:
        model = with_arch(model, arch)
    return dataclasses.replace(recipe, model=model)


def with_plain_head(recipe: Recipe) -> Recipe:
    """Returns a text recipe that classifies as `transformers` does: by the last token, causally.

    A text is one sequence, and the head one linear map without bias.
    """
    feature_config = FeatureConfig(PLAIN_LAST, causal=True)
    recipe = dataclasses.replace(recipe, num_windows=1)
    return _with_finetune(recipe, tokens_kept=0, feature_config=feature_config)


def with_fitting_patch_size(
    recipe: Recipe, shape: list[int] | None, min_patches: int = 1
) -> Recipe:
    """Returns an image recipe with the smallest patch size that gives at most 64 whole patches.

    Images beyond 32x32 pixels may have as many more patches as pixels, up to 256.

    Args:
      recipe: of images; its patch size is the smallest one tried.
      shape: of an example; [height, width, channels] of an image, anything else changes nothing.
      min_patches: fewest patches.

    Raises:
      UserError: no patch does.
    """
    if shape is None or len(shape) != 3:
        return recipe
    height, width, _ = shape
    most = max_patches(height, width)
    for side in range(recipe.patch_size, min(height, width) + 1):
        whole, count = height % side == 0 and width % side == 0, height * width // side**2
        if whole and min_patches <= count <= most:
            return dataclasses.replace(recipe, patch_size=side)
    raise UserError(
        f"images of {height}x{width} cannot be divided into {min_patches} to {most} square "
        f"patches of side {recipe.patch_size} or more"
    )


def image_size_cost(
    model: ModelConfig,
    objective: PretrainingObjective,
    modality: str,
    shape: list[int] | None,
    patch_size: int | None = None,
) -> str | None:
    """Returns a line that says what images or clips beyond 32x32 pixels cost, None for others.

    The cost is the training FLOPs of one example over those of one of 32x32, by `fm.model.flops`.

    Args:
      model: its `patch_dims` are set from the shape.
      objective: of pretraining.
      modality: of the data.
      shape: of an example; None for text.
      patch_size: side of an image patch; by default that of `layout_of`.
    """
    if modality not in ("image", "video") or shape is None or not is_large(*shape[-3:-1]):
        return None
    small = [*shape[:-3], DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE, shape[-1]]
    costs, said = [], []
    for each, size in ((shape, patch_size), (small, None)):
        layout = layout_of(modality, each, None, size)
        count, sides = len(layout.positions()), layout.patch_shape
        costs.append(_example_train_flops(model, objective, modality, count, layout.patch_dim))
        said.append(f"{count} patches of {'side ' if len(sides) == 1 else ''}{_times(sides)}")
    height, width = shape[-3:-1]
    return (
        f"{get_modality(modality).noun}s keep {width}x{height} pixels (width x height) in "
        f"{said[0]}, at {costs[0] / costs[1]:.1f} times the training FLOPs of "
        f"{DEFAULT_IMAGE_SIZE}x{DEFAULT_IMAGE_SIZE} in {said[1]}"
    )


def tell_image_size_cost(
    name: str,
    data: Dataset,
    model: ModelConfig,
    objective: PretrainingObjective,
    patch_size: int | None = None,
) -> None:
    """Prints `image_size_cost` of a data set to stderr, once in a process."""
    shape = data.info.get("shape")
    line = image_size_cost(model, objective, data.modality, shape, patch_size)
    if line is not None:
        tell_once(name, line)


def _example_train_flops(
    model: ModelConfig,
    objective: PretrainingObjective,
    modality: str,
    num_patches: int,
    patch_dim: int,
) -> float:
    """Returns the training FLOPs of one example, averaged over the objective's shares."""
    model = dataclasses.replace(model, patch_dims=((modality, patch_dim),), vocab_size=0)
    total = 0.0
    for name in ("causal_lm", "masked_lm"):
        length, predictions = flops.input_and_prediction_counts(
            name, num_patches, mask_ratio=objective.mask_ratio, has_start_patch=True
        )
        total += getattr(objective, name) * flops.train_flops(
            model, length, num_predictions=predictions, modalities=(modality,)
        )
    return total


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _with_finetune(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, **changes))


def _steps(steps: int, profile: str, *, in_full: int = 1) -> int:
    """Returns the pretraining steps of a profile: `in_full` times as many in the full one."""
    return {"quick": steps // 30, "default": steps, "full": in_full * steps}[check_profile(profile)]


def _for_profile(recipe: Recipe, profile: str, *, in_full: int = 1) -> Recipe:
    recipe = dataclasses.replace(recipe, steps=_steps(recipe.steps, profile, in_full=in_full))
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
