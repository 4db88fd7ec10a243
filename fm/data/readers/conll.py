"""Reads CoNLL files (one word per line, BIO tag in the last column) as a TFDS data set."""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.prepare import UserFilesBuilder, is_prepared, open_checked, prepare
from fm.data.readers.examples import TextFormat, to_nfc
from fm.data.readers.folders import FileNameFieldPositions, visible_entries
from fm.data.readers.sources import content_digest, read_sources
from fm.data.readers.text import (
    GZIP_EXTENSION,
    looks_like_conll,
    read_text,
    text_extension,
)
from fm.data.splitting import is_test, text_digest
from fm.errors import UserError
from fm.files import cache_dir

CONLL_EXTENSIONS = (".bio", ".conll", ".iob", ".iob2")
# CoNLL-2003's own names are eng.train, eng.testa (validation) and eng.testb.
_SPLIT_PATTERNS = {
    "train": re.compile("train"),
    "validation": re.compile("dev|valid|testa|(^|[^a-z])val([^a-z]|$)"),
    "test": re.compile("test(?!a)"),
}
_UNLABELED_NAME = re.compile("unlabell?ed|unsup")
BUILDER_NAME = "plain_conll"
TEST_SHARE = 0.2
# To be increased when the same files would be read differently.
VERSION = "1.2.0"

_TAG = re.compile(r"O|[BI]-\S+")
# Marks of the schemes BIOES (or IOBES) and BILOU, and that of the same words in BIO.
_BIO_MARKS = {"S": "B", "U": "B", "E": "I", "L": "I"}


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence's words, their BIO tags ("O", "B-type", "I-type") and its first line number.

    An unlabeled sentence has no tags.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    line: int

    def entity_types(self) -> set[str]:
        """Returns the types of its entities."""
        return {tag[2:] for tag in self.tags if tag != "O"}


@dataclasses.dataclass(frozen=True)
class ParsedConll:
    """Sentences of a CoNLL file, and how many tags were repaired to begin with B- (IOB2).

    Attributes:
        sentences: in order; every entity begins with B- (IOB2).
        num_repaired: tags that began an entity with I- and are now B-. Files in IOB1 (CoNLL-2003 as
            distributed) do so throughout; elsewhere it is an error, read as CoNLL's scorer does.
        first_repaired_line: line of the first of these; 0 if none.
    """

    sentences: list[Sentence]
    num_repaired: int
    first_repaired_line: int


def read_conll(
    path: pathlib.Path, encoding: str = "utf-8", *, with_tags: bool = True
) -> ParsedConll:
    """Returns the sentences of a CoNLL file, with their words and BIO tags.

    Columns are separated by tabs if a line has one, else by white space: the word is the first,
    its tag the last, in BIO, BIOES or BILOU. Blank lines separate sentences. Lines that start with
    `-DOCSTART-`, and comments (`# `, and no tag at the end), are skipped.

    Args:
        path: the file.
        encoding: of the file.
        with_tags: if not, a word may be the only column and tags are not read: sentences have none.

    Raises:
        UserError: a line has one column or no valid tag, or there is no sentence; the message names
            the line.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    num_repaired = first = 0
    lines = read_text(path, encoding).split("\n")
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
        if not with_tags:
            words.append(_word(path, number, line))
            continue
        word, tag = _word_and_tag(path, number, line)
        if tag.startswith("I-") and (not tags or tags[-1][2:] != tag[2:]):
            num_repaired, first = num_repaired + 1, first or number
            tag = "B-" + tag[2:]
        words.append(word)
        tags.append(tag)
    if not sentences:
        what = "a word and its tag" if with_tags else "a word"
        raise UserError(f"{path} holds no sentence: {what} a line, blank lines between")
    return ParsedConll(sentences, num_repaired, first)


def conll_files(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {split: path} of the CoNLL files at a path; {"all": path} for a file, {} for none."""
    if path.is_dir():
        return find_conll_files(path)
    return {"all": path} if _is_conll_file(path) else {}


