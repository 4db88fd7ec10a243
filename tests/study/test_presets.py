"""Recipes by modality, task type and profile."""

import pytest

from fm.adaptation.augment import AUGMENTATIONS
from fm.adaptation.features import FeatureConfig
from fm.adaptation.methods import METHODS
from fm.study import presets


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
        assert (own.finetune.min_steps, own.finetune.class_weight) == (120, None)
    else:
        assert own.finetune.min_steps > other.finetune.min_steps == 10
        assert not own.finetune.min_epochs


def test_patches_divide_an_image_into_at_most_64():
    recipe = presets.image_recipe()
    assert presets.with_fitting_patch_size(recipe, [28, 28, 1]).patch_size == 4
    assert presets.with_fitting_patch_size(recipe, None) is recipe


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
def test_the_default_searches_a_part_of_what_full_searches(modality):
    full = METHODS["full"]
    spaces = [
        full.search_space(presets.modality_recipe(modality, profile))
        for profile in presets.PROFILES
    ]
    assert [len(each) for each in spaces] == ([1, 4, 6] if modality == "text" else [1, 5, 9])
    assert all(hparams in spaces[2] for hparams in spaces[1])
    names = {hparams["augment"] for hparams in spaces[2]} - {None}
    assert {AUGMENTATIONS[name].modality for name in names} == {modality} - {"text"}
