"""Attention maps of tiny models of text and images, from the command line."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fm.study.pretraining import load_pretrained, pretrain
from fm.study.processing import build_processor
from fm.training.objectives import PretrainingObjective
from tests.report.test_attention_maps import Page
from tests.study.helpers_study import MODEL, recipe, split, texts

MODELS = dataclasses.replace(MODEL, num_layers=2, num_heads=2, num_kv_heads=2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder per modality, laid out as by `compare`: the tokenizer beside the seeds."""
    home = tmp_path_factory.mktemp("pretrained")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    corpora = {"text": split(texts(40, 0)[0], None), "image": split(images, None)}
    folders = {}
    for modality, corpus in corpora.items():
        own = recipe(modality, model=MODELS)
        if modality == "image":
            own = dataclasses.replace(
                own, objective=PretrainingObjective(causal_lm=0.75, masked_lm=0.25)
            )
        processor = build_processor(corpus, modality, own, home / modality)
        folder = folders[modality] = home / modality / "seed-0"
        pretrain(corpus, modality, own, processor, seed=0, out_dir=folder, run_name=modality)
    return folders


@pytest.fixture
def look(call, pretrained, tmp_path):
    """`look(modality, *arguments)` runs the experiment and returns its page."""

    def run(modality, *arguments):
        out = tmp_path / "out"
        done = call("attention_maps", f"--model={pretrained[modality]}", f"--out={out}", *arguments)
        assert done.code == 0, done.err
        assert str(out / "attention_maps.html") in done.out
        return Page((out / "attention_maps.html").read_text())

    return run


