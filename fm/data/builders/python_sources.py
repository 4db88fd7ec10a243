"""The Python sources of the installed standard library, as unlabeled text."""

import pathlib
import platform
import sysconfig
from collections.abc import Iterator

import tensorflow_datasets as tfds

from fm.data.prepare import BuiltinBuilder, Examples
from fm.data.splitting import text_digest

# Characters of a passage; a longer line stays whole.
MAX_LENGTH = 4_000
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "__phello__"}


class PythonSources(BuiltinBuilder):
    """Source code of Python's standard library, its tests included; a twentieth is test, by file.

    Features: text, whole lines of one file, about 4,000 characters; source, the file's path.
    """

    BUILDER_CONFIGS = [  # noqa: RUF012 (the name and type that TFDS expects)
        tfds.core.BuilderConfig(name=f"python-{platform.python_version()}")
    ]
    DESCRIPTION = f"Source code of the standard library of Python {platform.python_version()}."
    LICENSE = "PSF-2.0"
    FEATURES = {"text": tfds.features.Text(), "source": tfds.features.Text()}  # noqa: RUF012
    TEST_SHARE = 0.05

    def _examples(self) -> Examples:
        seen: set[str] = set()
        for name, text in source_files(pathlib.Path(sysconfig.get_path("stdlib"))):
            digest = text_digest(text)
            if digest in seen:
                continue
            seen.add(digest)
            for passage in passages(text):
                # The file decides the split: its first digits do.
                own = digest[:8] + text_digest(f"{name}\n{passage}")[8:]
                yield own, {"text": passage, "source": name}


def source_files(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (path below `root`, text) of Python files, sorted; those that are not UTF-8 are not.

    Some tests of the standard library are in other encodings, or damaged on purpose.
    """
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield relative.as_posix(), text


def passages(text: str, max_length: int = MAX_LENGTH) -> Iterator[str]:
    """Yields the text in parts of whole lines, up to `max_length` characters unless one line is."""
    passage = ""
    for line in text.splitlines(keepends=True):
        if passage and len(passage) + len(line) > max_length:
            yield passage
            passage = ""
        passage += line
    if passage.strip():
        yield passage
