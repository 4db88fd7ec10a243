"""Configs as JSON: what is left out, so that hashes of earlier configs stay."""

import dataclasses
from typing import ClassVar

import pytest

from fm.config_io import parse, to_plain
from fm.errors import UserError
from fm.study.config import (
    JointRecipe,
    PublishedConfig,
    PublishedEncoderConfig,
    Recipe,
    config_hash,
)
from fm.study.presets import RECIPES, joint_recipe
from fm.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Part:
    ADDED_FIELDS: ClassVar[tuple[str, ...]] = ("later",)

    size: int
    later: int = 1


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    names: tuple[tuple[str, float], ...] = ()
    part: Part | None = None


def test_added_fields_are_left_out_at_their_default_at_any_depth():
    whole = Whole((Part(1), Part(2, later=3)), (("a", 0.5),), Part(4))
    plain = to_plain(whole)
    assert plain == {
        "parts": [{"size": 1}, {"size": 2, "later": 3}],
        "names": [["a", 0.5]],
        "part": {"size": 4},
    }
    assert parse(Whole, plain, "whole") == whole


def test_dataclasses_of_a_union_are_told_apart_by_their_fields():
    either = PublishedConfig | PublishedEncoderConfig | None
    text = PublishedConfig("a", 64, "{text} {answer}", ("b", "c"))
    for config in (text, PublishedEncoderConfig("a", finetuned=True), None):
        assert parse(either, to_plain(config), "published") == config
    old = to_plain(text) | {"length": 64}
    del old["max_length"]
    assert parse(either, old, "published") == text
    with pytest.raises(UserError, match="published: unknown fields strange"):
        parse(either, {"model": "a", "strange": 1}, "published")


# Of the default recipes before any field was added.
HASHES = {
    "text": "c6c67c532ba4487b",
    "image": "01bfb3d8e029cbfc",
    "audio": "e87e19fc8c29483b",
    "video": "04010146638d93fa",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_uses_no_added_field_has_the_hash_it_had(name):
    recipe = RECIPES[name]("default")
    plain = to_plain(recipe)
    assert config_hash(plain) == HASHES[name]
    assert parse(Recipe, plain, "recipe") == recipe
    changed = dataclasses.replace(recipe, optimizer=OptimizerConfig(warmup_steps=7))
    assert to_plain(changed)["optimizer"]["warmup_steps"] == 7
    assert parse(Recipe, to_plain(changed), "recipe") == changed


def test_a_joint_recipe_likewise():
    assert "grad_accum_steps" not in to_plain(joint_recipe())
    assert parse(JointRecipe, to_plain(joint_recipe()), "recipe") == joint_recipe()
