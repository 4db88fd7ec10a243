"""Unlabelled English prose from the docstrings of installed packages: upstream data for reviews."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.data.builders import installed
from fm.data.splitting import is_test, text_digest, with_unique_keys

TEST_SHARE = 0.02
LENGTHS = (1000, 2000)


class Docstrings(tfds.core.GeneratorBasedBuilder):
    """Features: text, passages of about 1,000 to 2,000 characters. By hash, 2% test."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [installed.config()]  # noqa: RUF012 (the name and form TFDS asks for)
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config.name if self.builder_config else ""
        return tfds.core.DatasetInfo(
            builder=self,
            description="English prose from the docstrings of scientific Python packages and of "
            f"Python's standard library: {config.replace('_', ', ')}.",
            license=installed.LICENSE,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            metadata=tfds.core.MetadataDict(packages=config.split("_")),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        texts = [(text_digest(text), {"text": text}) for text in _passages()]
        return {
            "train": self._generate_examples(texts, test=False),
            "test": self._generate_examples(texts, test=True),
        }

    def _generate_examples(
        self, texts: list[tuple[str, dict]], test: bool
    ) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(text for text in texts if is_test(text[0], TEST_SHARE) == test)


def _passages() -> Iterator[str]:
    """Yields passages of prose, no paragraph twice, no passage over two source files."""
    seen: set[str] = set()
    for file in installed.read():
        paragraphs = []
        for paragraph in installed.prose(docstring.text for docstring in file.docstrings):
            if paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        yield from installed.join_paragraphs(paragraphs, *LENGTHS)