def find_conll_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns a folder's CoNLL files by split name; {} if it is not a folder of CoNLL files.

    A file's name must contain train (`train.conll`, `wnut17train.bio`), dev or valid, or test, and
    one of them must have a CoNLL extension or, if it is a .txt or .tsv file, look like CoNLL. One
    may be called unlabeled, and hold text or a table. Other files (a README) are ignored.

    Returns:
        {} if it is no such folder; the training file under "all" if only unlabeled text is beside.

    Raises:
        UserError: two files of one split, or no held-out split.
    """
    files = [path for path in visible_entries(folder) if path.is_file()]
    files = [path for path in files if not path.name.startswith("README")]
    found: dict[str, pathlib.Path] = {}
    unlabeled = [path for path in files if _UNLABELED_NAME.search(path.name.lower())]
    files = [path for path in files if path not in unlabeled]
    for split, pattern in _SPLIT_PATTERNS.items():
        matching = [path for path in files if pattern.search(path.name.lower())]
        if len(matching) > 1 and any(map(_is_conll_file, matching)):
            both = " and ".join(path.name for path in matching[:2])
            raise UserError(f"{folder}: {both} both say {split} in their names; one is accepted")
        if matching:
            found[split] = matching[0]
    if "train" not in found or not any(map(_is_conll_file, found.values())):
        return {}
    if len(unlabeled) > 1:
        both = " and ".join(path.name for path in unlabeled[:2])
        raise UserError(f"{folder}: {both} both say unlabeled in their names; one is accepted")
    if len(found) == 1 and not unlabeled:
        raise UserError(f"{folder}: beside {found['train'].name} there is no dev or test file")
    if len(found) == 1:
        found = {"all": found["train"]}
    return found | ({"unlabeled": unlabeled[0]} if unlabeled else {})


def _is_conll_file(path: pathlib.Path) -> bool:
    if _has_conll_extension(path):
        return True
    # `eng.train` has an ending of its own.
    likely = text_extension(path) in (".txt", ".tsv") or _SPLIT_PATTERNS["train"].search(
        path.suffix.lower()
    )
    return bool(likely) and looks_like_conll(path)


def _has_conll_extension(path: pathlib.Path) -> bool:
    return path.name.lower().removesuffix(GZIP_EXTENSION).endswith(CONLL_EXTENSIONS)


def is_bio_tag(name: str) -> bool:
    """Returns whether the string is "O", "B-type" or "I-type"."""
    return bool(_TAG.fullmatch(name))


def to_bio_tag(tag: str) -> str:
    """Returns the BIO tag of the same word for a tag in BIOES or BILOU; other tags as they are."""
    mark, hyphen, kind = tag.partition("-")
    return _BIO_MARKS.get(mark, mark) + hyphen + kind if hyphen else tag


def check_entity_types(
    train: list[Sentence],
    held_out: list[Sentence],
    held_out_path: pathlib.Path,
    train_path: pathlib.Path,
) -> None:
    """Raises UserError if the held-out sentences have an entity type that training lacks.

    Raises:
        UserError: it lacks one; the message names the line and tag of its first use.
    """
    known = {kind for sentence in train for kind in sentence.entity_types()}
    for sentence in held_out:
        for offset, tag in enumerate(sentence.tags):
            if tag != "O" and tag[2:] not in known:
                raise UserError(
                    f"{held_out_path}, line {sentence.line + offset}: {tag!r} is not in "
                    f"{train_path.name}, which has: {', '.join(sorted(known)) or 'no entity'}"
                )


def _is_comment(line: str) -> bool:
    """`# text = ...` is a comment; the word `#` with its columns, the last a tag, is not."""
    return line.startswith("# ") and not is_bio_tag(to_bio_tag(line.split()[-1]))


def _columns(line: str) -> list[str]:
    return [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]


def _word(path: pathlib.Path, number: int, line: str) -> str:
    word = _columns(line)[0]
    if not word:
        raise UserError(f"{path}, line {number}: expected a word in the first column")
    return word


def _word_and_tag(path: pathlib.Path, number: int, line: str) -> tuple[str, str]:
    fields = _columns(line)
    if len(fields) < 2 or not fields[0]:
        raise UserError(
            f"{path}, line {number}: expected a word and its tag, in at least two columns"
        )
    tag = to_bio_tag(fields[-1])
    if not is_bio_tag(tag):
        raise UserError(
            f"{path}, line {number}: unknown tag {fields[-1]!r}; accepted: O, B-type, I-type, and "
            "those of BIOES and BILOU"
        )
    return fields[0], to_nfc(tag)


def prepare_conll(
    path: pathlib.Path,
    files: Mapping[str, pathlib.Path],
    encoding: str = "utf-8",
    beside: Mapping[str, Sequence[pathlib.Path]] | None = None,
    text_column: str = TextFormat.text_column,
) -> Any:
    """Returns a prepared TFDS builder with the sentences of CoNLL files.

    The number of repaired tags (see `ParsedConll`) is in the metadata, and among its `notices`. A
    validation file in the folder stands in for a test file, and is left out beside one; one that is
    given in `beside` joins the training sentences if there is a test file.

    Args:
        path: as given by the user.
        files: by split, from `conll_files`; "all" is split by hash, 20% test.
        encoding: of the files.
        beside: further files by split; those of "unlabeled" hold text, a table, or words with tags,
            which are not read.
        text_column: of such a table.

    Raises:
        UserError: the files are not as expected; the message names file and line.
    """
    given = {split: list(paths) for split, paths in (beside or {}).items()}
    digest = content_digest(path, BUILDER_NAME, VERSION, encoding)
    if given:
        parts = [f"{split} {content_digest(each)}" for split, own in given.items() for each in own]
        digest = hashlib.sha256("\n".join([digest, text_column, *parts]).encode()).hexdigest()[:32]
    data_dir = cache_dir() / "files" / digest
    prepared = data_dir / BUILDER_NAME / VERSION
    if is_prepared(prepared):
        return open_checked(prepared)
    tagged, unlabeled = _with_files_beside(path, files, given)
    read = {name: read_conll(file, encoding) for name, file in tagged.items()}
    notices = []
    if not all(map(_has_conll_extension, tagged.values())):
        names = ", ".join(file.name for file in tagged.values())
        notices.append(f"{names}: read as CoNLL, a word and its entity tag a line")
    for name, own in read.items():
        if own.num_repaired:
            notices.append(
                f"{tagged[name].name}: {own.num_repaired} entities begin with I-, the first on "
                f"line {own.first_repaired_line}; read as B-"
            )
    sentences = {name: own.sentences for name, own in read.items()}
    for name in sorted(sentences.keys() - {"all", "train"}):
        check_entity_types(sentences["train"], sentences[name], tagged[name], tagged["train"])
    places = _Places()
    for name, own in sentences.items():
        left_out = name == "validation" and "test" in sentences and "validation" not in given
        places.add(tagged[name].name, own, "validation split" if left_out else "")
    if "validation" in given:
        joins = "test" in sentences
        said = "joins the training sentences" if joins else "is read as the test split"
        notices.append(f"the validation split ({tagged['validation'].name}) {said}")
        if joins:
            sentences["train"] = sentences["train"] + sentences.pop("validation")
    if "all" in sentences:
        sentences = split_sentences(sentences["all"], TEST_SHARE)
        if not all(sentences.values()):
            raise UserError(f"{path}: too few sentences for a train and a test split")
    types = {kind for sentence in sentences["train"] for kind in sentence.entity_types()}
    for file in unlabeled:
        for name, more in _read_unlabeled(file, encoding, text_column, notices).items():
            places.add(name, more)
            sentences["train"] = sentences["train"] + more
    metadata = {
        "split": "by hash" if "all" in read else "official",
        "notices": notices,
        "repaired_tags": sum(own.num_repaired for own in read.values()),
        "files": places.files,
    }
    splits = {
        name: functools.partial(_placed_examples, own, places) for name, own in sentences.items()
    }
    features = ner_feature_spec(bio_tags(types)) | {
        "row_id": tfds.features.Text(),
        "file": tfds.features.Scalar(np.int32),
        "position": tfds.features.Scalar(np.int64),
    }
    return prepare(
        lambda where: UserFilesBuilder(
            name=BUILDER_NAME,
            version=VERSION,
            path=path,
            splits=splits,
            features=features,
            metadata=metadata,
            data_dir=where,
        ),
        data_dir,
    )


def _with_files_beside(
    path: pathlib.Path,
    files: Mapping[str, pathlib.Path],
    given: Mapping[str, Sequence[pathlib.Path]],
) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
    """Returns the tagged files by split, and the unlabeled ones.

    Raises:
        UserError: a split is given twice, or a file has no tags.
    """
    tagged = {split: file for split, file in files.items() if split != "unlabeled"}
    for split in ("validation", "test"):
        for file in given.get(split, ()):
            if split in tagged:
                raise UserError(
                    f"--{split}={file}: {path} has a {split} split already; one is accepted"
                )
            if set(conll_files(file)) != {"all"}:
                raise UserError(
                    f"--{split}={file}: {path} holds words with tags, and this is no such file"
                )
            if "all" in tagged:
                tagged["train"] = tagged.pop("all")
            tagged[split] = file
    unlabeled = [files["unlabeled"]] if "unlabeled" in files else []
    return tagged, [*unlabeled, *given.get("unlabeled", ())]


def _read_unlabeled(
    path: pathlib.Path, encoding: str, text_column: str, notices: list[str]
) -> dict[str, list[Sentence]]:
    """Returns unlabeled sentences by file; words are what white space separates.

    Raises:
        UserError: the file does not hold text.
    """
    if set(conll_files(path)) == {"all"}:
        own = read_conll(path, encoding).sentences
        return {path.name: [dataclasses.replace(each, tags=()) for each in own]}
    form = TextFormat(text_column, encoding=encoding).without_labels()
    source = [("unlabeled", path)]
    found: dict[str, list[Sentence]] = {}
    with read_sources(source, form, FileNameFieldPositions(), notices) as (by_split, _):
        for number, example in enumerate(by_split["unlabeled"], start=1):
            if not isinstance(example.content, str):
                raise UserError(f"--unlabeled={path}: takes text, not {example.content.name}")
            words = tuple(example.content.split())
            found.setdefault(example.file, []).append(Sentence(words, (), number))
    return found


class _Places:
    """Where sentences were read from: their files, and row id, file and position of each."""

    def __init__(self):
        self.files: list[dict[str, Any]] = []
        self._by_sentence: dict[int, dict[str, Any]] = {}

    def add(self, name: str, sentences: Sequence[Sentence], left_out: str = "") -> None:
        """Adds the sentences of a file; all are ignored for the reason `left_out`, if given."""
        name = name.encode("utf-8", "replace").decode()
        ignored = {left_out: len(sentences)} if left_out else {}
        for sentence in sentences:
            self._by_sentence[id(sentence)] = {
                "row_id": f"{name}:{sentence.line}",
                "file": len(self.files),
                "position": len(self._by_sentence),
            }
        file = {"name": name, "rows": len(sentences), "ignored": ignored, "noun": "sentences"}
        self.files.append(file)

    def of(self, sentence: Sentence) -> dict[str, Any]:
        """Returns row id, file and position of a sentence."""
        return self._by_sentence[id(sentence)]


def bio_tags(entity_types: Iterable[str]) -> list[str]:
    """Returns the BIO tag names of entity types: "O", then "B-" and "I-" of each type, sorted."""
    return ["O", *(f"{part}-{kind}" for kind in sorted(entity_types) for part in "BI")]


def ner_feature_spec(tags: Sequence[str]) -> dict[str, Any]:
    """Returns the TFDS feature specification of NER examples: `words`, and one tag per word."""
    return {
        "words": tfds.features.Sequence(tfds.features.Text()),
        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(tags))),
    }


def sentence_examples(sentences: Iterable[Sentence]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (hash of its words, {"words", "tags"} example) for each sentence."""
    for sentence in sentences:
        example = {"words": list(sentence.words), "tags": list(sentence.tags)}
        yield sentence_digest(sentence), example


