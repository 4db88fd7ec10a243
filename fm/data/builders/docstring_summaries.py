"""What a function does in one line, from the rest of its docstring: text to text."""

import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.data.builders import installed
from fm.data.splitting import is_test, text_digest, with_unique_keys

TEST_SHARE = 0.2
# Characters.
TEXT_LENGTHS = (80, 1000)
TARGET_LENGTHS = (20, 100)

# Where the prose of a docstring ends: "Parameters" underlined, or "Args:".
_SECTION = re.compile(
    r"^[^\n]*\n\s*[-=~]{3,}\s*$"
    r"|^\s*(?:Args|Arguments|Attributes|Examples?|Keyword Args|Notes|Parameters|Raises|References"
    r"|Returns|See Also|Yields)\s*:",
    re.MULTILINE | re.IGNORECASE,
)
_PARAMETER = re.compile(r"^\w+ ?: ")
_WORDS = re.compile(r"[A-Z][A-Za-z,' -]+\.")


class DocstringSummaries(tfds.core.GeneratorBasedBuilder):
    """Features: text, the prose of a function's docstring; target, the line that sums it up.

    English only: a line with code or numbers is left out. No line and no text occurs twice, so
    none is on both sides. By hash of the line, 20% test.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [installed.config()]  # noqa: RUF012 (the name and form TFDS asks for)
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config.name if self.builder_config else ""
        return tfds.core.DatasetInfo(
            builder=self,
            description="The prose of functions' docstrings, and the first line that sums each up:"
            f" {config.replace('_', ', ')}.",
            license=installed.LICENSE,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "target": tfds.features.Text()}
            ),
            metadata=tfds.core.MetadataDict(packages=config.split("_")),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        pairs = list(_pairs())
        return {
            "train": self._generate_examples(pairs, test=False),
            "test": self._generate_examples(pairs, test=True),
        }

    def _generate_examples(
        self, pairs: list[tuple[str, str]], test: bool
    ) -> Iterator[tuple[str, dict]]:
        named = ((text_digest(target.lower()), text, target) for text, target in pairs)
        return with_unique_keys(
            (digest, {"text": text, "target": target})
            for digest, text, target in named
            if is_test(digest, TEST_SHARE) == test
        )


def parted(docstring: str) -> tuple[str, str] | None:
    """The prose of a docstring and the line before it; None where it has no such two."""
    line, _, rest = docstring.partition("\n\n")
    target = " ".join(line.split())
    if not TARGET_LENGTHS[0] <= len(target) <= TARGET_LENGTHS[1] or not _WORDS.fullmatch(target):
        return None
    paragraphs = installed.prose([_SECTION.split(rest, maxsplit=1)[0]])
    kept = "\n\n".join(each for each in paragraphs if not _PARAMETER.match(each))
    if not TEXT_LENGTHS[0] <= len(kept) <= TEXT_LENGTHS[1]:
        return None
    # The answer must not stand in the question.
    return None if target[:-1].lower() in kept.lower() else (kept, target)


def _pairs() -> Iterator[tuple[str, str]]:
    """Yields (text, target), each once."""
    seen: set[str] = set()
    for file in installed.read():
        for docstring in file.docstrings:
            pair = parted(docstring.text) if docstring.of_function else None
            if pair and not seen.intersection(names := [each.lower() for each in pair]):
                seen.update(names)
                yield pair
