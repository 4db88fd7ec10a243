"""Recipes by modality, task type and profile."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation.augment import AUGMENTATIONS
from fm.adaptation.features import FeatureConfig
from fm.adaptation.methods import METHODS
from fm.data.media import layout_of
from fm.errors import UserError
from fm.study import presets
from fm.training.progress import step_cost


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
@pytest.mark.parametrize("profile", presets.PROFILES)
def test_classification_takes_the_recipe_of_its_modality(modality, profile):
    own = presets.modality_recipe(modality, profile)
    assert presets.task_recipe(modality, "classification", profile) == own


@pytest.mark.parametrize("profile", presets.PROFILES)
def test_ner_is_fine_tuned_alike_in_both_studies(profile):
    own = presets.task_recipe("text", "ner", profile)
    joint = presets.joint_recipe(profile)
    other = presets.task_recipe_for_joint_model("text", "ner", joint, profile)
    assert own.finetune.tokens_kept == other.finetune.tokens_kept == 0
    assert own.finetune.feature_config == other.finetune.feature_config == FeatureConfig()
    assert (own.seq_len, own.learning_rates) == (other.seq_len, other.learning_rates)
    assert (own.seq_len, own.learning_rates[0]) == (64, 5e-3)
    assert other.model == joint.model and own.model == presets.text_recipe().model
    if profile != "quick":
        assert own.finetune == other.finetune
        assert (own.finetune.min_steps, own.finetune.class_weight) == (80, None)
    else:
        assert own.finetune.min_steps > other.finetune.min_steps == 10
        assert not own.finetune.min_epochs


def test_patches_divide_an_image_into_at_most_64_and_larger_ones_into_256():
    recipe = presets.image_recipe()
    assert presets.with_fitting_patch_size(recipe, [28, 28, 1]).patch_size == 4
    assert presets.with_fitting_patch_size(recipe, None) is recipe
    for shape, side in ([64, 64, 3], 4), ([256, 256, 1], 16), ([148, 148, 1], 37):
        assert presets.with_fitting_patch_size(recipe, shape).patch_size == side
    with pytest.raises(UserError, match="images of 67x61 cannot be divided into 1 to 255 "):
        presets.with_fitting_patch_size(recipe, [67, 61, 1])


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
def test_the_default_searches_what_full_searches(modality):
    full = METHODS["full"]
    spaces = [
        full.search_space(presets.modality_recipe(modality, profile))
        for profile in presets.PROFILES
    ]
    assert [len(each) for each in spaces] == ([1, 4, 4] if modality == "text" else [1, 5, 5])
    assert all(hparams in spaces[2] for hparams in spaces[1])
    names = {hparams["augment"] for hparams in spaces[2]} - {None}
    assert {AUGMENTATIONS[name].modality for name in names} == {modality} - {"text"}


@pytest.mark.parametrize(
    ("modality", "shape", "kept"),
    [
        (
            "image",
            [64, 64, 3],
            "images keep 64x64 pixels (width x height) in 256 patches of side 4",
        ),
        (
            "image",
            [64, 48, 1],
            "images keep 48x64 pixels (width x height) in 192 patches of side 4",
        ),
        (
            "video",
            [8, 64, 64, 1],
            "clips keep 64x64 pixels (width x height) in 256 patches of 2x8x8",
        ),
        *((("image"), [32, 32, 3], None), ("video", [8, 32, 32, 1], None), ("text", None, None)),
        ("audio", [16000], None),
    ],
)
def test_what_larger_images_cost_is_said(modality, shape, kept):
    recipe = presets.image_recipe()
    line = presets.image_size_cost(recipe.model, recipe.objective, modality, shape)
    if kept is None:
        assert line is None
    else:
        assert line.startswith(kept) and " times the training FLOPs of 32x32 in " in line


def test_the_cost_of_an_image_size_is_that_of_a_training_step():
    recipe = presets.image_recipe()
    costs = []
    for side in (64, 32):
        layout = layout_of("image", (side, side, 3), None)
        model = dataclasses.replace(recipe.model, patch_dims=(("image", layout.patch_dim),))
        length = len(layout.positions())
        batch = {
            "image": np.zeros((2, length, layout.patch_dim), np.uint8),
            "segments": np.ones((2, length), np.int32),
        }
        costs.append(step_cost(batch, model, recipe.objective).flops)
    line = presets.image_size_cost(recipe.model, recipe.objective, "image", [64, 64, 3])
    assert line is not None and f", at {costs[0] / costs[1]:.1f} times" in line
    assert costs[0] > 4.5 * costs[1]


def test_no_profile_uses_up_the_unseen_test_items_of_another():
    quick, default, full = (presets.first_test_item(1200, name) for name in presets.PROFILES)
    assert quick + presets.COMPARE["quick"].max_test_items <= 1200 <= default
    assert default + presets.COMPARE["default"].max_test_items <= full
    assert presets.first_test_item(0, "full") == 0


@pytest.mark.parametrize(
    ("modality", "name"), [("text", "token_objectives"), ("image", "large_patches")]
)
def test_other_recipes_differ_in_kind(modality, name):
    first = presets.modality_recipe(modality)
    other = presets.OTHER_RECIPES[modality][name](first)
    assert other.objective != first.objective
    assert other.finetune.feature_config != first.finetune.feature_config
    assert other.learning_rates == first.learning_rates and other.steps == first.steps


@pytest.mark.parametrize(("side", "patch"), [(28, 7), (32, 8), (12, 6)])
def test_large_patches_are_at_least_four(side, patch):
    recipe = presets.OTHER_RECIPES["image"]["large_patches"](presets.image_recipe())
    assert presets.with_fitting_patch_size(recipe, [side, side, 1], 4).patch_size == patch
    with pytest.raises(UserError, match="8x8 cannot be divided into 4 to 64 square patches of"):
        presets.with_fitting_patch_size(recipe, [8, 8, 1], 4)


def test_an_image_of_a_prime_side_is_one_patch():
    assert presets.with_fitting_patch_size(presets.image_recipe(), [31, 31, 1]).patch_size == 31
