"""Unlabelled English prose from the docstrings of installed packages: upstream data for reviews.

The source files are read as text and parsed with `ast`; none is imported or run.
"""

import ast
import contextlib
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

from fm.data.hashing import in_test, keyed, text_digest

TEST_SHARE = 0.02
# Import name to distribution name.
PACKAGES = {"jax": "jax", "numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn"}
LENGTHS = (1000, 2000)

_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "vendored", "idlelib", "lib2to3", "site-packages"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_CODE = re.compile(r">>>|^\s*\.\. |^\s*[-=~^]{3,}\s*$|^\s*:\w+|\||^\s*\$ ", re.MULTILINE)
_SIGN = re.compile(r"[^a-zA-Z\s,.']")


def _installed_config() -> tfds.core.BuilderConfig:
    """Returns the config named for the installed versions, on which the text depends."""
    versions = [f"python-{platform.python_version()}"]
    versions += [f"{name}-{importlib.metadata.version(name)}" for name in PACKAGES.values()]
    return tfds.core.BuilderConfig(name="_".join(versions).replace("+", "."))


class Docstrings(tfds.core.GeneratorBasedBuilder):
    """Features: text, passages of about 1,000 to 2,000 characters. By hash, 2% test."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [_installed_config()]  # noqa: RUF012 (the name and form TFDS asks for)
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config.name if self.builder_config else ""
        return tfds.core.DatasetInfo(
            builder=self,
            description="English prose from the docstrings of scientific Python packages and of "
            f"Python's standard library: {config.replace('_', ', ')}.",
            license="BSD-3-Clause (numpy, scipy, scikit-learn), Apache-2.0 (jax), PSF-2.0 (Python)",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            metadata=tfds.core.MetadataDict(packages=config.split("_")),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with _no_cycle_collection():
            texts = [(text_digest(text), {"text": text}) for text in _passages()]
        return {
            "train": self._generate_examples(texts, test=False),
            "test": self._generate_examples(texts, test=True),
        }

    def _generate_examples(
        self, texts: list[tuple[str, dict]], test: bool
    ) -> Iterator[tuple[str, dict]]:
        return keyed(text for text in texts if in_test(text[0], TEST_SHARE) == test)


@contextlib.contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Syntax trees hold no cycles, and looking for some takes half the time of parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _passages() -> Iterator[str]:
    """Yields passages of prose, no paragraph twice, no passage over two source files."""
    seen: set[str] = set()
    for path in _source_files():
        paragraphs = []
        for paragraph in _prose(_docstrings(path)):
            if paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        yield from join_paragraphs(paragraphs)


def _source_files() -> Iterator[pathlib.Path]:
    roots = [pathlib.Path(sysconfig.get_path("stdlib"))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            roots.append(pathlib.Path(spec.origin).parent)
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
                yield path


def _docstrings(path: pathlib.Path) -> Iterator[str]:
    """Yields the docstrings of a source file; of one that does not parse, none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    # Not `ast.walk`: expressions, most of a tree, hold no docstrings.
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, _DOCUMENTED):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
            nodes += reversed(node.body)


def _prose(docstrings: Iterable[str]) -> Iterator[str]:
    """Yields paragraphs that read as English: no examples, tables, markup or bare names."""
    for docstring in docstrings:
        for paragraph in re.split(r"\n\s*\n", docstring):
            words = paragraph.split()
            signs = len(_SIGN.findall(paragraph))
            if len(words) >= 8 and signs <= 0.1 * len(paragraph) and not _CODE.search(paragraph):
                yield " ".join(words)


def join_paragraphs(paragraphs: Iterable[str]) -> Iterator[str]:
    """Yields passages: paragraphs joined by blank lines, within `LENGTHS` characters if possible.

    A passage closes once it has the lower length, or before the paragraph that would take it over
    the upper one; a paragraph is never cut, so a very long one makes a longer passage.
    """
    least, most = LENGTHS
    passage = ""
    for paragraph in paragraphs:
        if passage and len(passage) + 2 + len(paragraph) > most:
            yield passage
            passage = ""
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) >= least:
            yield passage
            passage = ""
    if passage:
        yield passage
