"""Model cards say what a run was made of, whatever its names spell."""

import dataclasses
import pathlib

from fm.study.model_card import (
    GENERAL_LIMITS,
    DataSource,
    Figure,
    ModelCard,
    accuracy_figure,
    data_source,
    render,
    write_model_card,
)
from tests.study.helpers_study import dataset, texts

CARD = ModelCard(
    title="reviews",
    summary="Tells good reviews from bad ones.",
    data=[DataSource("reviews.csv", "labels", 1200, "CC0-1.0", "ab12"), DataSource("x", "test")],
    training={"method": "probe", "steps": 1200, "l2": 0.012345, "classes": "good | bad"},
    figures=[Figure("accuracy", 0.612, 0.58, 0.643), Figure("error", -1.5, percent=False)],
    limits=["It reads the first 256 tokens of a text."],
    usage=[("Label a file:", "python -m experiments.predict --model=DIR", "sh")],
    metadata={"library_name": "transformers", "tags": ["a", "b"]},
)


def test_a_card_holds_data_training_figures_limits_and_use():
    text = render(CARD)
    assert text.startswith('---\nlibrary_name: "transformers"\ntags: ["a", "b"]\n---\n\n# reviews')
    assert "| reviews.csv | labels | 1,200 | CC0-1.0 | ab12 |" in text
    assert "| x | test | not known | not known | not known |" in text
    assert "| l2 | 0.01235 |" in text and "| steps | 1,200 |" in text
    assert "| accuracy | 61.2% [58.0%, 64.3%] |" in text and "| error | \u22121.5 |" in text
    assert "```sh\npython -m experiments.predict --model=DIR\n```" in text
    assert all(f"- {limit}" in text for limit in (CARD.limits[0], *GENERAL_LIMITS))


def test_names_cannot_leave_their_cell_or_their_block():
    card = ModelCard("a\nb", "c", [DataSource("x|y\n# z <b>", "labels")], usage=[("", "```", "")])
    text = render(card)
    assert "# a b\n" in text and "| x\\|y # z &lt;b> |" in text
    assert "````\n```\n````" in text
    assert "## Figures" not in text and "## Training" not in text and "---\n\n" not in text


def test_a_card_is_written_as_the_readme_of_a_folder(tmp_path: pathlib.Path):
    assert write_model_card(tmp_path, CARD) == tmp_path / "README.md"
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == render(CARD)


def test_a_file_is_named_without_its_folders(tmp_path: pathlib.Path):
    path = tmp_path / "reviews.csv"
    path.touch()
    found = dataset(make=texts)
    source = data_source(dataclasses.replace(found, name=str(path)), "labels", 7)
    assert (source.name, source.rows) == ("reviews.csv", 7)
    assert data_source(found, "pretraining") == DataSource(
        found.name, "pretraining", len(found.train), "none", found.info["fingerprint"]
    )


def test_an_accuracy_has_an_interval_over_items():
    assert str(accuracy_figure("accuracy", 0.75, 12)) == "75.0% [46.8%, 91.1%]"
    assert str(accuracy_figure("accuracy", 1.0, 200)) == "100.0% [98.1%, 100.0%]"
