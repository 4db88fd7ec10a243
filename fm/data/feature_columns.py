"""Finds the TFDS features that hold text, label, group and so on, by name or by type."""

import dataclasses
from typing import Any

import tensorflow_datasets as tfds

from fm.data.index import FeatureColumns
from fm.data.media import MODALITIES
from fm.data.readers import conll
from fm.data.readers.examples import TextFormat
from fm.errors import UserError


def own_columns(features: Any) -> FeatureColumns:
    """Returns the features of files that `fm.data.readers` prepared, whose names are fixed."""
    if "tags" in features:
        places = {name: name for name in ("row_id", "file", "position")}
        return FeatureColumns("text", "words", None, tags="tags", **places)
    content = next(name for name in MODALITIES if name in features)
    own = {
        name: name for name in ("value", "label_set", "second_text", "target") if name in features
    }
    return FeatureColumns(
        content,
        content,
        "label" if "label" in features else None,
        row_id="row_id",
        file="file",
        position="position",
        **own,
    )


def find_columns(
    name: str, features: Any, text_column: str, label_column: str, target_column: str
) -> FeatureColumns:
    """Finds the features to read: those asked for, else the only one of a suitable type.

    Raises:
        UserError: one asked for is missing, or several are suitable and none has the usual name.
    """
    features = dict(sorted(features.items()))  # TFDS reads a prepared folder's in any order
    texts = [key for key, feature in features.items() if type(feature) is tfds.features.Text]
    labels = [key for key, each in features.items() if type(each) is tfds.features.ClassLabel]
    if target_column and target_column not in texts:
        listed = ", ".join(texts) or "none"
        raise UserError(f"{name} has no text feature {target_column!r}; it has: {listed}")
    target = target_column or "target"
    if target in texts and len(texts) > 1 and text_column != target:
        rest = [text for text in texts if text != target]
        content = _choose(name, "text_column", text_column, rest)
        return FeatureColumns("text", content, None, target=target)
    if columns := _words_and_tags(name, features, text_column, label_column):
        return columns
    accepted = [
        (modality.name, key)
        for modality in MODALITIES.values()
        for key, feature in features.items()
        if modality.codec is not None and modality.codec.accepts_feature(feature)
    ]
    if not texts and not accepted:
        listed = ", ".join(features)
        raise UserError(f"{name} has no feature of {', '.join(MODALITIES)}; it has: {listed}")
    label = None
    if label_column and (labels or label_column != "label" or label_column in features):
        label = _choose(name, "label_column", label_column, labels, "for none: --label_column=")
    media = list(dict.fromkeys(key for _, key in accepted))
    if text_column in texts or not media:
        return FeatureColumns("text", _choose(name, "text_column", text_column, texts), label)
    # Several modalities may accept a feature; one of its own name is what it was prepared as.
    own = [(modality, key) for modality, key in accepted if modality == key]
    if text_column in media or not own:
        asked = text_column if texts or text_column in media else "text"
        key = _choose(name, "text_column", asked, media)
        own = [(modality, each) for modality, each in accepted if each == key]
    elif texts and text_column != "text":
        _choose(name, "text_column", text_column, [*texts, *media])
    modality, key = own[0]
    return FeatureColumns(modality, key, label)


def _choose(name: str, flag: str, column: str, available: list[str], remark: str = "") -> str:
    """Returns the column asked for, or the only one there is if none was asked for by name."""
    is_default = column == flag.removesuffix("_column")
    if column in available:
        return column
    if is_default and len(available) == 1:
        return available[0]
    listed = ", ".join(available) or "none"
    remark = f" ({remark})" if remark else ""
    if is_default and available:
        raise UserError(f"{name} has several columns for --{flag}: {listed}; give one{remark}")
    raise UserError(f"{name} has no column {column!r} for --{flag}; it has: {listed}{remark}")


def _words_and_tags(
    name: str, features: Any, text_column: str, label_column: str
) -> FeatureColumns | None:
    """Returns the features of words and of their BIO tags; None if there are none."""
    words, tags = [], []
    for key, feature in features.items():
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
        if isinstance(inner, tfds.features.Text):
            words.append(key)
        elif isinstance(inner, tfds.features.ClassLabel) and all(
            map(conll.is_bio_tag, inner.names)
        ):
            tags.append(key)
    if not words or not tags:
        return None
    content = _choose(name, "text_column", text_column, words)
    if not label_column:
        return FeatureColumns("text", content, None, tags=tags[0] if len(tags) == 1 else None)
    return FeatureColumns(
        "text", content, None, tags=_choose(name, "label_column", label_column, tags)
    )


def find_all_columns(name: str, features: Any, form: TextFormat) -> FeatureColumns:
    """Returns the features of a TFDS data set that the flags ask for, see `find_columns`.

    Raises:
        UserError: there is no such feature, or a flag is for files alone.
    """
    features = dict(sorted(features.items()))
    for flag in ("label_separator", "file_column"):
        if getattr(form, flag):
            raise UserError(
                f"--{flag}={getattr(form, flag)}: is for .csv, .tsv, .jsonl and .parquet files, "
                f"not for {name}"
            )
    second, label_column = form.second_text_column, form.label_column
    if second and type(features.get(second)) is not tfds.features.Text:
        texts = [key for key, each in features.items() if type(each) is tfds.features.Text]
        raise UserError(
            f"--second_text_column={second}: {name} has no text feature {second!r}; it has: "
            f"{', '.join(texts) or 'none'}"
        )
    holds_sets = _is_label_set(features.get(label_column))
    columns = find_columns(
        name,
        {key: feature for key, feature in features.items() if key != second},
        form.text_column,
        "" if holds_sets or form.value_column else label_column,
        form.target_column,
    )
    if second:
        columns = dataclasses.replace(columns, second_text=second)
    if holds_sets and not columns.tags:
        columns = dataclasses.replace(columns, label_set=label_column)
    if form.id_column:
        row_id = _scalar_feature(name, features, "id_column", form.id_column)
        columns = dataclasses.replace(columns, row_id=row_id)
    if form.value_column:
        value = _scalar_feature(name, features, "value_column", form.value_column, numbers=True)
        columns = dataclasses.replace(columns, label=None, tags=None, target=None, value=value)
    return columns


def _is_label_set(feature: Any) -> bool:
    """Returns whether a feature is a sequence of classes, which are no entity tags."""
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
    if not isinstance(inner, tfds.features.ClassLabel):
        return False
    return not all(map(conll.is_bio_tag, inner.names))


def _scalar_feature(
    name: str, features: Any, flag: str, column: str, *, numbers: bool = False
) -> str:
    fitting = [
        key
        for key, feature in sorted(features.items())
        if (isinstance(feature, tfds.features.Text | tfds.features.ClassLabel) and not numbers)
        or (type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and feature.shape == ())
    ]
    if column not in fitting:
        listed = ", ".join(fitting) or "none"
        raise UserError(
            f"--{flag}={column}: {name} has no column {column!r} for it; it has: {listed}"
        )
    return column


def group_feature(name: str, features: Any, group: str, form: TextFormat) -> str | None:
    """Returns the feature of the group, None for none; raises UserError if it cannot be one."""
    if not group:
        return None
    fitting = [
        key
        for key, feature in sorted(features.items())
        if isinstance(feature, tfds.features.Text | tfds.features.ClassLabel)
        or (type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and feature.shape == ())
    ]
    if group not in fitting:
        listed = ", ".join(fitting) or "none"
        flag = "group_column" if form.group_column else "item_group"
        raise UserError(f"--{flag}={group}: {name} has no such column of groups; it has: {listed}")
    return group
