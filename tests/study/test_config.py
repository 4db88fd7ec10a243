"""Configs are checked when they are made, and hash every field."""

import dataclasses
import json

import pytest

from fm.errors import UserError
from fm.study.config import FURTHER_DATA_FIELDS, StudyConfig, config_hash, short_name
from fm.study.presets import modality_recipe
from fm.training.optimizer import OptimizerConfig
from tests.study import helpers_multitask
from tests.study.helpers_study import config, recipe


def study(**changes):
    return StudyConfig(**{"experiment": "test", "tasks": (config(),), "seeds": 2} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("scratch",)}, "takes two or more different arms"),
        ({"arms": ("scratch", "in_domain", "in_domain")}, "takes two or more different arms"),
        ({"seeds": 0}, "--seeds=0: must be 1 to 1000"),
        ({"pretrain_seeds": 3}, "--pretrain_seeds=3: must be 1 to --seeds=2"),
        ({"tasks": (config(), config())}, "fruit, fruit: takes one or more of different names"),
        ({"methods": ("magic",)}, "magic"),
    ],
)
def test_invalid_study_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        study(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("joint",)}, "takes two or more different arms"),
        ({"weights": (("pears", 1.0),)}, "pears is not one of the tasks fruit"),
    ],
)
def test_invalid_multitask_study_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        helpers_multitask.study(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rates": ()},
        {"l2_penalties": (float("nan"),)},
        {"l2_penalties": (1.0, 0.1)},
        {"l2_penalties": (0.1, 1.0, 2.0)},
        {"regularizers": ("dropout", "dropout")},
        {"regularizers": ("magic",)},
        {"search_grid": "all"},
    ],
    ids=str,
)
def test_invalid_recipe_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        recipe(**changes)


def test_config_is_json_and_its_hash_covers_every_field():
    assert json.loads(json.dumps(study().to_dict())) == study().to_dict()
    changed = dataclasses.replace(config(), fingerprint="other")
    others = [study(seeds=3), study(experiment="x"), study(tasks=(changed,))]
    hashes = [config_hash(each.to_dict()) for each in [study(), study(), *others]]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


def test_a_smoke_test_says_so_in_its_json_and_no_other_study_does():
    assert "smoke_test" not in study().to_dict()
    assert study(smoke_test=True).to_dict() == study().to_dict() | {"smoke_test": True}


@pytest.mark.parametrize("field", FURTHER_DATA_FIELDS)
def test_fields_of_data_enter_the_hash_only_where_they_are_given(field):
    assert field not in study().to_dict()["tasks"]["fruit"]
    given = study(tasks=(dataclasses.replace(config(), **{field: "x"}),))
    assert given.to_dict()["tasks"]["fruit"][field] == "x"
    assert config_hash(given.to_dict()) != config_hash(study().to_dict())
    assert given.tasks[0].load_options()[field] == "x"
    assert field not in config().load_options()


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("film_reviews", "film_reviews"),
        ("data/my.reviews.csv", "my"),
        ("folder/by_class/", "by_class"),
        ("glue/sst2:1.0.0", "sst2"),
        ("./.hidden.csv", "hidden"),
    ],
)
def test_short_name(dataset, name):
    assert short_name(dataset) == name


@pytest.mark.parametrize("inside", ["", "sent", "sent/1.0.0"])
def test_short_name_of_the_working_folder(tmp_path, monkeypatch, inside):
    folder = tmp_path / "sent" / "1.0.0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / inside)
    names = {"": ["sent/1.0.0", "./sent/1.0.0/"], "sent": ["1.0.0", ".", "./1.0.0"]}
    for name in names.get(inside, [".", "..", "../1.0.0"]):
        assert short_name(name) == "sent"


@pytest.mark.parametrize("name", ["early_stopping_patience", "finetune_beside_classical_from"])
def test_limits_are_above_0_or_none(name):
    assert getattr(dataclasses.replace(recipe("text"), **{name: None}), name) is None
    with pytest.raises(UserError, match=f"{name}=0: takes a number above 0, or none"):
        dataclasses.replace(recipe("text"), **{name: 0})


def test_a_recipe_with_microbatches_or_a_warm_up_that_do_not_fit():
    recipe = modality_recipe("image")
    with pytest.raises(UserError, match=r"warmup_steps=800: must be below steps=800"):
        dataclasses.replace(recipe, optimizer=OptimizerConfig(warmup_steps=800))
    with pytest.raises(UserError, match=r"grad_accum_steps=3: must be at least 1 and divide"):
        dataclasses.replace(recipe, grad_accum_steps=3)
    assert dataclasses.replace(recipe, grad_accum_steps=4).grad_accum_steps == 4
    with pytest.raises(UserError, match=r"grad_accum_steps=2: must divide .*causal_lm has 1 of"):
        dataclasses.replace(modality_recipe("text"), grad_accum_steps=2)
