"""The docstrings of Python and of installed packages, read as text: source of built-in data sets.

The source files are parsed with `ast`; none is imported or run.
"""

import ast
import contextlib
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

import tensorflow_datasets as tfds

# Import name to distribution name.
PACKAGES = {"jax": "jax", "numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn"}
PYTHON = "python"
LICENSE = "BSD-3-Clause (numpy, scipy, scikit-learn), Apache-2.0 (jax), PSF-2.0 (Python)"

_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "vendored", "idlelib", "lib2to3", "site-packages"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)
_CODE = re.compile(r">>>|^\s*\.\. |^\s*[-=~^]{3,}\s*$|^\s*:\w+|\||^\s*\$ ", re.MULTILINE)
_SIGN = re.compile(r"[^a-zA-Z\s,.']")


@dataclasses.dataclass(frozen=True)
class Docstring:
    """One docstring, indentation removed, and whether it is of a function."""

    text: str
    of_function: bool


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A source file's package ("python" for the standard library) and its docstrings, in order."""

    package: str
    docstrings: tuple[Docstring, ...]


def config() -> tfds.core.BuilderConfig:
    """Returns the config named for the installed versions, on which the text depends."""
    versions = [f"python-{platform.python_version()}"]
    versions += [f"{name}-{importlib.metadata.version(name)}" for name in PACKAGES.values()]
    return tfds.core.BuilderConfig(name="_".join(versions).replace("+", "."))


def files() -> list[tuple[str, pathlib.Path]]:
    """Returns (package, path) of every source file, less tests and what is vendored."""
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


def read() -> tuple[SourceFile, ...]:
    """Returns every source file of `files`, read once in a process: parsing takes seconds."""
    return _read(tuple(files()))


@functools.lru_cache(maxsize=1)
def _read(paths: tuple[tuple[str, pathlib.Path], ...]) -> tuple[SourceFile, ...]:
    with _no_cycle_collection():
        return tuple(SourceFile(package, tuple(docstrings(path))) for package, path in paths)


def docstrings(path: pathlib.Path) -> Iterator[Docstring]:
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
                yield Docstring(docstring, isinstance(node, _FUNCTIONS))
            nodes += reversed(node.body)


def prose(texts: Iterable[str]) -> Iterator[str]:
    """Yields paragraphs that read as English: no examples, tables, markup or bare names."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            words = paragraph.split()
            signs = len(_SIGN.findall(paragraph))
            if len(words) >= 8 and signs <= 0.1 * len(paragraph) and not _CODE.search(paragraph):
                yield " ".join(words)


def join_paragraphs(paragraphs: Iterable[str], least: int, most: int) -> Iterator[str]:
    """Yields passages: paragraphs joined by blank lines, `least` to `most` characters if possible.

    A passage closes once it has the lower length, or before the paragraph that would take it over
    the upper one; a paragraph is never cut, so a very long one makes a longer passage.
    """
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
