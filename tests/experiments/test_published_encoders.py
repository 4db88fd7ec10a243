"""Published encoders of images and sounds on the command line: compare, adapt, predict, list."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.hf.encoders.helpers_encoders import write_folder

BASE = ("--label_budgets=8,16", "--profile=quick", "--arms=classical,published", "--seeds=2")


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, bright on the left or on the right."""
    rng = np.random.default_rng(0)
    for n in range(80):
        pixels = rng.integers(0, 60, (16, 16), np.uint8)
        pixels[:, 8 * (n % 2) : 8 * (n % 2) + 8] += 150
        folder = tmp_path / "pictures" / ("left", "right")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_compare_with_an_encoder(call, tmp_path, tiny, pictures):
    folder = write_folder(tmp_path / "dino", "dinov2")
    out = tmp_path / "run"
    done = call("compare", f"--dataset={pictures}", f"--model={folder}", f"--out={out}", *BASE)
    assert done.code == 0, done.err
    assert "its features are read as they are; --adapt=probe,full also fine-tunes it" in done.err
    results = json.loads((out / "results.json").read_text())
    rows = [row for row in results["cells"] if row["arm"] == "published"]
    assert {row["method"] for row in rows} == {"probe"} and len(rows) == 4
    assert np.mean([row["value"] for row in rows]) > 0.7
    assert all("reading" in row["hparams"] for row in rows)
    about = results["tasks"][0]["published"]
    read = "images of 16x16, the shorter side resized to 16 (bicubic), cropped to 12x12"
    assert about["model"] == str(folder) and about["reading"].startswith(read)
    page = (out / "report.html").read_text()
    assert "may have seen these very test items" in page and "as 10 tokens" in page


@pytest.mark.slow
def test_adapt_and_predict(call, tmp_path, tiny, pictures):
    folder = write_folder(tmp_path / "vit", "vit")
    new = f"--dataset={pictures}", "--score"
    for method in ("probe", "full", "lora"):
        out = tmp_path / method
        given = f"--dataset={pictures}", "--labels=20", f"--adapt={method}"
        done = call("adapt", *given, f"--model={folder}", f"--out={out}")
        assert done.code == 0, done.err
        if method == "full":  # its parameters are in the saved model
            folder.rename(tmp_path / "elsewhere")
        done = call("predict", f"--model={out / 'model'}", *new, f"--out={out / 'predicted'}")
        assert done.code == 0, done.err
        if method == "full":
            (tmp_path / "elsewhere").rename(folder)
        test = {}
        for name in ("predictions.csv", "predicted/predictions.csv"):
            lines = (out / name).read_text().splitlines()
            test[name] = {line.split(",")[0]: line.split(",")[1:] for line in lines[1:]}
        own, again = test.values()
        assert own and own.keys() <= again.keys()
    write_folder(folder, "vit", seed=1)
    done = call("predict", f"--model={out / 'model'}", *new, f"--out={tmp_path / 'other'}")
    assert done.code == 2 and "now holds another model" in done.error


def test_a_model_that_does_not_read_the_data_is_refused(call, tmp_path, pictures, reviews):
    folder = write_folder(tmp_path / "whisper", "whisper")
    for experiment in ("compare", "ablate"):
        done = call(experiment, f"--dataset={pictures}", f"--model={folder}", *BASE)
        assert done.code == 2
        assert f"--model={folder} is a published model that reads audio" in done.error
        assert "the data is image; takes a model that reads image" in done.error
    path = reviews(reviews.rows)
    done = call("adapt", f"--dataset={path}", f"--model={folder}", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and "reads audio, and the data is text" in done.error
    assert not (tmp_path / "out").exists()
    done = call("generate", f"--model={folder}", "--prompt=a", f"--out={tmp_path / 'out'}")
    assert done.code == 2 and "is an encoder of audio data" in done.error


def test_fine_tuning_is_asked_for_by_its_method(tmp_path, pictures):
    from absl import flags

    from experiments import study_flags

    folder = write_folder(tmp_path / "dino", "dinov2")
    for adapt, finetuned in (((), False), (("--adapt=probe",), False), (("--adapt=full",), True)):
        values = flags.FlagValues()
        study_flags.define(values, suite_name="compare", out="unused")
        values(["x", f"--dataset={pictures}", f"--model={folder}", *BASE, *adapt])
        config = study_flags.configure(values, "compare", suite_name="compare")
        assert config.tasks[0].published.finetuned == finetuned
