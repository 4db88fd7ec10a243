"""A --model flag finds its model from one level too high or too deep, and says what it took."""

import json

import pytest

from fm.errors import UserError
from fm.study import model_folders
from fm.study.model_folders import ADAPTED, PUBLISHED, RUN, find_model


def make_run(folder):
    (folder / "checkpoints" / "100" / "params").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": "pretrain"}))
    return folder


def make_adapted(folder):
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "params.safetensors").write_bytes(b"")
    return folder


def make_published(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_model_is_itself_whatever_is_below_it(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    make_run(run / "pretrained" / "seed-0")
    assert find_model(str(run)).kind == RUN
    published = find_model(str(make_published(tmp_path / "hf")))
    assert (published.kind, published.name) == (PUBLISHED, str(tmp_path / "hf"))
    assert find_model("minilm-l6").kind == PUBLISHED
    file = tmp_path / "a.gguf"
    file.write_bytes(b"")
    assert find_model(str(file)).path == file
    adapted = find_model(str(make_adapted(tmp_path / "adapted")), (ADAPTED,))
    assert adapted.kind == ADAPTED
    assert not capsys.readouterr().err


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/100", "config.json"])
def test_a_part_of_a_model_stands_for_it(tmp_path, capsys, part):
    run = make_run(tmp_path / "run")
    found = find_model(str(run / part))
    assert (found.kind, found.path) == (RUN, run)
    assert capsys.readouterr().err == f"--model={run / part}: the model is in {run}\n"


def test_a_folder_above_stands_for_the_only_model_in_it(tmp_path, capsys):
    run = make_run(tmp_path / "study" / "pretrained" / "films-in_domain" / "seed-0")
    (tmp_path / "study" / "config.json").write_text(json.dumps({"experiment": "compare"}))
    assert find_model(str(tmp_path / "study")).path == run
    assert f"the model is in {run}" in capsys.readouterr().err
    adapted = make_adapted(tmp_path / "adapt" / "model")
    assert find_model(str(tmp_path / "adapt"), (ADAPTED,)).path == adapted


def test_several_models_are_listed(tmp_path):
    for seed in range(12):
        make_run(tmp_path / f"seed-{seed:02}")
    with pytest.raises(UserError, match=r"holds several models; takes one of .*seed-00") as error:
        find_model(str(tmp_path))
    assert "seed-07 and 4 more" in str(error.value)


def test_a_folder_with_very_many_folders_is_not_searched_to_its_end(tmp_path, monkeypatch):
    make_run(tmp_path / "z")
    for name in "abc":
        (tmp_path / name).mkdir()
    assert find_model(str(tmp_path)).path == tmp_path / "z"
    monkeypatch.setattr(model_folders, "_MAX_FOLDERS", 4)
    with pytest.raises(UserError, match="holds no model"):
        find_model(str(tmp_path))


def test_what_is_no_model_of_the_kind_is_refused(tmp_path):
    run, published = make_run(tmp_path / "run"), make_published(tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("a")
    for name, kinds, parts in (
        ("", (RUN,), ["--model=: takes the --out of fm pretrain"]),
        ("nowhere", (RUN, PUBLISHED), ["no such folder or file", "minilm-l6", "pretrain"]),
        (run, (PUBLISHED,), ["is a model of fm pretrain", "GGUF"]),
        (published, (RUN,), ["is a published model", "fm pretrain"]),
        (tmp_path / "empty", (ADAPTED,), ["holds no model", "OUT/model"]),
        (tmp_path / "file.txt", (RUN,), ["is no model"]),
    ):
        with pytest.raises(UserError) as error:
            find_model(str(name), kinds)
        assert all(part in str(error.value) for part in parts), error.value
