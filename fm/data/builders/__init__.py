"""The built-in data sets, each a TensorFlow-free TFDS builder over data in a registry package."""

import pathlib
from typing import Any

from fm.data.builders.arcade_clips import ArcadeClips
from fm.data.builders.digits import Digits
from fm.data.builders.docstring_summaries import DocstringSummaries
from fm.data.builders.docstring_topics import DocstringTopics
from fm.data.builders.docstrings import Docstrings
from fm.data.builders.film_reviews import FilmReviews
from fm.data.builders.moving_digits import MovingDigits
from fm.data.builders.photos import Photos
from fm.data.builders.spoken_words import SpokenWords
from fm.data.builders.tweet_entities import TweetEntities

NAMES = (
    *("arcade_clips", "digits", "docstring_summaries", "docstring_topics", "docstrings"),
    *("film_reviews", "moving_digits", "photos", "spoken_words", "tweet_entities"),
)


def make(name: str, data_dir: pathlib.Path) -> Any:
    """Returns the built-in builder `name` (of `NAMES`), writing ArrayRecord in `data_dir`."""
    options: dict[str, Any] = {"data_dir": data_dir, "file_format": "array_record"}
    match name:
        case "arcade_clips":
            return ArcadeClips(**options)
        case "digits":
            return Digits(**options)
        case "docstring_summaries":
            return DocstringSummaries(**options)
        case "docstring_topics":
            return DocstringTopics(**options)
        case "docstrings":
            return Docstrings(**options)
        case "film_reviews":
            return FilmReviews(**options)
        case "moving_digits":
            return MovingDigits(**options)
        case "photos":
            return Photos(**options)
        case "spoken_words":
            return SpokenWords(**options)
        case "tweet_entities":
            return TweetEntities(**options)
    raise KeyError(name)
