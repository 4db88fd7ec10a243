"""Published encoders of images and sounds on the command line: compare, adapt, predict, list."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.experiments.helpers_own_data import write_all
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


def rows_of(folder):
    """By id, prediction and probabilities in predictions.csv."""
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if name == "prediction" or name.startswith("p")]
    return {row["id"]: [row[name] for name in kept] for row in rows}


@pytest.mark.slow
def test_compare_with_an_encoder(call, tmp_path, tiny, pictures):
    folder = write_folder(tmp_path / "dino", "dinov2")
    out = tmp_path / "run"
    done = call("compare", f"--dataset={pictures}", f"--model={folder}", f"--out={out}", *BASE)
    assert done.code == 0, done.err
    assert "its features are read as they are; --adapt=probe,full also fine-tunes it" in done.err
    results = json.loads((out / "results.json").read_text())
    rows = [row for row in results["cells"] if row["arm"] == "published"]
    assert {row["hparams"]["method"] for row in rows} == {"probe"} and len(rows) == 4
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
        own, again = (rows_of(out / name) for name in ("", "predicted"))
        assert len(own) > 8 and own == {name: again[name] for name in own}
    write_folder(folder, "vit", seed=1)
    done = call("predict", f"--model={out / 'model'}", *new, f"--out={tmp_path / 'other'}")
    assert done.code == 2 and "now holds another model" in done.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "family", "flags"),
    [
        ("sounds", "audio-spectrogram-transformer", ("--label_field=0", "--adapt=full")),
        ("sounds", "whisper", ("--label_field=0", "--adapt=probe,svc")),
        ("clips", "dinov2_with_registers", ("--adapt=probe",)),
    ],
)
def test_sounds_and_clips(call, tmp_path, tiny, data, family, flags):
    write_all(tmp_path)
    folder = write_folder(tmp_path / family, family)
    out, given = tmp_path / "run", (f"--dataset={tmp_path / data}", "--labels=24", *flags)
    done = call("adapt", *given, f"--model={folder}", f"--out={out}")
    assert done.code == 0, done.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["published"]["model"] == str(folder)
    assert summary["metrics"]["accuracy"] > (0.7 if data == "sounds" else 0.3)
    new = f"--dataset={tmp_path / data}", f"--out={out / 'predicted'}"
    done = call("predict", f"--model={out / 'model'}", *new)
    assert done.code == 0, done.err
    own, again = (rows_of(out / name) for name in ("", "predicted"))
    assert len(own) > 8 and own == {name: again[name] for name in own}


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
    done = call("generate", f"--model={folder}", "--prompt=a")
    assert done.code == 2 and "is an encoder of audio data" in done.error


@pytest.mark.slow
def test_a_dry_run_says_that_its_time_is_not_known(call, tmp_path, tiny, pictures):
    folder = write_folder(tmp_path / "dino", "dinov2")
    given = f"--dataset={pictures}", f"--model={folder}", f"--out={tmp_path / 'run'}"
    done = call("compare", *given, *BASE, "--dry_run")
    assert done.code == 0, done.err
    assert "without the time of the published encoder, which is not known" in done.out


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
