"""The built-in data sets: TFDS builders without TensorFlow, over data in registry packages."""

from typing import Any

from fm.data.builders.arcade_clips import ArcadeClips
from fm.data.builders.digits import Digits, MovingDigitFrames, MovingDigits, Photos
from fm.data.builders.docstrings import Docstrings, DocstringSummaries, DocstringTopics
from fm.data.builders.film_reviews import FilmReviews
from fm.data.builders.list_ops import ListOps
from fm.data.builders.python_sources import PythonSources
from fm.data.builders.spoken_words import SpokenWords
from fm.data.builders.tweet_entities import TweetEntities

BUILDERS: dict[str, Any] = {
    "arcade_clips": ArcadeClips,
    "digits": Digits,
    "docstring_summaries": DocstringSummaries,
    "docstring_topics": DocstringTopics,
    "docstrings": Docstrings,
    "film_reviews": FilmReviews,
    "list_ops": ListOps,
    "moving_digit_frames": MovingDigitFrames,
    "moving_digits": MovingDigits,
    "photos": Photos,
    "python_sources": PythonSources,
    "spoken_words": SpokenWords,
    "tweet_entities": TweetEntities,
}
