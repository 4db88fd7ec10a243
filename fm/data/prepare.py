"""Prepares TFDS builders as ArrayRecord files with digests; base classes of builders."""

import contextlib
import functools
import io
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from fm.data import tfds_safety
from fm.data.splitting import is_test, with_unique_keys
from fm.files import atomic_dir, check_cached_digests, digests_exist, write_digests
from fm.progress_lines import phase, say

MakeBuilder = Callable[[pathlib.Path], Any]
# (Digest, features) of every example.
Examples = Iterable[tuple[str, dict[str, Any]]]


def prepare(make: MakeBuilder, data_dir: pathlib.Path) -> Any:
    """Returns a TFDS builder whose data is prepared in `data_dir`, preparing it on first use.

    Args:
        make: creates a `tfds.core.DatasetBuilder` (ArrayRecord format) for a data folder.
        data_dir: the folder of all prepared data sets.

    Raises:
        UserError: a prepared file has changed since.
    """
    builder = make(data_dir)
    target = pathlib.Path(builder.data_path)
    if not is_prepared(target):
        tfds.disable_progress_bar()
        title = getattr(builder, "title", builder.info.full_name)
        with phase(f"preparing {title}"), atomic_dir(target) as scratch:
            inner = make(scratch)
            # TFDS prints lines that name the scratch folder to stdout.
            with contextlib.redirect_stdout(io.StringIO()):
                inner.download_and_prepare()
            _move_up(pathlib.Path(inner.data_path), scratch)
            write_digests(scratch)
    return open_checked(target)


@functools.cache
def tell_once(subject: str, line: str) -> None:
    """Prints to stderr, once in a process, how the user's data was understood."""
    line = line.removeprefix(f"{pathlib.Path(subject).name}: ")
    say(f"{subject}: {line}")


def is_prepared(target: pathlib.Path) -> bool:
    """Returns whether a folder holds a prepared data set; its files are not checked."""
    return digests_exist(target) or (target / "dataset_info.json").exists()


def open_checked(target: pathlib.Path) -> Any:
    """Returns the TFDS builder of a prepared folder, after checking its digests if present.

    Raises:
        UserError: a prepared file has changed since; see also `fm.data.tfds_safety`.
    """
    if digests_exist(target):
        check_cached_digests(target)
    return tfds_safety.open_prepared(target)


def _move_up(inner: pathlib.Path, outer: pathlib.Path) -> None:
    """Moves the files of `inner`, a folder below `outer`, up into `outer`."""
    for file in inner.iterdir():
        file.replace(outer / file.name)
    shutil.rmtree(outer / inner.relative_to(outer).parts[0])


class BuiltinBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class of TFDS builders of built-in data sets; splits train and test by content hash.

    A subclass sets the attributes and defines `_examples`, which are split by hash; or overrides
    `_split_generators` for another split.

    Attributes:
        DESCRIPTION: of the data set.
        CITATION: of its source.
        LICENSE: of the data.
        FEATURES: the TFDS features.
        METADATA: e.g. the rate.
        TEST_SHARE: fraction of test examples.
        ITEM_GROUP: the text feature by which items are grouped, e.g. the speaker; "" for none.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    DESCRIPTION: str
    CITATION: str = ""
    LICENSE: str
    FEATURES: Mapping[str, Any]
    METADATA: Mapping[str, Any] = {}
    TEST_SHARE = 0.2
    ITEM_GROUP = ""

    def _examples(self) -> Examples:
        """Yields (digest of the content, features) of all examples."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            citation=self.CITATION,
            license=self.LICENSE,
            features=tfds.features.FeaturesDict(dict(self.FEATURES)),
            metadata=tfds.core.MetadataDict(self.METADATA),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        examples = list(self._examples())
        return {
            "train": self._generate_examples(examples, test=False),
            "test": self._generate_examples(examples, test=True),
        }

    def _generate_examples(self, examples: Examples, test: bool) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(e for e in examples if is_test(e[0], self.TEST_SHARE) == test)


class UserFilesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder for examples read from the user's own files, held in memory."""

    name = "user_files"
    pkg_dir_path = None

    def __init__(
        self,
        *,
        name: str,
        version: str,
        path: pathlib.Path,
        splits: Mapping[str, Callable[[], Examples]],
        features: Mapping[str, Any],
        metadata: Mapping[str, Any],
        data_dir: pathlib.Path,
    ):
        self.name, self.VERSION = name, tfds.core.Version(version)  # pyright: ignore
        self._path, self._splits = path, splits
        self._features, self._metadata = features, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    @property
    def title(self) -> str:
        """Name of the user's file; bytes of it that are not UTF-8 become "?"."""
        return self._path.name.encode("utf-8", "replace").decode()

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Files of {self.title}.",
            license="not stated: your own files",
            features=tfds.features.FeaturesDict(dict(self._features)),
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(make()) for name, make in self._splits.items()}

    def _generate_examples(self, examples: Examples) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(examples)