def _placed_examples(
    sentences: Sequence[Sentence], places: _Places
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `sentence_examples` with the place of each sentence in its file."""
    for sentence, (digest, example) in zip(sentences, sentence_examples(sentences), strict=True):
        yield digest, example | places.of(sentence)


def sentence_digest(sentence: Sentence) -> str:
    """Returns the hex digest of a sentence's words, which decides its split."""
    return text_digest(" ".join(sentence.words))


def split_sentences(sentences: Sequence[Sentence], share: float) -> dict[str, list[Sentence]]:
    """Returns sentences under "train" and "test", split by hash; train has every entity type.

    If a type is in the test split alone, its sentence of lowest digest moves (with its copies).

    Args:
        sentences: to split.
        share: expected fraction of test sentences.

    Returns:
        Sentences under "train" and "test".
    """
    digests = np.array([sentence_digest(sentence) for sentence in sentences])
    held_out = np.array([is_test(digest, share) for digest in digests], bool)
    for kind in sorted({kind for sentence in sentences for kind in sentence.entity_types()}):
        has = np.array([kind in sentence.entity_types() for sentence in sentences])
        if not np.any(has & ~held_out):
            held_out &= digests != min(digests[has].tolist())
    sides = {"train": ~held_out, "test": held_out}
    return {side: [sentences[int(i)] for i in np.flatnonzero(mask)] for side, mask in sides.items()}
