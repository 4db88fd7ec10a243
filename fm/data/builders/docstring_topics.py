"""Which package a passage of documentation is about: topics from docstrings, names masked."""

import collections
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.data.builders import installed
from fm.data.splitting import is_test, text_digest, with_unique_keys

TEST_SHARE = 0.2
LENGTHS = (250, 600)
# Characters; what is left at the end of a file may be a line.
LEAST = 120
TOPICS = ("jax", "numpy", "python", "scipy", "sklearn")
MASK = "[name]"

_DOTTED = r"[A-Za-z_]\w+(?:\.[A-Za-z_]\w+)+"
_NAMED = r"\w*(?:jax|numpy|scipy|sklearn|scikit|python|pytree|ufunc)\w*(?:[ -]learn)?"
_SHORT = r"np|jnp|sp|lax|xla|hlo|stablehlo|mlir|pallas|mosaic|pep \d+"
_GIVEAWAY = re.compile(rf"\b(?:{_DOTTED}|{_NAMED}|{_SHORT})\b", re.IGNORECASE)
_ROLE = re.compile(r":[a-z:]+:`")
# Their styles differ, too.
_SECTION = re.compile(r"^(?:Args|Arguments|Attributes|Note|Parameters|Raises|Returns|Yields): +")


class DocstringTopics(tfds.core.GeneratorBasedBuilder):
    """Features: text, passages of about 250 to 600 characters; label, one of `TOPICS`.

    By hash, 20% test; in each split every topic has as many passages as the rarest. What names a
    package (its name, dotted names, a few words only one of them uses) reads `MASK`, and markup,
    in which packages differ, is taken out. Paragraphs that stand in two places are left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [installed.config()]  # noqa: RUF012 (the name and form TFDS asks for)
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config.name if self.builder_config else ""
        return tfds.core.DatasetInfo(
            builder=self,
            description="Passages from the docstrings of Python and four packages; the topic is "
            f"the package, its name masked: {config.replace('_', ', ')}.",
            license=installed.LICENSE,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(TOPICS)),
                }
            ),
            metadata=tfds.core.MetadataDict(packages=config.split("_")),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        passages = list(_passages())
        return {
            "train": self._generate_examples(passages, test=False),
            "test": self._generate_examples(passages, test=True),
        }

    def _generate_examples(
        self, passages: list[tuple[str, str]], test: bool
    ) -> Iterator[tuple[str, dict]]:
        by_topic: dict[str, list[tuple[str, dict]]] = {topic: [] for topic in TOPICS}
        for topic, text in passages:
            digest = text_digest(text)
            if is_test(digest, TEST_SHARE) == test:
                by_topic[topic].append((digest, {"text": text, "label": topic}))
        count = min(map(len, by_topic.values()))
        # The first eight digits decide the split: what is left of the digest draws evenly.
        chosen = [sorted(own, key=lambda each: each[0][8:])[:count] for own in by_topic.values()]
        return with_unique_keys(example for own in chosen for example in own)


def masked(text: str) -> str:
    """A paragraph without names of packages and markup."""
    return _GIVEAWAY.sub(MASK, _ROLE.sub("`", _SECTION.sub("", text))).replace("`", "")


def _passages() -> Iterator[tuple[str, str]]:
    """Yields (topic, passage), no passage over two source files."""
    files = []
    for file in installed.read():
        found = installed.prose(docstring.text for docstring in file.docstrings)
        files.append((file.package, [masked(paragraph) for paragraph in found]))
    times = collections.Counter(paragraph for _, own in files for paragraph in own)
    for package, paragraphs in files:
        once = (paragraph for paragraph in paragraphs if times[paragraph] == 1)
        for passage in installed.join_paragraphs(once, *LENGTHS):
            if len(passage) >= LEAST:
                yield package, passage
