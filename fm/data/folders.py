"""A folder of plain files to examples: split folders, folders by class, flat folders."""

import pathlib
from collections.abc import Iterator

from fm.data import media
from fm.data.file_names import Fields, gather, told
from fm.data.text_files import ENDINGS, Example, read_text_file, read_utf8
from fm.errors import UserError


def read_folder(
    folder: pathlib.Path, text_column: str, label_column: str, fields: Fields
) -> dict[str, list[Example]]:
    """Reads a folder's examples by split.

    Accepted, tried in this order (hidden files are ignored):
        `train/` and `test/`, each like one of the following but this and the next;
        `train.csv` and `test.csv` (or .jsonl, .txt);
        a subfolder per class, of images, sounds, clips or of .txt files (one example per file), or
            of folders of frames, numbered images (one example per folder);
        images, sounds, clips (unlabelled), .txt files (unlabelled), or one .csv or .jsonl file.

    With `fields.label` given, all images, sounds, ... anywhere in it.

    Returns:
        Examples under "train" and "test" when the folder makes the split, else under "all".

    Raises:
        UserError: the folder is none of these.
    """
    names = {path.name for path in visible(folder) if path.is_dir()}
    if {"train", "test"} <= names:
        return {
            split: _read_unsplit(folder / split, text_column, label_column, fields)
            for split in ("train", "test")
        }
    if names & {"train", "test"}:
        raise UserError(f"{folder} has only one of the subfolders train and test; both are needed")
    for ending in ENDINGS:
        paths = {split: folder / f"{split}{ending}" for split in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            return {
                split: read_text_file(path, text_column, label_column)
                for split, path in paths.items()
            }
    return {"all": _read_unsplit(folder, text_column, label_column, fields)}


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries of a folder in order of name, less the hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error


def _read_unsplit(
    folder: pathlib.Path, text_column: str, label_column: str, fields: Fields
) -> list[Example]:
    if fields.label is not None:
        return told(gather(folder), fields)
    return told(_read_plain(folder, text_column, label_column), fields)


def _read_plain(folder: pathlib.Path, text_column: str, label_column: str) -> list[Example]:
    entries = visible(folder)
    classes = [path for path in entries if path.is_dir()]
    if classes:
        return [example for path in classes for example in _read_class(path)]
    endings = {path.suffix.lower() for path in entries}
    if not entries:
        raise UserError(f"{folder} is empty")
    if all(media.owner(path) for path in entries):
        return [Example(path) for path in entries]
    if endings == {".txt"} or (len(entries) == 1 and endings <= set(ENDINGS)):
        return [
            example
            for path in entries
            for example in read_text_file(path, text_column, label_column)
        ]
    unknown = sorted(endings - set(ENDINGS) - set(media.ENDINGS))
    if unknown:
        raise UserError(
            f"{folder} holds files with the unknown ending {unknown[0]!r}; accepted: "
            f"{', '.join(ENDINGS + media.ENDINGS)}"
        )
    raise UserError(
        f"{folder} mixes {', '.join(sorted(endings))} files; accepted: files of one of "
        f"{', '.join(media.MEDIA)}, only .txt, one single .csv or .jsonl file, or a train and a "
        "test file"
    )


def _read_class(folder: pathlib.Path) -> list[Example]:
    """Reads a class folder, its subfolders included: one example per file, or folder of frames."""
    examples = []
    for path in _walk(folder):
        if media.owner(path):
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
                f"{', '.join((*media.ENDINGS, '.txt'))}"
            )
    if not examples:
        raise UserError(f"{folder} is empty; a subfolder holds the examples of one class")
    return examples


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields files, and folders that are one example as a whole, less the hidden ones."""
    for path in visible(folder):
        if not path.is_dir() or media.owner(path):
            yield path
        elif not visible(path):
            raise UserError(f"{path} is empty")
        elif not path.is_symlink():
            yield from _walk(path)
