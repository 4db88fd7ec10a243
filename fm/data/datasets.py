"""`Dataset` and `Split`: the form in which `fm.data.load.load` returns every data set."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fm.data.splitting import split_development
from fm.errors import UserError

Indices = Sequence[int] | np.ndarray
Inputs = list[str] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split's examples with random access: inputs, labels, ids and further text columns.

    Attributes:
        labels: int32 [N], or None if unlabeled.
        ids: N hex digests of the examples' content; exact copies share one.
        source_idx: int64 [N], position of each example in the underlying source.
        read: maps such positions to what `inputs` returns.
        columns: the same for further columns: "words" and "tags" (NER; no tags if unlabeled);
            "targets" (text to text; "" if unlabeled); "groups" (e.g. the speaker); "values"
            (regression; NaN if unlabeled); "label_sets" (a sorted tuple of indices into the
            classes; None if unlabeled); "second_texts" (of pairs, whose `inputs` are both texts
            joined by a blank line). Of the user's files also "row_ids" (the value of an id column,
            `file.csv:17`, or the path of a media file), "files" (index into `info["files"]`) and
            "positions" (place in the order of the files).
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
        """Returns examples: a list of strings for text, else one array [n, ...]."""
        return self.read(self.source_idx[np.asarray(indices, np.int64)])

    def texts(self, indices: Indices | range) -> list[str]:
        """`inputs` of text data."""
        texts = self.inputs(indices)
        assert isinstance(texts, list), "these examples are not text"
        return texts

    def array(self, indices: Indices | range) -> np.ndarray:
        """`inputs` of data other than text, [n, ...]."""
        return np.asarray(self.inputs(indices))

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
        """The words of each sentence; joined by spaces they are `texts`."""
        return self._column("words", indices)

    def tags(self, indices: Indices | range) -> list[list[str]]:
        """One BIO tag (IOB2) for each of `words`."""
        return self._column("tags", indices)

    def targets(self, indices: Indices | range) -> list[str]:
        """The text to generate for each of `texts`."""
        return self._column("targets", indices)

    def values(self, indices: Indices | range) -> np.ndarray:
        """The numbers to predict, float64 [n]; NaN if unlabeled."""
        return np.array(self._column("values", indices), float)

    def label_sets(self, indices: Indices | range) -> list[tuple[int, ...] | None]:
        """The sorted classes of each example; None if unlabeled."""
        return self._column("label_sets", indices)

    def second_texts(self, indices: Indices | range) -> list[str]:
        """The second text of each pair."""
        return self._column("second_texts", indices)

    def row_ids(self, indices: Indices | range) -> list[str]:
        """The ids by which the user knows the examples; else the first 12 digits of `ids`."""
        if "row_ids" in self.columns:
            return self._column("row_ids", indices)
        return [self.ids[index][:12] for index in indices]

    @property
    def is_grouped(self) -> bool:
        """Whether every example belongs to a group, such as its speaker."""
        return "groups" in self.columns

    def groups(self, indices: Indices | range) -> list[str]:
        """The group of each example, such as its speaker."""
        return self._column("groups", indices)

    def _column(self, name: str, indices: Indices | range) -> list:
        assert name in self.columns, f"these examples have no {name}"
        return self.columns[name](self.source_idx[np.asarray(indices, np.int64)])

    def _array(
        self, indices: Indices | range, dtype: type[np.generic], ndim: int, noun: str
    ) -> np.ndarray:
        array = self.inputs(indices)
        assert isinstance(array, np.ndarray), f"these examples are not {noun}"
        assert array.dtype == dtype and array.ndim == ndim, f"these examples are not {noun}"
        return array


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: train and test split, class names, modality and provenance.

    Attributes:
        name: as given by the user.
        modality: "text", "image", "audio" or "video".
        classes: the label names, in label order; () if unlabeled.
        train: the train split.
        test: the test split.
        info: JSON-able: description, licence, citation, version, split ("official", "by hash", "by
            speaker", ...; "none" of unlabeled data, whose test split is empty), target ("class",
            "label_set", "value", "tags", "text", or None if unlabeled), files (of the user's files:
            name, rows, ignored rows by reason, noun of a row), fingerprint (hex digest of ids and
            labels), counts, shape of one example (None for text), shrunk (of images and clips made
            smaller, see `ModalityCodec.shrunk`, else None), rate (Hz of sounds, frames/s of clips,
            else None), background and value_range (see `MediaSpec`), tags (names of the BIO tags,
            "O" first, else None), item_group (what the groups are, e.g. "voice"; None without
            groups).
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    info: dict[str, Any]


def subset(split: Split, indices: Indices) -> Split:
    """Returns a split with only the examples at `indices`, in that order."""
    chosen = np.asarray(indices, np.int64)
    return dataclasses.replace(
        split,
        labels=None if split.labels is None else split.labels[chosen],
        ids=tuple(split.ids[index] for index in chosen),
        source_idx=split.source_idx[chosen],
    )


def example_split(dataset: Dataset) -> tuple[Split, str]:
    """Returns the split to show examples from, and what one is called: of test, if there is any."""
    return (dataset.test, "test") if len(dataset.test) else (dataset.train, "training")


def development_dataset(dataset: Dataset) -> Dataset:
    """Returns the data with a part of its training split in the place of the test split.

    The part is cut by `split_development`: by group where no group is in both splits of the data,
    as with speakers, else by content. No test item is in either split.

    Raises:
        UserError: the training split is too small for such a part.
    """
    train, whole = dataset.train, range(len(dataset.train))
    # A split by hash puts groups on both sides; reading all of them takes seconds.
    by_group = train.is_grouped and dataset.info["split"] != "by hash"
    groups = train.groups(whole) if by_group else None
    if groups is not None:
        elsewhere = dataset.test.groups(range(len(dataset.test)))
        groups = None if set(groups) & set(elsewhere) else groups
    labels = None if train.labels is None else train.labels.tolist()
    train_idx, development_idx = split_development(train.ids, labels, groups)
    if len(development_idx) < 2:
        raise UserError(
            f"{dataset.name} has {len(train)} training examples, too few to cut a development part "
            "of two or more from them"
        )
    by = "hash" if groups is None else dataset.info["item_group"]
    info = dataset.info | {"split": f"development part of the training split, by {by}"}
    parts = subset(train, train_idx), subset(train, development_idx)
    return dataclasses.replace(dataset, train=parts[0], test=parts[1], info=info)


def without(split: Split, indices: Indices) -> Split:
    """Returns a split without the examples at `indices`; the others keep their order."""
    remaining = np.ones(len(split), bool)
    remaining[np.asarray(indices, np.int64)] = False
    return subset(split, np.flatnonzero(remaining))
