"""CoNLL files to tagged sentences: a word a line, its tag in the last column, BIO checked."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.prepare import is_prepared, open_checked, prepare
from fm.data.readers.folders import visible_entries
from fm.data.readers.plain_files import content_digest, display_name
from fm.data.readers.text import read_utf8
from fm.data.splitting import is_test, text_digest, with_unique_keys
from fm.errors import UserError
from fm.files import cache_dir

CONLL_EXTENSIONS = (".bio", ".conll")
SPLIT_NAMES = {"train": ("train",), "validation": ("dev", "valid"), "test": ("test",)}

_TAG = re.compile(r"O|[BI]-\S+")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words, one tag each ("O", "B-type" or "I-type"), and the line of the first word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    line: int

    def entity_types(self) -> set[str]:
        """The kinds of entity named in it."""
        return {tag[2:] for tag in self.tags if tag != "O"}


@dataclasses.dataclass(frozen=True)
class ConllFile:
    """The sentences of one file.

    Attributes:
        sentences: in order; in each, an entity begins with B- (IOB2).
        num_repaired: how many tags were I- where an entity begins, and are now B-. Files in IOB1
            (CoNLL-2003 as distributed) write it so, and no information is lost; elsewhere it is
            a slip, read as the scorer of CoNLL reads it.
        first_repaired_line: the line of the first of these; 0 for none.
    """

    sentences: list[Sentence]
    num_repaired: int
    first_repaired_line: int


def read_conll(path: pathlib.Path) -> ConllFile:
    """Reads one file, in UTF-8.

    Columns are parted by tabs where a line has one, else by white space: the word is the first,
    its tag the last. Blank lines part sentences. Lines that begin with `-DOCSTART-`, and comments
    (`# `, and no tag at the end), are passed over.

    Raises:
        UserError: a line has one column or no well-formed tag, or there is no sentence; the line
            is named.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    repaired = first = 0
    lines = read_utf8(path).split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("-DOCSTART-") or not line.strip():
            if words:
                sentences.append(Sentence(tuple(words), tuple(tags), number - len(words)))
                words, tags = [], []
            continue
        if _is_comment(line):
            if words:
                raise UserError(f"{path}, line {number}: a comment inside a sentence")
            continue
        word, tag = _word_and_tag(path, number, line)
        if tag.startswith("I-") and (not tags or tags[-1][2:] != tag[2:]):
            repaired, first = repaired + 1, first or number
            tag = "B-" + tag[2:]
        words.append(word)
        tags.append(tag)
    if not sentences:
        raise UserError(f"{path} holds no sentence: a word and its tag a line, blank lines between")
    return ConllFile(sentences, repaired, first)


def find_conll_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The CoNLL files of a folder by split: "train", perhaps "validation", and "test".

    A folder is one of CoNLL files if a file's name says train (`train.conll`, `wnut17train.bio`)
    and one of them ends as CoNLL files do; dev or valid, and test, are told by their names, too.
    Others (a README) are passed over.

    Returns:
        Nothing where the folder is no such folder.

    Raises:
        UserError: two files claim one split, or there is no held-out one.
    """
    files = [path for path in visible_entries(folder) if path.is_file()]
    files = [path for path in files if not path.name.startswith("README")]
    found: dict[str, pathlib.Path] = {}
    for split, names in SPLIT_NAMES.items():
        claims = [path for path in files if any(name in path.name.lower() for name in names)]
        if len(claims) > 1 and any(path.suffix.lower() in CONLL_EXTENSIONS for path in claims):
            both = " and ".join(path.name for path in claims[:2])
            raise UserError(f"{folder}: {both} both say {split} in their names; one is accepted")
        if claims:
            found[split] = claims[0]
    if "train" not in found or not {path.suffix.lower() for path in found.values()} & set(
        CONLL_EXTENSIONS
    ):
        return {}
    if len(found) == 1:
        raise UserError(f"{folder}: beside {found['train'].name} there is no dev or test file")
    return found


def conll_files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The CoNLL files that a path stands for, by split; {"all": path} for a file that is one.

    Nothing where it is something else; see `find_conll`.
    """
    if path.is_dir():
        return find_conll_files(path)
    return {"all": path} if path.suffix.lower() in CONLL_EXTENSIONS else {}


def is_tag(name: str) -> bool:
    """Whether it is O, B-type or I-type."""
    return bool(_TAG.fullmatch(name))


def check_entity_types(
    train: list[Sentence], held_out: list[Sentence], path: pathlib.Path, trained: pathlib.Path
) -> None:
    """That training knows every kind of entity the held-out file has.

    Raises:
        UserError: it lacks one; the line and tag of its first use are named.
    """
    known = {kind for sentence in train for kind in sentence.entity_types()}
    for sentence in held_out:
        for offset, tag in enumerate(sentence.tags):
            if tag != "O" and tag[2:] not in known:
                raise UserError(
                    f"{path}, line {sentence.line + offset}: {tag!r} is not in {trained.name}, "
                    f"which has: {', '.join(sorted(known)) or 'no entity'}"
                )


