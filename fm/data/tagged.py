"""Tagged sentences as a TFDS data set: words beside one BIO tag each."""

import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.cache import cache_folder
from fm.data.conll import Sentence, check_types, read_conll
from fm.data.files import digest_of, shown
from fm.data.hashing import in_test, keyed, text_digest
from fm.data.prepare import opened, prepare, ready
from fm.errors import UserError

BUILDER_NAME = "plain_conll"
TEST_SHARE = 0.2
# Goes up when the same files would be read differently.
VERSION = "1.0.0"


def prepared(path: pathlib.Path, found: Mapping[str, pathlib.Path]) -> Any:
    """Returns a prepared TFDS builder with the sentences of CoNLL files.

    Tags repaired (see `fm.data.conll.Conll`) are counted in the metadata and said on stderr.

    Args:
        path: as the user gave it.
        found: the files by split, of `fm.data.conll.found`; those under "all" are split by hash,
            20% test.

    Raises:
        UserError: something about the files is wrong; the message names file and line.
    """
    home = cache_folder() / "files" / digest_of(path, BUILDER_NAME, VERSION)
    done = home / BUILDER_NAME / VERSION
    if ready(done):
        return opened(done)
    read = {name: read_conll(file) for name, file in found.items()}
    for name, own in read.items():
        if own.repaired:
            print(
                f"{found[name]}: {own.repaired} entities begin with I-, the first on line "
                f"{own.first}; read as B-",
                file=sys.stderr,
            )
    sentences = {name: own.sentences for name, own in read.items()}
    for name in sorted(sentences.keys() - {"all", "train"}):
        check_types(sentences["train"], sentences[name], found[name], found["train"])
    if "all" in sentences:
        sentences = split(sentences["all"], TEST_SHARE)
        if not all(sentences.values()):
            raise UserError(f"{path}: too few sentences for a train and a test split")
    how = "by hash" if "all" in read else "official"
    metadata = {"split": how, "repaired_tags": sum(own.repaired for own in read.values())}
    return prepare(
        lambda where: PlainConll(
            sentences=sentences,
            description=f"Files of {shown(path)}.",
            metadata=metadata,
            data_dir=where,
            file_format="array_record",
        ),
        home,
    )


def tag_names(types: Iterable[str]) -> list[str]:
    """Returns the tags of some kinds of entity: O, then B- and I- of each, in order of name."""
    return ["O", *(f"{part}-{kind}" for kind in sorted(types) for part in "BI")]


def features(names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Returns the features `words` and `tags`, of one length."""
    return tfds.features.FeaturesDict(
        {
            "words": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(names))),
        }
    )


def examples(sentences: Iterable[Sentence]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (unique key, example) of every sentence."""
    return keyed(
        (digest(each), {"words": list(each.words), "tags": list(each.tags)}) for each in sentences
    )


def digest(sentence: Sentence) -> str:
    """Returns the digest of its words with spaces between, by which it is split."""
    return text_digest(" ".join(sentence.words))


def split(sentences: Sequence[Sentence], share: float) -> dict[str, list[Sentence]]:
    """Splits by hash, so that training knows every kind of entity.

    Where chance leaves a kind in the test split alone, its sentence of lowest digest (copies
    included) crosses over.

    Args:
        sentences: to split.
        share: expected share of test sentences.

    Returns:
        Sentences under "train" and "test".
    """
    digests = np.array([digest(sentence) for sentence in sentences])
    held_out = np.array([in_test(each, share) for each in digests], bool)
    for kind in sorted({kind for sentence in sentences for kind in sentence.types()}):
        has = np.array([kind in sentence.types() for sentence in sentences])
        if not np.any(has & ~held_out):
            held_out &= digests != min(digests[has].tolist())
    sides = {"train": ~held_out, "test": held_out}
    return {
        side: [sentences[int(i)] for i in np.flatnonzero(where)] for side, where in sides.items()
    }


class PlainConll(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: words; tags. The splits are those given."""

    name = BUILDER_NAME
    VERSION = tfds.core.Version(VERSION)
    pkg_dir_path = None

    def __init__(
        self,
        *,
        sentences: dict[str, list[Sentence]],
        description: str,
        metadata: dict[str, Any],
        **options: Any,
    ):
        self._sentences, self._description, self._metadata = sentences, description, metadata
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        types = {kind for sentence in self._sentences["train"] for kind in sentence.types()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            license="not stated: your own files",
            features=features(tag_names(types)),
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(own) for name, own in self._sentences.items()}

    def _generate_examples(self, sentences: list[Sentence]) -> Iterator[tuple[str, dict]]:
        return examples(sentences)
