"""CoNLL files to tagged sentences: a word a line, its tag in the last column, BIO checked."""

import dataclasses
import pathlib
import re

from fm.data.folders import visible
from fm.data.text_files import read_utf8
from fm.errors import UserError

ENDINGS = (".bio", ".conll")
SPLITS = {"train": ("train",), "validation": ("dev", "valid"), "test": ("test",)}

_TAG = re.compile(r"O|[BI]-\S+")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words, one tag each ("O", "B-type" or "I-type"), and the line of the first word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    line: int

    def types(self) -> set[str]:
        """The kinds of entity named in it."""
        return {tag[2:] for tag in self.tags if tag != "O"}


@dataclasses.dataclass(frozen=True)
class Conll:
    """The sentences of one file.

    Attributes:
        sentences: in order; in each, an entity begins with B- (IOB2).
        repaired: how many tags were I- where an entity begins, and are now B-. Files in IOB1
            (CoNLL-2003 as distributed) write it so, and no information is lost; elsewhere it is
            a slip, read as the scorer of CoNLL reads it.
        first: the line of the first of these; 0 for none.
    """

    sentences: list[Sentence]
    repaired: int
    first: int


def read_conll(path: pathlib.Path) -> Conll:
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
        if _comment(line):
            if words:
                raise UserError(f"{path}, line {number}: a comment inside a sentence")
            continue
        word, tag = _columns(path, number, line)
        if tag.startswith("I-") and (not tags or tags[-1][2:] != tag[2:]):
            repaired, first = repaired + 1, first or number
            tag = "B-" + tag[2:]
        words.append(word)
        tags.append(tag)
    if not sentences:
        raise UserError(f"{path} holds no sentence: a word and its tag a line, blank lines between")
    return Conll(sentences, repaired, first)


def find_conll(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The CoNLL files of a folder by split: "train", perhaps "validation", and "test".

    A folder is one of CoNLL files if a file's name says train (`train.conll`, `wnut17train.bio`)
    and one of them ends as CoNLL files do; dev or valid, and test, are told by their names, too.
    Others (a README) are passed over.

    Returns:
        Nothing where the folder is no such folder.

    Raises:
        UserError: two files claim one split, or there is no held-out one.
    """
    files = [path for path in visible(folder) if path.is_file()]
    files = [path for path in files if not path.name.startswith("README")]
    found: dict[str, pathlib.Path] = {}
    for split, names in SPLITS.items():
        claims = [path for path in files if any(name in path.name.lower() for name in names)]
        if len(claims) > 1 and any(path.suffix.lower() in ENDINGS for path in claims):
            both = " and ".join(path.name for path in claims[:2])
            raise UserError(f"{folder}: {both} both say {split} in their names; one is accepted")
        if claims:
            found[split] = claims[0]
    if "train" not in found or not {path.suffix.lower() for path in found.values()} & set(ENDINGS):
        return {}
    if len(found) == 1:
        raise UserError(f"{folder}: beside {found['train'].name} there is no dev or test file")
    return found


def found(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The CoNLL files that a path stands for, by split; {"all": path} for a file that is one.

    Nothing where it is something else; see `find_conll`.
    """
    if path.is_dir():
        return find_conll(path)
    return {"all": path} if path.suffix.lower() in ENDINGS else {}


def is_tag(name: str) -> bool:
    """Whether it is O, B-type or I-type."""
    return bool(_TAG.fullmatch(name))


def check_types(
    train: list[Sentence], held_out: list[Sentence], path: pathlib.Path, trained: pathlib.Path
) -> None:
    """That training knows every kind of entity the held-out file has.

    Raises:
        UserError: it lacks one; the line and tag of its first use are named.
    """
    known = {kind for sentence in train for kind in sentence.types()}
    for sentence in held_out:
        for offset, tag in enumerate(sentence.tags):
            if tag != "O" and tag[2:] not in known:
                raise UserError(
                    f"{path}, line {sentence.line + offset}: {tag!r} is not in {trained.name}, "
                    f"which has: {', '.join(sorted(known)) or 'no entity'}"
                )


def _comment(line: str) -> bool:
    """A line like `# text = ...`; the word `#` with its columns, the last a tag, is none."""
    return line.startswith("# ") and not _TAG.fullmatch(line.split()[-1])


def _columns(path: pathlib.Path, number: int, line: str) -> tuple[str, str]:
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
