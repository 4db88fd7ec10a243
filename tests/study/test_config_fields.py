"""Fields of configs by dotted path, and saved configs read back."""

import json
import lzma

import pytest

from fm.errors import UserError
from fm.study.config import PublishedConfig, StudyConfig, config_hash
from fm.study.config_fields import (
    field_paths,
    nearest_fields,
    read_saved_config,
    study_field_paths,
    study_from_saved,
    with_config_field,
    with_field,
)
from fm.study.search import SearchConfig
from fm.study.text_quality import config as text_quality
from tests.study import helpers_multitask
from tests.study.helpers_study import config, recipe

PUBLISHED = PublishedConfig("minilm-l6", 64, "{text} {answer}", ("a", "b"))


def study(**changes):
    tasks = config(published=PUBLISHED, name="one"), config(name="two.b")
    return StudyConfig(**{"tasks": tasks, "seeds": 2} | changes)


def put(given, field, text):
    return with_field(given, field, text, flag="--set", where=f"--set={field}={text}")


def test_a_field_of_every_task_or_of_one():
    changed = put(study(), "steps", "7")
    assert [task.recipe.steps for task in changed.tasks] == [7, 7]
    for path in ("tasks.two.b.recipe.steps", "tasks.two.b.steps"):
        assert [task.recipe.steps for task in put(study(), path, "7").tasks] == [4, 7]
    changed = put(study(), "tasks.one.published.max_length", "32")
    assert changed.tasks[0].published.max_length == 32 and changed.tasks[1] == study().tasks[1]
    assert put(study(), "tasks.one.published", "null").tasks[0].published is None
    with pytest.raises(UserError, match=r"takes tasks\.NAME\.FIELD, NAME being one of one, two\.b"):
        put(study(), "tasks.three.steps", "7")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("label_budgets", "20,100", (20, 100)),
        ("label_budgets", "[20, 100]", (20, 100)),
        ("learning_rates", "0.01", (0.01,)),
        ("regularizers", "dropout", ("dropout",)),
        ("early_stopping_patience", "null", None),
        ("max_pretrain_minutes", "2", 2.0),
        ("data_dir", "a/b", "a/b"),
        ("encoding", "7", "7"),
        ("model.scan_layers", "true", True),
    ],
)
def test_values_are_parsed_by_the_type_of_the_field(field, text, value):
    task = put(StudyConfig(tasks=(config(),)), field, text).tasks[0]
    found = task if hasattr(task, field) else task.recipe
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_named_parts_of_lists_are_fields():
    given = helpers_multitask.study()
    assert put(given, "weights.fruit", "3").weights == (("fruit", 3.0),)
    masked = put(given, "joint.objectives.image.mask_ratio", "0.3")
    assert dict(masked.joint.objectives)["image"].mask_ratio == 0.3
    whole = text_quality.make_config("quick", ("a", "b"))
    changed = with_config_field(whole, "training_sets.A 1/64.description", "few", where="--set=x")
    assert [each.description == "few" for each in changed.training_sets].count(True) == 1


def test_the_models_of_a_multitask_study_are_those_of_its_joint_recipe():
    given = helpers_multitask.study()
    with pytest.raises(UserError, match=r"give joint\.steps"):
        put(given, "steps", "9")
    assert put(given, "joint.steps", "9").joint.steps == 9
    assert "steps" not in study_field_paths(given) and "joint.steps" in study_field_paths(given)


@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("learning_rate", "optimizer.learning_rate, finetune.learning_rate"),
        ("optimiser.learning_rate", "nearest: optimizer.learning_rate"),
        ("finetune.min_step", "nearest: finetune.min_steps"),
        ("tasks.one.mask_ratios", "nearest: recipe.objective.mask_ratio"),
        ("label_budget", "nearest: label_budgets"),
        ("zzz", "must be one of model, objective"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(field, near):
    with pytest.raises(UserError) as error:
        put(study(), field, "1")
    assert str(error.value).startswith(f"--set={field}=1: no ") and near in str(error.value)
    assert "\n" not in str(error.value)


def test_every_path_listed_can_be_set():
    given = study(tasks=(config(published=PUBLISHED),))
    paths = study_field_paths(given)
    assert len(paths) > 100 and len(set(paths)) == len(paths)
    for path in paths:
        found = given.tasks[0].recipe if path in field_paths(given.tasks[0].recipe) else None
        found = found or (given.tasks[0] if path in field_paths(given.tasks[0]) else given)
        for name in path.split("."):
            found = getattr(found, name)
        text = found if isinstance(found, str) else json.dumps(found)
        assert put(given, path, text) == given, path


def test_nearest_fields_are_at_most_three():
    assert nearest_fields("a.rate", ["b.rate", "c.rate", "d.rate", "e.rate"]) == [
        "b.rate", "c.rate", "d.rate"
    ]  # fmt: skip
    assert nearest_fields("zzz", ["rate"]) == []


@pytest.mark.parametrize(
    "given",
    [
        study(tasks=(config(other_recipes=(recipe("text", name="b"),), published=PUBLISHED),)),
        helpers_multitask.study(),
        SearchConfig(
            tasks=(config(split="development"),),
            arms=("in_domain",),
            fields=(("steps", ("2", "4")),),
            num_trials=2,
        ),
    ],
    ids=lambda given: given.experiment,
)
def test_a_saved_study_is_read_back_with_the_same_hash(given, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(given.to_dict()))
    saved = read_saved_config(path)
    again = study_from_saved(type(given), saved, path)
    assert again == given and config_hash(again.to_dict()) == config_hash(saved)


def test_a_saved_text_quality_study_is_read_back():
    given = text_quality.make_config("full", ("a", "b"), seed=3)
    plain = json.loads(json.dumps(text_quality.to_json(given)))
    assert text_quality.from_json(plain) == given


def test_configs_are_found_in_folders_results_and_compressed_files(tmp_path):
    plain = study().to_dict()
    results = json.dumps({"schema": 2, "experiment": "compare", "config": plain})
    (tmp_path / "config.json").write_text(json.dumps(plain))
    (tmp_path / "results.json").write_text(results)
    (tmp_path / "results.json.xz").write_bytes(lzma.compress(results.encode()))
    for name in ("", "config.json", "results.json", "results.json.xz"):
        assert read_saved_config(tmp_path / name) == plain


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", None, "No such file"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[]", "holds no config of a run"),
        ("a.json", b'{"config": 3}', "holds no config of a run"),
        ("a.json.xz", b"{}", "is not JSON"),
        ("a.json", b"\xff", "is not JSON"),
    ],
)
def test_what_is_no_saved_config_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_saved_config(path)
    assert f"--config={path}" in str(error.value)


def test_a_saved_config_with_another_field_is_refused(tmp_path):
    plain = study().to_dict() | {"magic": 1}
    with pytest.raises(UserError, match="unknown fields magic"):
        study_from_saved(StudyConfig, plain, tmp_path)