def write_image(path, width=8, height=8, mode="L"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.slow
def test_a_text(look):
    page = look("text", "--text=apple <script>alert(1)</script> pear 🎈")
    assert len(page.scripts) == 2
    assert (page.data["layers"], page.data["heads"]) == (2, 2)
    shown = page.data["names"]
    assert shown[0] == "⟨start⟩" and shown[-1] == "⟨end⟩"
    spelled = "".join(re.sub(" of .", "", name) for name in shown[1:-1])
    assert spelled == "apple·<script>alert(1)</script>·pear·F09F8E88"
    assert "bidirectional; 100% of pretraining attended this way" in page.text
    assert "xla_tiled; its output and the weights shown agree within" in page.text
    assert "100% bag of words (50% masked and left out)" in page.text


def test_a_long_text_in_causal_mode_is_cut(look):
    page = look("text", f"--text={'apple pear ' * 50}", "--max_length=7", "--mode=causal")
    assert page.data["length"] == 7 and page.data["causal"] is True
    assert re.search(r"first 7 of \d+ tokens", page.text)
    assert "causal; 0% of pretraining attended this way" in page.text


def test_an_image_of_another_size_and_mode(look, tmp_path):
    page = look("image", f"--image={write_image(tmp_path / 'wide.png', 12, 8, 'RGB')}")
    assert (page.data["rows"], page.data["columns"], page.data["start"]) == (2, 3, 1)
    assert page.data["causal"] is True and "wide.png" in page.text
    assert len(page.all("figure")) == 4 + 2  # an overlay a head, a map a layer


@pytest.mark.slow
def test_a_test_item_of_each_modality(look, reviews):
    page = look("image", "--dataset=digits", "--item=3", "--mode=bidirectional")
    assert page.data["length"] == 4 and "test item 3 of digits, labeled" in page.text
    page = look("text", f"--dataset={reviews(reviews.rows)}")
    assert "test item 0 of" in page.text and page.data["length"] > 2


def test_a_run_of_pretrain(pretrained, call, tmp_path):
    """A tokenizer beside the checkpoints takes precedence over one in the parent folder."""
    run = shutil.copytree(pretrained["text"], tmp_path / "run")
    shutil.copy(pretrained["text"].parent / "tokenizer.json", run)
    (tmp_path / "tokenizer.json").write_text("of something else")
    done = call("attention_maps", f"--model={run}", "--text=apple", f"--out={tmp_path}")
    assert done.code == 0, done.err
    (run / "tokenizer.json").unlink()
    done = call("attention_maps", f"--model={run}", "--text=apple", f"--out={tmp_path}")
    assert done.code == 2 and "not a saved tokenizer" in done.error


def test_processor_and_objective_are_restored(pretrained):
    found = load_pretrained(pretrained["text"])
    assert found.processor.tokenizer.vocab_size == found.processor.model.vocab_size
    assert found.objective == recipe("text").objective
    assert load_pretrained(pretrained["image"]).objective == PretrainingObjective(
        causal_lm=0.75, masked_lm=0.25
    )


@pytest.mark.parametrize(
    ("model", "arguments", "parts"),
    [
        ("text", [], ["one of --text, --image, --dataset, not none"]),
        ("text", ["--text=a", "--dataset=digits"], ["not --text and --dataset"]),
        ("text", ["--text="], ["--text: the text is empty"]),
        ("text", ["--text=  "], ["--text: the text is empty"]),
        ("text", ["--text=a\udc80"], ["--text: the text is not Unicode at character 1"]),
        ("image", ["--text=a film"], ["--text", "reads images, not text"]),
        ("text", ["--image=IMAGE"], ["--image", "reads text, not images"]),
        ("text", ["--dataset=digits"], ["--dataset=digits", "is image", "reads text"]),
        ("image", ["--image=nowhere.png"], ["--image=nowhere.png", "No such file"]),
        ("image", ["--image=BROKEN"], ["--image=", "not an image that can be read"]),
        ("image", ["--image=ODD"], ["10x8 pixels does not fit", "multiples", "patch size 4"]),
        ("image", ["--image=LARGE"], ["128x128 pixels", "at most 256 patches"]),
        ("image", ["--dataset=digits", "--item=9999"], ["--item=9999", "takes 0 to"]),
        ("image", ["--dataset=digits", "--item=-1"], ["--item=-1: takes"]),
        ("image", ["--dataset=nonsense"], ["unknown data set 'nonsense'"]),
        ("image", ["--image=IMAGE", "--item=2"], ["--item", "goes with --dataset"]),
        ("text", ["--text=a", "--max_length=1"], ["--max_length=1: takes"]),
        ("text", ["--text=a", "--mode=both"], ["--mode=both", "causal, bidirectional"]),
        (None, ["--text=a", "--model=nowhere"], ["--model=nowhere", "seed-0"]),
        (None, ["--text=a"], ["--model", "folder of a pretrained model"]),
    ],
    ids=lambda value: " ".join(value).replace("\udc80", "?") if isinstance(value, list) else None,
)
def test_bad_input(call, pretrained, tmp_path, model, arguments, parts):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    files = {
        "IMAGE": write_image(tmp_path / "image.png"),
        "BROKEN": tmp_path / "broken.png",
        "ODD": write_image(tmp_path / "odd.png", 10, 8),
        "LARGE": write_image(tmp_path / "large.png", 128, 128),
    }
    for name, path in files.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    if model:
        arguments = [f"--model={pretrained[model]}", *arguments]
    done = call("attention_maps", f"--out={tmp_path / 'out'}", *arguments)
    assert done.code == 2 and all(part in done.error for part in parts), done.error
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made(call, pretrained, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/sub"):
        done = call(
            "attention_maps",
            f"--model={pretrained['text']}",
            "--text=apple",
            f"--out={tmp_path / out}",
        )
        assert done.code == 2 and "file" in done.error


@pytest.mark.slow
def test_a_locked_folder_is_left_alone(call, pretrained, tmp_path, held):
    out = tmp_path / "out"
    for name, flags in (
        ("attention_maps", [f"--model={pretrained['text']}", "--text=apple"]),
        ("generate", [f"--model={pretrained['image']}", "--modality=image"]),
    ):
        with held(out) as holder:
            done = call(name, *flags, f"--out={out}")
        assert done.code == 2 and f"in use by process {holder.pid}" in done.error
        assert [path.name for path in out.iterdir()] == [".lock"]
        assert call(name, *flags, f"--out={out}").code == 0
        shutil.rmtree(out)
