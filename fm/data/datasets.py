"""`Dataset` and `Split`: what every source of data becomes, whatever it was before."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Indices = Sequence[int] | np.ndarray
Inputs = list[str] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples that can be read in any order.

    Text may have further columns: "words" and "tags" (named entities), "targets" (text to text).

    Attributes:
        labels: int32 [N], or None when unlabelled.
        ids: N hex digests of the examples' content; exact copies share one.
        source_idx: int64 [N], the place of each example in the underlying source.
        read: reads places of the underlying source, as `inputs` returns them.
        columns: reads the same places of each further column.
    """

    labels: np.ndarray | None
    ids: tuple[str, ...]
    source_idx: np.ndarray = dataclasses.field(repr=False)
    read: Callable[[np.ndarray], Inputs] = dataclasses.field(repr=False)
    columns: dict[str, Callable[[np.ndarray], list]] = dataclasses.field(
        repr=False, default_factory=dict
    )

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Indices | range) -> Inputs:
        """Returns the texts, or the images, sounds or clips as one array; see below."""
        return self.read(self.source_idx[np.asarray(indices, np.int64)])

    def texts(self, indices: Indices | range) -> list[str]:
        """`inputs` of text data."""
        read = self.inputs(indices)
        assert isinstance(read, list), "these examples are not text"
        return read

    def images(self, indices: Indices | range) -> np.ndarray:
        """`inputs` of image data, uint8 [n, height, width, channels]."""
        return self._array(indices, np.uint8, 4, "images")

    def sounds(self, indices: Indices | range) -> np.ndarray:
        """`inputs` of audio data, int16 [n, samples]."""
        return self._array(indices, np.int16, 2, "sounds")

    def clips(self, indices: Indices | range) -> np.ndarray:
        """`inputs` of video data, uint8 [n, frames, height, width, channels]."""
        return self._array(indices, np.uint8, 5, "clips")

    def words(self, indices: Indices | range) -> list[list[str]]:
        """The words of each sentence; `texts` are they with spaces between."""
        return self._column("words", indices)

    def tags(self, indices: Indices | range) -> list[list[str]]:
        """One BIO tag (IOB2) for each of `words`."""
        return self._column("tags", indices)

    def targets(self, indices: Indices | range) -> list[str]:
        """The text to write for each of `texts`."""
        return self._column("targets", indices)

    def _column(self, name: str, indices: Indices | range) -> list:
        assert name in self.columns, f"these examples have no {name}"
        return self.columns[name](self.source_idx[np.asarray(indices, np.int64)])

    def _array(
        self, indices: Indices | range, dtype: type[np.generic], axes: int, what: str
    ) -> np.ndarray:
        read = self.inputs(indices)
        assert isinstance(read, np.ndarray), f"these examples are not {what}"
        assert read.dtype == dtype and read.ndim == axes, f"these examples are not {what}"
        return read


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set with a train and a test split.

    Attributes:
        name: as the user gave it.
        modality: "text", "image", "audio" or "video".
        classes: the label names, in label order; () when unlabelled.
        train: what may be learned from.
        test: what is scored once.
        info: JSON-able: description, licence, citation, version, split ("official", "by hash", or
            by whom), fingerprint (hex digest over ids and labels), counts, shape of one example
            (None for text), rate (Hz of sounds, frames/s of clips, else None), tags (the names of
            BIO tags, "O" first, where words are tagged, else None).
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    info: dict[str, Any]


def subset(split: Split, indices: Indices) -> Split:
    """Returns the split's examples at `indices`, in that order."""
    chosen = np.asarray(indices, np.int64)
    return dataclasses.replace(
        split,
        labels=None if split.labels is None else split.labels[chosen],
        ids=tuple(split.ids[index] for index in chosen),
        source_idx=split.source_idx[chosen],
    )


def without(split: Split, indices: Indices) -> Split:
    """Returns the split less the examples at `indices`, in the order they had."""
    kept = np.ones(len(split), bool)
    kept[np.asarray(indices, np.int64)] = False
    return subset(split, np.flatnonzero(kept))
