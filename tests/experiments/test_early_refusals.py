"""What data and flags decide is decided before the first step; defaults that fit are taken."""

import csv

import pytest
from absl.flags import FlagValues
from PIL import Image

from experiments import compare, multitask
from fm.errors import UserError
from tests.study.helpers_study import dataset, images


def configured(module, *arguments):
    values = FlagValues()
    module.define(values)
    values(["study", *arguments])
    return module.configure(values)


@pytest.fixture
def twenty(tmp_path):
    path = tmp_path / "twenty.csv"
    with path.open("w", newline="") as file:
        rows = [(f"word{n % 20} and {n}", f"class {n % 20}") for n in range(600)]
        csv.writer(file).writerows([("text", "label"), *rows])
    return f"--dataset={path}"


@pytest.mark.parametrize(
    ("flags", "budgets"),
    [
        (["--profile=quick"], (100,)),
        ([], (100, 400)),
        (["--label_budgets=21,40"], (21, 40)),
    ],
)
def test_default_budgets_leave_something_to_validate_on(twenty, flags, budgets):
    (task,) = configured(compare, twenty, *flags).tasks
    assert task.label_budgets == budgets


@pytest.mark.parametrize("budgets", ["20", "20,100"])
def test_a_budget_without_a_label_to_validate_on_is_refused(call, tmp_path, twenty, budgets):
    out = tmp_path / "out"
    done = call("compare", twenty, f"--label_budgets={budgets}", f"--out={out}")
    assert done.code == 2 and not out.exists()
    assert "--label_budgets=20: leaves no label to validate on for twenty" in done.error
    assert "which has 20 classes; takes 21 to " in done.error
    done = call("adapt", twenty, "--labels=20", f"--out={out}")
    assert done.code == 2 and "--labels=20: leaves no label to validate on" in done.error
    assert not out.exists()


def test_budgets_of_a_joint_study_fit_all_its_tasks(twenty, reviews):
    path = reviews(reviews.rows)
    tasks = f"--tasks={path},{twenty.partition('=')[2]}"
    config = configured(multitask, tasks, "--profile=default")
    assert {task.label_budgets for task in config.tasks} == {(50,)}


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model=minilm-l6", "--adapt=full"], ["--adapt=full", "probe or prompt"]),
        (["--model=minilm-l6", "--adapt=full,lora"], ["--adapt=full,lora", "add probe"]),
        (["--model=minilm-l6", "--arms=scratch,classical"], ["the published arm"]),
        (["--out_of_domain_dataset=digits", "--arms=scratch,in_domain"], ["out_of_domain arm"]),
        (["--name=films"], ["--name=films", "--dataset, which is not given"]),
        (["--dataset=a.csv", "--name=../films"], ["--name=../films", "letters"]),
        (["--dataset=a.csv", "--name="], ["--name=", "letters"]),
        (["--dataset=a.csv", "--name=digits"], ["--name=digits", "built-in task"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_flag_without_effect_is_refused_before_data_are_read(call, monkeypatch, flags, parts):
    monkeypatch.setattr("experiments.study_flags.load", lambda *_, **__: pytest.fail("read"))
    for experiment in ("compare", "ablate"):
        done = call(experiment, *flags)
        assert done.code == 2 and all(part in done.error for part in parts), done.error


def test_the_default_published_arm_is_not_dropped_in_silence(capsys, reviews):
    path = reviews(reviews.rows)
    config = configured(compare, f"--dataset={path}", "--adapt=full", "--name=my films")
    assert "published" not in config.arms and config.tasks[0].name == "my films"
    assert "skipping the published arm: --adapt=full trains the model" in capsys.readouterr().err


def test_instructions_need_text(monkeypatch, capsys):
    monkeypatch.setattr(multitask, "load", lambda name, **_: dataset(name, images, 200, 60))
    config = configured(multitask, "--tasks=halves")
    assert config.arms == ("scratch", "in_domain", "joint", "classical")
    assert "skipping the instruction_tuned arm: instructions are text" in capsys.readouterr().err
    with pytest.raises(UserError, match="--arms: instruction_tuned reads instructions"):
        configured(multitask, "--tasks=halves", "--arms=joint,instruction_tuned")


def test_larger_images_have_a_stated_cost(tmp_path, capsys):
    pixels, labels = images(60, 0, 64)
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        path = tmp_path / "pictures" / "ab"[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(path)
    flags = [f"--dataset={tmp_path / 'pictures'}", "--label_budgets=8"]
    (task,) = configured(compare, *flags, "--image_size=64").tasks
    assert (task.image_size, task.recipe.patch_size) == (64, 4)
    line = "pictures: images keep 64x64 pixels (width x height) in 256 patches of side 4, at "
    assert line in capsys.readouterr().err
    (usual,) = configured(compare, *flags).tasks
    assert (usual.image_size, usual.recipe.patch_size) == (32, 4)
    assert "images keep" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["compare", "ablate", "pretrain", "adapt", "multitask"])
def test_an_image_size_out_of_range_is_refused(call, tmp_path, name):
    out = tmp_path / "out"
    done = call(name, "--image_size=63", f"--out={out}")
    assert done.code == 2 and not out.exists()
    assert "--image_size=63: must be a multiple of 8 from 8 to 256 (pixels)" in done.error
