"""Data sets made from the docstrings of Python and of installed packages.

`docstrings` (unlabeled prose), `docstring_topics` (classification) and `docstring_summaries` (text
to text). Source files are parsed with `ast`; none is imported or run.
"""

import ast
import collections
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import pathlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.data.prepare import BuiltinBuilder, Examples
from fm.data.splitting import is_test, text_digest, with_unique_keys

# Import name to distribution name.
PACKAGES = {"jax": "jax", "numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn"}
PYTHON = "python"
LICENSE = "BSD-3-Clause (numpy, scipy, scikit-learn), Apache-2.0 (jax), PSF-2.0 (Python)"

# Characters.
PROSE_LENGTHS = (1000, 2000)
TOPIC_LENGTHS = (250, 600)
MIN_TOPIC_LENGTH = 120  # the last passage of a file may be short
SUMMARY_TEXT_LENGTHS = (80, 1000)
SUMMARY_TARGET_LENGTHS = (20, 100)

TOPICS = ("jax", "numpy", "python", "scipy", "sklearn")
MASK = "[name]"

_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "vendored", "idlelib", "lib2to3", "site-packages"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)
_CODE = re.compile(r">>>|^\s*\.\. |^\s*[-=~^]{3,}\s*$|^\s*:\w+|\||^\s*\$ ", re.MULTILINE)
_SIGN = re.compile(r"[^a-zA-Z\s,.']")

_DOTTED = r"[A-Za-z_]\w+(?:\.[A-Za-z_]\w+)+"
_NAMED = r"\w*(?:jax|numpy|scipy|sklearn|scikit|python|pytree|ufunc)\w*(?:[ -]learn)?"
_SHORT = r"np|jnp|sp|lax|xla|hlo|stablehlo|mlir|pallas|mosaic|pep \d+"
_GIVEAWAY = re.compile(rf"\b(?:{_DOTTED}|{_NAMED}|{_SHORT})\b", re.IGNORECASE)
_ROLE = re.compile(r":[a-z:]+:`")
_SECTION_START = re.compile(
    r"^(?:Args|Arguments|Attributes|Note|Parameters|Raises|Returns|Yields): +"
)

# Where the prose of a docstring ends: "Parameters" underlined, or "Args:".
_SECTION = re.compile(
    r"^[^\n]*\n\s*[-=~]{3,}\s*$"
    r"|^\s*(?:Args|Arguments|Attributes|Examples?|Keyword Args|Notes|Parameters|Raises|References"
    r"|Returns|See Also|Yields)\s*:",
    re.MULTILINE | re.IGNORECASE,
)
_PARAMETER = re.compile(r"^\w+ ?: ")
_SENTENCE = re.compile(r"[A-Z][A-Za-z,' -]+\.")


@dataclasses.dataclass(frozen=True)
class Docstring:
    """The dedented text of a docstring, and whether it documents a function."""

    text: str
    of_function: bool


@dataclasses.dataclass(frozen=True)
class FileDocstrings:
    """Docstrings of one source file, and its package ("python" for the standard library)."""

    package: str
    docstrings: tuple[Docstring, ...]


def source_paths() -> list[tuple[str, pathlib.Path]]:
    """Returns (package, path) of the source files of the standard library and `PACKAGES`."""
    roots = {PYTHON: pathlib.Path(sysconfig.get_path("stdlib"))}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            roots[name] = pathlib.Path(spec.origin).parent
    return [
        (name, path)
        for name, root in roots.items()
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]


def read_source_files() -> tuple[FileDocstrings, ...]:
    """Returns docstrings by source file of Python, JAX, NumPy, SciPy and scikit-learn, cached."""
    return _parse(tuple(source_paths()))


@functools.lru_cache(maxsize=1)
def _parse(paths: tuple[tuple[str, pathlib.Path], ...]) -> tuple[FileDocstrings, ...]:
    # Syntax trees hold no cycles, and looking for some takes half the time of parsing.
    enabled = gc.isenabled()
    gc.disable()
    try:
        return tuple(
            FileDocstrings(package, tuple(parse_docstrings(path))) for package, path in paths
        )
    finally:
        if enabled:
            gc.enable()


def parse_docstrings(path: pathlib.Path) -> Iterator[Docstring]:
    """Yields the docstrings of a Python source file; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    # Not `ast.walk`: most of a tree is expressions, which hold no docstrings.
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, _DOCUMENTED):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Docstring(docstring, isinstance(node, _FUNCTIONS))
            nodes += reversed(node.body)


def prose_paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """Yields the paragraphs that read as English: no code, tables, markup or bare names."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            words = paragraph.split()
            signs = len(_SIGN.findall(paragraph))
            if len(words) >= 8 and signs <= 0.1 * len(paragraph) and not _CODE.search(paragraph):
                yield " ".join(words)


def join_paragraphs(paragraphs: Iterable[str], min_length: int, max_length: int) -> Iterator[str]:
    """Yields passages of joined paragraphs with min_length to max_length characters if possible.

    A passage ends as soon as it has `min_length` characters, or before the paragraph that would
    take it over `max_length`; a paragraph is never cut, so a very long one makes a longer passage.
    """
    passage = ""
    for paragraph in paragraphs:
        if passage and len(passage) + 2 + len(paragraph) > max_length:
            yield passage
            passage = ""
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) >= min_length:
            yield passage
            passage = ""
    if passage:
        yield passage


