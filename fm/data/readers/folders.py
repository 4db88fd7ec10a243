"""Finds the examples of a folder: split folders, class folders, flat folders, file names."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator

from fm.data.media import MODALITIES, media_extensions, modality_for_path
from fm.data.readers.text import TEXT_EXTENSIONS, Example, read_text_file, read_utf8
from fm.errors import UserError

_SEPARATOR = "_"


@dataclasses.dataclass(frozen=True)
class FileNameFieldPositions:
    """Positions of the label and speaker among the "_"-separated fields of a file name.

    In `7_george_3.wav` the label may be field 0 and the speaker field 1.

    Attributes:
        label: the class; None if the folder names it.
        speaker: no speaker may be in both splits; None for a split by content.
    """

    label: int | None = None
    speaker: int | None = None


def read_folder(
    folder: pathlib.Path, text_column: str, label_column: str, fields: FileNameFieldPositions
) -> dict[str, list[Example]]:
    """Returns a folder's examples by split; accepts train/test, class and plain folders.

    Accepted, tried in this order (hidden files are ignored):
        `train/` and `test/`, each like one of the last two forms;
        `train.csv` and `test.csv` (or .jsonl, .txt);
        a subfolder per class, with images, sounds, clips or .txt files (one example per file), or
            with folders of frames, i.e. numbered images (one example per folder);
        images, sounds, clips (unlabeled), .txt files (unlabeled), or one .csv or .jsonl file.

    With `fields.label`, all images, sounds and clips anywhere in the folder.

    Returns:
        Examples under "train" and "test" if the folder makes the split, else under "all".

    Raises:
        UserError: the folder has none of these forms.
    """
    names = {path.name for path in visible_entries(folder) if path.is_dir()}
    if {"train", "test"} <= names:
        return {
            split: _read_unsplit(folder / split, text_column, label_column, fields)
            for split in ("train", "test")
        }
    if names & {"train", "test"}:
        raise UserError(f"{folder} has only one of the subfolders train and test; both are needed")
    for extension in TEXT_EXTENSIONS:
        paths = {split: folder / f"{split}{extension}" for split in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            return {
                split: read_text_file(path, text_column, label_column)
                for split, path in paths.items()
            }
    return {"all": _read_unsplit(folder, text_column, label_column, fields)}


def visible_entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files and folders in a folder that are not hidden, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error


def with_file_name_fields(examples: list[Example], fields: FileNameFieldPositions) -> list[Example]:
    """Returns the examples with label and group set from their file names.

    Raises:
        UserError: a name has too few fields, or an example is not a file.
    """
    if fields == FileNameFieldPositions():
        return examples
    return [
        dataclasses.replace(
            example,
            label=example.label if fields.label is None else _field(example, fields.label),
            group=None if fields.speaker is None else _field(example, fields.speaker),
        )
        for example in examples
    ]


def _field(example: Example, number: int) -> str:
    if isinstance(example.content, str):
        raise UserError(
            "--label_field and --speaker_field, fields of file names, are for images, sounds and "
            "clips, not for texts"
        )
    parts = example.content.stem.split(_SEPARATOR)
    if number >= len(parts) or not parts[number]:
        raise UserError(
            f"{example.content}: no field {number} in the name; by {_SEPARATOR!r} it has: "
            f"{', '.join(f'{n}={part!r}' for n, part in enumerate(parts))}"
        )
    return parts[number]


def _read_unsplit(
    folder: pathlib.Path, text_column: str, label_column: str, fields: FileNameFieldPositions
) -> list[Example]:
    if fields.label is not None:
        examples = _find_media_files(folder)
    else:
        examples = _read_classes_or_files(folder, text_column, label_column)
    return with_file_name_fields(examples, fields)


def _find_media_files(folder: pathlib.Path) -> list[Example]:
    """Returns the images, sounds and clips anywhere in a folder; counts others on stderr."""
    found, others = [], 0
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and modality_for_path(path):
            found.append(Example(path))
        elif not hidden and path.is_file():
            others += 1
    if not found:
        raise UserError(f"{folder} holds no file ending in {', '.join(media_extensions())}")
    if others:
        print(f"{others} files of other kinds were left out", file=sys.stderr, flush=True)
    return found


def _read_classes_or_files(
    folder: pathlib.Path, text_column: str, label_column: str
) -> list[Example]:
    entries = visible_entries(folder)
    classes = [path for path in entries if path.is_dir()]
    if classes:
        return [example for path in classes for example in _read_class(path)]
    extensions = {path.suffix.lower() for path in entries}
    if not entries:
        raise UserError(f"{folder} is empty")
    if all(modality_for_path(path) for path in entries):
        return [Example(path) for path in entries]
    if extensions == {".txt"} or (len(entries) == 1 and extensions <= set(TEXT_EXTENSIONS)):
        return [
            example
            for path in entries
            for example in read_text_file(path, text_column, label_column)
        ]
    unknown = sorted(extensions - set(TEXT_EXTENSIONS) - set(media_extensions()))
    if unknown:
        raise UserError(
            f"{folder} holds files with the unknown ending {unknown[0]!r}; accepted: "
            f"{', '.join(TEXT_EXTENSIONS + media_extensions())}"
        )
    media = [name for name, modality in MODALITIES.items() if modality.codec]
    raise UserError(
        f"{folder} mixes {', '.join(sorted(extensions))} files; accepted: files of one of "
        f"{', '.join(media)}, only .txt, one single .csv or .jsonl file, or a train and a test file"
    )


def _read_class(folder: pathlib.Path) -> list[Example]:
    """Reads a class folder with its subfolders: one example per file or folder of frames."""
    examples = []
    for path in _walk(folder):
        if modality_for_path(path):
            examples.append(Example(path, folder.name))
        elif path.suffix.lower() == ".txt":
            text = read_utf8(path).strip()
            if not text:
                raise UserError(f"{path} is empty")
            examples.append(Example(text, folder.name))
        else:
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is a pipe, socket or device, not a file")
            raise UserError(
                f"{path}: unknown ending {path.suffix!r} in a folder by class; accepted: "
                f"{', '.join((*media_extensions(), '.txt'))}"
            )
    if not examples:
        raise UserError(f"{folder} is empty; a subfolder holds the examples of one class")
    return examples


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields visible files, and folders that are one example as a whole."""
    for path in visible_entries(folder):
        if not path.is_dir() or modality_for_path(path):
            yield path
        elif not visible_entries(path):
            raise UserError(f"{path} is empty")
        elif not path.is_symlink():
            yield from _walk(path)