def _is_comment(line: str) -> bool:
    """A line like `# text = ...`; the word `#` with its columns, the last a tag, is none."""
    return line.startswith("# ") and not _TAG.fullmatch(line.split()[-1])


def _word_and_tag(path: pathlib.Path, number: int, line: str) -> tuple[str, str]:
    fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
    if len(fields) < 2 or not fields[0]:
        raise UserError(
            f"{path}, line {number}: expected a word and its tag, in at least two columns"
        )
    if not _TAG.fullmatch(fields[-1]):
        raise UserError(
            f"{path}, line {number}: unknown tag {fields[-1]!r}; accepted: O, B-type, I-type"
        )
    return fields[0], fields[-1]


BUILDER_NAME = "plain_conll"
TEST_SHARE = 0.2
# Goes up when the same files would be read differently.
VERSION = "1.0.0"


def prepare_conll(path: pathlib.Path, found: Mapping[str, pathlib.Path]) -> Any:
    """Returns a prepared TFDS builder with the sentences of CoNLL files.

    Tags repaired (see `fm.data.readers.conll.ConllFile`) are counted in the metadata and said on stderr.

    Args:
        path: as the user gave it.
        found: the files by split, of `fm.data.readers.conll.conll_files`; those under "all" are split by hash,
            20% test.

    Raises:
        UserError: something about the files is wrong; the message names file and line.
    """
    home = cache_dir() / "files" / content_digest(path, BUILDER_NAME, VERSION)
    done = home / BUILDER_NAME / VERSION
    if is_prepared(done):
        return open_checked(done)
    read = {name: read_conll(file) for name, file in found.items()}
    for name, own in read.items():
        if own.num_repaired:
            print(
                f"{found[name]}: {own.num_repaired} entities begin with I-, the first on line "
                f"{own.first_repaired_line}; read as B-",
                file=sys.stderr,
            )
    sentences = {name: own.sentences for name, own in read.items()}
    for name in sorted(sentences.keys() - {"all", "train"}):
        check_entity_types(sentences["train"], sentences[name], found[name], found["train"])
    if "all" in sentences:
        sentences = split_sentences(sentences["all"], TEST_SHARE)
        if not all(sentences.values()):
            raise UserError(f"{path}: too few sentences for a train and a test split")
    how = "by hash" if "all" in read else "official"
    metadata = {"split": how, "repaired_tags": sum(own.num_repaired for own in read.values())}
    return prepare(
        lambda where: PlainConll(
            sentences=sentences,
            description=f"Files of {display_name(path)}.",
            metadata=metadata,
            data_dir=where,
            file_format="array_record",
        ),
        home,
    )


def bio_tags(types: Iterable[str]) -> list[str]:
    """Returns the tags of some kinds of entity: O, then B- and I- of each, in order of name."""
    return ["O", *(f"{part}-{kind}" for kind in sorted(types) for part in "BI")]


def ner_features(names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Returns the features `words` and `tags`, of one length."""
    return tfds.features.FeaturesDict(
        {
            "words": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(names))),
        }
    )


def keyed_sentences(sentences: Iterable[Sentence]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (unique key, example) of every sentence."""
    return with_unique_keys(
        (sentence_digest(each), {"words": list(each.words), "tags": list(each.tags)})
        for each in sentences
    )


def sentence_digest(sentence: Sentence) -> str:
    """Returns the digest of its words with spaces between, by which it is split."""
    return text_digest(" ".join(sentence.words))


def split_sentences(sentences: Sequence[Sentence], share: float) -> dict[str, list[Sentence]]:
    """Splits by hash, so that training knows every kind of entity.

    Where chance leaves a kind in the test split alone, its sentence of lowest digest (copies
    included) crosses over.

    Args:
        sentences: to split.
        share: expected share of test sentences.

    Returns:
        Sentences under "train" and "test".
    """
    digests = np.array([sentence_digest(sentence) for sentence in sentences])
    held_out = np.array([is_test(each, share) for each in digests], bool)
    for kind in sorted({kind for sentence in sentences for kind in sentence.entity_types()}):
        has = np.array([kind in sentence.entity_types() for sentence in sentences])
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
        types = {kind for sentence in self._sentences["train"] for kind in sentence.entity_types()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            license="not stated: your own files",
            features=ner_features(bio_tags(types)),
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(own) for name, own in self._sentences.items()}

    def _generate_examples(self, sentences: list[Sentence]) -> Iterator[tuple[str, dict]]:
        return keyed_sentences(sentences)