class _DocstringBuilder(BuiltinBuilder, skip_registration=True):
    """Base of the builders; the config is named for the installed versions."""

    BUILDER_CONFIGS = [  # noqa: RUF012 (the name and type that TFDS expects)
        tfds.core.BuilderConfig(
            name="_".join(
                [f"python-{platform.python_version()}"]
                + [f"{name}-{importlib.metadata.version(name)}" for name in PACKAGES.values()]
            ).replace("+", ".")
        )
    ]
    LICENSE = LICENSE

    def __init__(self, **options: Any):
        config = self.BUILDER_CONFIGS[0].name
        self.DESCRIPTION = f"{self.DESCRIPTION}: {config.replace('_', ', ')}."
        self.METADATA = {"packages": config.split("_")}
        super().__init__(**options)


class Docstrings(_DocstringBuilder):
    """Unlabeled English prose from docstrings, for out-of-domain pretraining; 2% test by hash.

    Features: text, passages of about 1,000 to 2,000 characters.
    """

    DESCRIPTION = (
        "English prose from the docstrings of scientific Python packages and of Python's standard "
        "library"
    )
    FEATURES = {"text": tfds.features.Text()}  # noqa: RUF012
    TEST_SHARE = 0.02

    def _examples(self) -> Examples:
        for text in _prose_passages():
            yield text_digest(text), {"text": text}


def _prose_passages() -> Iterator[str]:
    """Yields passages of prose, no paragraph twice, no passage across source files."""
    seen: set[str] = set()
    for file in read_source_files():
        paragraphs = []
        for paragraph in prose_paragraphs(docstring.text for docstring in file.docstrings):
            if paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        yield from join_paragraphs(paragraphs, *PROSE_LENGTHS)


class DocstringTopics(_DocstringBuilder):
    """TFDS builder of docstring passages labeled by their package; 20% test, split by hash.

    Features: text, passages of about 250 to 600 characters; label, one of `TOPICS`.

    In each split every topic has as many passages as the rarest. What gives a package away (its
    name, dotted names, a few words only one of them uses) is replaced by `MASK`; markup, in which
    packages differ, is removed. Paragraphs that occur twice are left out.
    """

    DESCRIPTION = (
        "Passages from the docstrings of Python and four packages; the topic is the package, its "
        "name masked"
    )
    FEATURES = {  # noqa: RUF012
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=list(TOPICS)),
    }

    def _examples(self) -> Examples:
        for topic, text in _topic_passages():
            yield text_digest(text), {"text": text, "label": topic}

    def _generate_examples(self, examples: Examples, test: bool) -> Iterator[tuple[str, dict]]:
        by_topic: dict[str, list[tuple[str, dict]]] = {topic: [] for topic in TOPICS}
        for digest, example in examples:
            if is_test(digest, self.TEST_SHARE) == test:
                by_topic[example["label"]].append((digest, example))
        count = min(map(len, by_topic.values()))
        # The first eight digits decide the split; the others are uniform within it.
        chosen = [sorted(own, key=lambda each: each[0][8:])[:count] for own in by_topic.values()]
        return with_unique_keys(example for own in chosen for example in own)


def mask_package_names(text: str) -> str:
    """Returns the paragraph with package names replaced by `MASK` and markup removed."""
    return _GIVEAWAY.sub(MASK, _ROLE.sub("`", _SECTION_START.sub("", text))).replace("`", "")


def _topic_passages() -> Iterator[tuple[str, str]]:
    """Yields (topic, passage), no passage across source files."""
    files = []
    for file in read_source_files():
        paragraphs = prose_paragraphs(docstring.text for docstring in file.docstrings)
        files.append((file.package, [mask_package_names(each) for each in paragraphs]))
    counts = collections.Counter(paragraph for _, own in files for paragraph in own)
    for package, paragraphs in files:
        unique = (paragraph for paragraph in paragraphs if counts[paragraph] == 1)
        for passage in join_paragraphs(unique, *TOPIC_LENGTHS):
            if len(passage) >= MIN_TOPIC_LENGTH:
                yield package, passage


class DocstringSummaries(_DocstringBuilder):
    """Summarization data set: a function's docstring prose as text, its first line as target.

    Features: text, the prose of a function's docstring; target, its first line.

    English only: first lines with code or numbers are left out. No line and no text occurs twice,
    so none is on both sides. Split by hash of the line.
    """

    DESCRIPTION = "The prose of functions' docstrings, and the first line that sums each up"
    FEATURES = {"text": tfds.features.Text(), "target": tfds.features.Text()}  # noqa: RUF012

    def _examples(self) -> Examples:
        for text, target in _summary_pairs():
            yield text_digest(target.lower()), {"text": text, "target": target}


def summarization_pair(docstring: str) -> tuple[str, str] | None:
    """Returns a docstring's (description, summary line), or None if unfit as a training pair."""
    line, _, rest = docstring.partition("\n\n")
    target = " ".join(line.split())
    low, high = SUMMARY_TARGET_LENGTHS
    if not low <= len(target) <= high or not _SENTENCE.fullmatch(target):
        return None
    paragraphs = prose_paragraphs([_SECTION.split(rest, maxsplit=1)[0]])
    text = "\n\n".join(each for each in paragraphs if not _PARAMETER.match(each))
    low, high = SUMMARY_TEXT_LENGTHS
    if not low <= len(text) <= high:
        return None
    # The text must not contain the answer.
    return None if target[:-1].lower() in text.lower() else (text, target)


def _summary_pairs() -> Iterator[tuple[str, str]]:
    """Yields (text, target), each once."""
    seen: set[str] = set()
    for file in read_source_files():
        for docstring in file.docstrings:
            pair = summarization_pair(docstring.text) if docstring.of_function else None
            if pair and not seen.intersection(names := [each.lower() for each in pair]):
                seen.update(names)
                yield pair
