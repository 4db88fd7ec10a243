"""New examples to label: a file, folder or archive as it is, or the test split of a data set.

Nothing is split, balanced or left out but blank texts; images, sounds and clips are opened when
they are read, and converted by the rule of the model that reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fm.data import load as loading
from fm.data.builders import BUILDERS
from fm.data.media import MediaSpec, get_modality, modality_for_path
from fm.data.patches import MAX_IMAGE_SIZE
from fm.data.prepare import is_prepared, tell_once
from fm.data.readers import arrow, conll, hf_datasets
from fm.data.readers.examples import Example, Label, TextFormat
from fm.data.readers.folders import FileNameFieldPositions
from fm.data.readers.sources import content_digest, read_sources
from fm.errors import UserError
from fm.files import expand_path

_NO_FIELDS = FileNameFieldPositions()


@dataclasses.dataclass(frozen=True, eq=False)
class NewExamples:
    """Examples to label, with random access.

    Attributes:
      ids: by which the user knows them, see `Split.row_ids`.
      read: maps indices to inputs: texts, lists of words, or an array [n, ...].
      labels: of each: a class, label set, number, text or list of tags; None where there is none.
      fingerprint: hash of the data.
      changes: returns a line for each way in which the examples read so far were converted.
    """

    ids: Sequence[str]
    read: Callable[[np.ndarray], Any]
    labels: Sequence[Label | list[str] | None]
    fingerprint: str
    changes: Callable[[], list[str]] = list

    def __len__(self) -> int:
        return len(self.ids)


@contextlib.contextmanager
def open_new_examples(
    name: str,
    modality: str,
    spec: MediaSpec | None,
    form: TextFormat,
    *,
    words: bool = False,
    with_labels: bool = False,
    fields: FileNameFieldPositions = _NO_FIELDS,
    data_dir: str | None = None,
) -> Iterator[NewExamples]:
    """Yields the examples of a file, folder, archive or data set, while archives are unpacked.

    Args:
      name: a path; or the name of a built-in or TFDS data set, whose test split is read.
      modality: that the model reads.
      spec: arrays that the model reads; None for text.
      form: encoding and columns of files.
      words: whether the model reads words, of CoNLL files or separated by white space.
      with_labels: whether labels are read, and refused if they cannot be.
      fields: meaning of file names, for labels.
      data_dir: see `fm.data.load.load`.

    Raises:
      UserError: there is no such data, or it is not what the model reads.
    """
    path = expand_path(name)
    if name.startswith(hf_datasets.PREFIX):
        path = hf_datasets.fetch_dataset(name)
    own_file = path.exists() and name not in BUILDERS
    if not own_file or (is_prepared(path) and not arrow.saved_splits(path)):
        yield _of_data_set(name, modality, spec, form, data_dir, words=words)
    elif words and (files := conll.conll_files(path)):
        yield _of_conll(path, files, form.encoding, with_tags=with_labels)
    else:
        if not with_labels:
            form, fields = form.without_labels(), _NO_FIELDS
        notices: list[str] = []
        split = "unlabeled" if modality_for_path(path) else "all"
        with read_sources([(split, path)], form, fields, notices) as (by_split, _):
            for line in notices:
                tell_once(name, line)
            examples = [example for own in by_split.values() for example in own]
            fingerprint = content_digest(path)
            yield _of_files(name, examples, modality, spec, fingerprint, words=words)


def _of_files(
    name: str,
    examples: list[Example],
    modality: str,
    spec: MediaSpec | None,
    fingerprint: str,
    *,
    words: bool,
) -> NewExamples:
    codec = get_modality(modality).codec
    for example in examples:
        found = "text"
        if isinstance(example.content, pathlib.Path):
            media = modality_for_path(example.content)
            found = media.name if media else "text"
        if found != modality:
            raise UserError(f"{name} holds {found}, such as {example.row_id}; takes {modality}")
    ids = [example.row_id for example in examples]
    labels = [example.label for example in examples]

    def read_texts(idx: np.ndarray) -> list:
        texts = [str(examples[n].content) for n in idx]
        return [text.split() for text in texts] if words else texts

    if codec is None:
        return NewExamples(ids, read_texts, labels, fingerprint)
    assert spec is not None, "media are converted to arrays of a shape"
    measures: dict[int, Any] = {}

    def read_media(idx: np.ndarray) -> np.ndarray:
        arrays = []
        for n in idx.tolist():
            path = examples[n].content
            assert isinstance(path, pathlib.Path)
            try:
                opened = codec.open(path)
            except OSError as error:
                raise UserError(f"{path} is a broken {modality}: {error}") from error
            measures[n] = codec.measure(opened)
            arrays.append(codec.to_array(opened, spec))
        return np.stack(arrays)

    def changes() -> list[str]:
        # No flag of such a command changes what a model reads.
        hint = f" (--image_size takes up to {MAX_IMAGE_SIZE})"
        lines = codec.describe_changes(list(measures.values()), spec)
        return [line.replace(hint, "") for line in lines]

    return NewExamples(ids, read_media, labels, fingerprint, changes)


def _of_conll(
    path: pathlib.Path, files: dict[str, pathlib.Path], encoding: str, *, with_tags: bool
) -> NewExamples:
    sentences, ids = [], []
    for file in files.values():
        own = conll.read_conll(file, encoding, with_tags=with_tags).sentences
        sentences += own
        ids += [f"{file.name}:{sentence.line}" for sentence in own]
    return NewExamples(
        ids,
        lambda idx: [list(sentences[n].words) for n in idx],
        [list(sentence.tags) or None for sentence in sentences],
        content_digest(path),
    )


def _of_data_set(
    name: str,
    modality: str,
    spec: MediaSpec | None,
    form: TextFormat,
    data_dir: str | None,
    *,
    words: bool,
) -> NewExamples:
    """Returns the test split of a built-in or TFDS data set."""
    options = {"data_dir": data_dir, "text_column": form.text_column}
    data = loading.load(name, label_column=form.label_column or "label", **options)
    if data.modality != modality:
        raise UserError(f"{name} holds {data.modality}; takes {modality}")
    if words and "words" not in data.test.columns:
        raise UserError(f"{name} holds texts that are not cut into words; takes words")
    if spec is not None:
        own = tuple(data.info["shape"]), float(data.info["rate"] or 0)
        expected = spec.shape, float(spec.rate or 0)
        if own != expected:
            raise UserError(f"{name} holds {_form(*own)} {modality}; takes {_form(*expected)}")
    tell_once(name, f"its test split is read, {len(data.test):,} examples")
    idx = range(len(data.test))
    labels: list[Any] = [None] * len(data.test)
    if words:
        labels = data.test.tags(idx)
    elif data.test.labels is not None:
        labels = [data.classes[n] if n >= 0 else None for n in data.test.labels]
    return NewExamples(
        data.test.row_ids(idx),
        data.test.words if words else data.test.inputs,
        labels,
        data.info["fingerprint"],
    )


def _form(shape: tuple[int, ...], rate: float) -> str:
    return "x".join(map(str, shape)) + (f" at {rate:g}" if rate else "")
