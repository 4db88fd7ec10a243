"""Splits the examples of files: labeled ones by group or by hash, unlabeled ones for training."""

import dataclasses
import pathlib
import re

import numpy as np

from fm.data.readers.examples import Example, Label, ReadLog, TextFormat
from fm.data.splitting import split_by_group, split_by_hash
from fm.errors import UserError

TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class LoadedExample:
    """An example as it is stored.

    Attributes:
        digest: of the content; of images and clips at the default size, whatever their own, so
            that the order and a split by hash are the same.
        content: its text or array; None for an array that is decoded again when it is stored.
        label: see `Example.label`.
        group: what it belongs to, for the split or for statistics.
        source: as it was read.
        stored_digest: of the array as it is stored.
    """

    digest: str
    content: str | np.ndarray | None
    label: Label | None
    group: str | None
    source: Example
    stored_digest: str = ""


def classes_of(label: Label | None) -> tuple[str, ...]:
    """Returns the classes of a label: one, those of a label set, or none."""
    if isinstance(label, tuple):
        return label
    return (label,) if isinstance(label, str) else ()


def split_examples(
    path: pathlib.Path,
    loaded: dict[str, list[LoadedExample]],
    form: TextFormat,
    target: str | None,
    log: ReadLog,
) -> tuple[dict[str, list[LoadedExample]], str]:
    """Returns the examples under "train" and perhaps "test", and how they were split.

    Test items are labeled, if anything is. No group is on both sides of a split by group.
    """
    unlabeled = loaded.get("unlabeled", [])
    if "test" in loaded:
        train, test, how = loaded["train"], loaded["test"], "official"
        if target:
            for each in test:
                if each.label is None:
                    log.ignore(each.source.file, "unlabeled test items")
            labeled = [each for each in test if each.label is not None]
            if not labeled:
                raise UserError(f"{path}: the train split has labels, the test split has none")
            test = labeled
            if not any(each.label is not None for each in train):
                raise UserError(f"{path}: the test split has labels, the train split has none")
        labeled = [each for each in train if each.label is not None or target is None]
        _check_groups_apart(path, labeled, test, form)
    elif target is None:
        train, test, how = loaded["all"], [], "none"
        if len({each.digest for each in [*train, *unlabeled]}) < 2:
            count = len(train) + len(unlabeled)
            equal = f" ({count} that are equal as they are read)" if count > 1 else ""
            raise UserError(
                f"{path}: holds only one example{equal}; at least two different are needed"
            )
    else:
        labeled = [each for each in loaded["all"] if each.label is not None]
        train, test, how = _split_labeled(path, labeled, form, target)
        # In the order of the file, as ever.
        in_test = set(map(id, test))
        train = [each for each in loaded["all"] if id(each) not in in_test]
    train = [*train, *unlabeled]
    if target and (form.group_column or how == "by speaker"):
        train = _without_groups_of(test, train, log)
    return {"train": train} | ({"test": test} if test else {}), how


def _split_labeled(
    path: pathlib.Path, labeled: list[LoadedExample], form: TextFormat, target: str
) -> tuple[list[LoadedExample], list[LoadedExample], str]:
    """Splits labeled examples by group or by hash, and returns how.

    Every class needs two different examples, one for each side.
    """
    labels = [each.label if target == "class" else None for each in labeled]
    digests_by_label: dict[Label | None, set[str]] = {}
    for label, each in zip(labels, labeled, strict=True):
        digests_by_label.setdefault(label, set()).add(each.digest)
    for label, digests in digests_by_label.items():
        if len(digests) < 2:
            subject = "holds" if label is None else f"label {label!r} has"
            count = labels.count(label)
            equal = f" ({count} that are equal as they are read)" if count > 1 else ""
            is_number = isinstance(label, str) and re.fullmatch(r"[+-]?\d*\.?\d+", label)
            column = form.label_column
            hint = f" (--value_column={column} predicts numbers)" if is_number and column else ""
            raise UserError(
                f"{path}: {subject} only one example{equal}; at least two different are needed"
                f"{hint}"
            )
    groups = [each.source.group for each in labeled if each.source.group is not None]
    if groups:
        noun = form.group_column or "speaker"
        if len(set(groups)) < 2:
            raise UserError(f"{path}: {groups[0]!r} is the only {noun}; at least two are needed")
        how = f"by {noun}"
        classes = [classes_of(each.label) for each in labeled] if target != "text" else None
        train, test = split_by_group(groups, TEST_SHARE, classes)
        if not len(test):
            raise UserError(
                f"{path}: no {noun} can be held out for test, as each has all examples of a class"
            )
    else:
        how = "by hash"
        digests = [each.digest for each in labeled]
        number = {label: index for index, label in enumerate(digests_by_label)}
        train, test = split_by_hash(digests, [number[label] for label in labels], TEST_SHARE)
        if target == "label_set":
            train, test = _with_every_class_in_train(labeled, train, test)
    return [labeled[i] for i in train], [labeled[i] for i in test], how


def _with_every_class_in_train(
    labeled: list[LoadedExample], train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves examples of lowest digest, with their copies, until every class is in training."""
    held_out = {labeled[i].digest for i in test}
    for name in sorted({name for each in labeled for name in classes_of(each.label)}):
        own = {each.digest for each in labeled if name in classes_of(each.label)}
        if own <= held_out:
            held_out.remove(min(own))
    in_test = np.array([each.digest in held_out for each in labeled], bool)
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _without_groups_of(
    test: list[LoadedExample], train: list[LoadedExample], log: ReadLog
) -> list[LoadedExample]:
    """Returns the training examples without unlabeled ones of the test items' groups."""
    held_out = {each.source.group for each in test}
    kept = []
    for each in train:
        if each.label is None and each.source.group is not None and each.source.group in held_out:
            log.ignore(each.source.file, "unlabeled, of a group in the test split")
        else:
            kept.append(each)
    return kept


def _check_groups_apart(
    path: pathlib.Path, train: list[LoadedExample], test: list[LoadedExample], form: TextFormat
) -> None:
    """Raises UserError if a given split has a group of `--group_column` on both sides."""
    shared = {each.source.group for each in train} & {each.source.group for each in test} - {None}
    if form.group_column and shared:
        raise UserError(
            f"--group_column={form.group_column}: {path}: {len(shared)} groups, such as "
            f"{min(map(str, shared))!r}, are in both the train and the test split; a group "
            "belongs in one"
        )
