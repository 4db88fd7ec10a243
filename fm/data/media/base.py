"""What a data set must know of a continuous format: one `Medium` for images, for sounds, ..."""

import abc
import dataclasses
import pathlib
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """What all examples of one data set share.

    Attributes:
        shape: of one example's array.
        rate: Hz of sounds, frames/s of clips, None for images.
    """

    shape: tuple[int, ...]
    rate: float | None = None


class ModalityCodec(abc.ABC):
    """How examples of one format are read, brought to one form, and stored.

    An example is first *opened*, whatever that means for its format, in the size it has; when the
    measures of all are known, each becomes an array of the common form.

    Attributes:
        name: the modality, and the name of the TFDS feature.
        noun: one example, in messages.
        dtype: of the arrays.
        extensions: of the files it reads, lower case, with the dot.
        stores_bytes: the TFDS feature is read as encoded bytes, which `decode` decodes.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    extensions: ClassVar[tuple[str, ...]]
    stores_bytes: ClassVar[bool] = False

    def matches(self, path: pathlib.Path) -> bool:
        """Says whether a file, or a folder as a whole, is one example of this format."""
        return path.is_file() and path.suffix.lower() in self.extensions

    @abc.abstractmethod
    def open(self, path: pathlib.Path) -> Any:
        """Opens one example.

        Raises:
            OSError: it cannot be read or decoded; the message says why in a few words.
        """

    @abc.abstractmethod
    def measure(self, opened: Any) -> Hashable:
        """Returns the few numbers of an opened example that `common` and `remarks` need."""

    @abc.abstractmethod
    def common_spec(self, measures: Sequence[Any]) -> ArraySpec:
        """Returns the form that examples of these measures (at least one) all get."""

    def describe_changes(self, measures: Sequence[Any], form: ArraySpec) -> list[str]:
        """Says, a line each, what is changed about the examples to bring them to the form."""
        return []

    @abc.abstractmethod
    def to_array(self, opened: Any, form: ArraySpec) -> np.ndarray:
        """Returns an opened example as an array of the form's shape."""

    @abc.abstractmethod
    def tfds_feature(self, form: ArraySpec) -> Any:
        """Returns the TFDS feature (one that needs no TensorFlow) that holds such arrays."""

    @abc.abstractmethod
    def encode(self, array: np.ndarray) -> Any:
        """Returns what a TFDS builder yields for that feature."""

    @abc.abstractmethod
    def accepts_feature(self, feature: Any) -> bool:
        """Says whether a TFDS feature, anybody's, holds this format."""

    @abc.abstractmethod
    def declared_spec(self, feature: Any, rate: float | None) -> ArraySpec | None:
        """Returns the form that such a feature promises for all examples, if it does.

        Args:
            feature: one that fits.
            rate: `rate` of the data set's TFDS metadata, None where it says none.

        Raises:
            UserError: the format has a rate and nothing says which.
        """

    @abc.abstractmethod
    def decode(self, stored: Any, rate: float | None) -> Any:
        """Opens one example as read from that feature.

        Raises:
            OSError: it cannot be decoded.
        """
