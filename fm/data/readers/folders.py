"""Finds the examples of a folder: split folders, class folders, flat folders, file names."""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fm.data.media import MODALITIES, media_extensions, modality_for_path
from fm.data.readers.arrow import ARROW_EXTENSIONS, saved_splits
from fm.data.readers.examples import Example, ReadLog, TextFormat
from fm.data.readers.text import (
    ACCEPTED_TEXT_FILES,
    TEXT_EXTENSIONS,
    read_text,
    read_text_file,
    text_extension,
)
from fm.errors import UserError

_SEPARATOR = "_"
_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), "validation"),
    **dict.fromkeys(("dev", "development", "devel"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "heldout"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "unsupervised"), "unlabeled"),
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
# "train_images", "TestSet"
_SPLIT_SUFFIX = re.compile(r"(set|data|split|folder|images?|imgs?|audio|clips?|videos?|texts?)+$")
# What Finder, Explorer and others leave in folders.
_LITTER = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "icon\r", "@eadir")
)


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
    folder: pathlib.Path,
    form: TextFormat,
    fields: FileNameFieldPositions,
    log: ReadLog,
    *,
    unlabeled: bool = False,
) -> dict[str, list[Example]]:
    """Returns a folder's examples by split; accepts train/test, class and plain folders.

    Accepted, tried in this order (hidden files are ignored):
        a folder that the library `datasets` saved;
        `train/` and one or more of `test/`, `validation/`, `unlabeled/`, each like one of the last
            two forms;
        `train.csv` and one or more of `test.csv`, `validation.csv`, `unlabeled.csv` (or .jsonl,
            .parquet, .txt ...);
        a subfolder per class, with images, sounds, clips or .txt files (one example per file), or
            with folders of frames, i.e. numbered images (one example per folder); a subfolder
            `unlabeled` is no class;
        images, sounds, clips (unlabeled), .txt files (unlabeled), or one table (.csv, .jsonl ...).

    Other spellings of the splits are read as well (`Training`, `my_test.csv`, `val`), and told.
    Without a test split the validation split takes its place. With `fields.label`, all images,
    sounds and clips anywhere in the folder; with `form.file_column`, those that a table names.

    Args:
        folder: the folder.
        form: encoding and columns of text files.
        fields: the meaning of file names.
        log: of the reading; a line is added for each choice that the folder left open.
        unlabeled: whether the folder is unlabeled data as a whole.

    Returns:
        Examples under "train" and "test" (and perhaps "validation") if the folder makes the split,
        else under "all"; and under "unlabeled".

    Raises:
        UserError: the folder has none of these forms.
    """
    entries = visible_entries(folder)
    if saved := saved_splits(folder):
        return _read_saved(folder, saved, form, log)
    folders = [path for path in entries if path.is_dir()]
    if not form.file_column and (by_split := split_folders(folder, folders, log.notices)):
        return {
            split: _in_file(
                _read_unsplit(path, form, fields, log, unlabeled=split == "unlabeled"), log, path
            )
            for split, path in by_split.items()
        }
    if shards := split_files(folder, entries, log.notices):
        return _read_tables(shards, form, log)
    examples = _read_unsplit(folder, form, fields, log, unlabeled=unlabeled)
    if unlabeled or fields.label is not None:
        return {"all": examples}
    apart = [example for example in examples if _is_in_unlabeled_folder(example, folder)]
    if not apart or len(apart) == len(examples):
        return {"all": examples}
    log.notices.append("the folder of unlabeled examples is not a class")
    names = set(map(id, apart))
    return {
        "all": [example for example in examples if id(example) not in names],
        "unlabeled": [dataclasses.replace(example, label=None) for example in apart],
    }


def _is_in_unlabeled_folder(example: Example, folder: pathlib.Path) -> bool:
    """Returns whether the class folder of an example says that it is unlabeled."""
    label = example.label
    own = isinstance(label, str) and split_of_word(label) == "unlabeled"
    return own and (folder / str(label)).is_dir()


def _in_file(examples: list[Example], log: ReadLog, path: pathlib.Path) -> list[Example]:
    """Returns the examples counted under a split's folder, unless they come from a table."""
    return [
        example if example.file else dataclasses.replace(example, file=log.name(path))
        for example in examples
    ]


def _read_table(
    path: pathlib.Path, form: TextFormat, log: ReadLog, *, unlabeled: bool
) -> list[Example]:
    own = form.without_labels() if unlabeled else form
    return read_text_file(path, own, log, unlabeled=unlabeled)


def _read_tables(
    paths: Mapping[str, Sequence[pathlib.Path]], form: TextFormat, log: ReadLog
) -> dict[str, list[Example]]:
    """Returns the examples of the tables of each split."""
    return {
        split: [
            example
            for path in own
            for example in _read_table(path, form, log, unlabeled=split == "unlabeled")
        ]
        for split, own in paths.items()
    }


def _read_saved(
    folder: pathlib.Path, saved: dict[str, list[pathlib.Path]], form: TextFormat, log: ReadLog
) -> dict[str, list[Example]]:
    """Returns the examples of a folder that `datasets` saved, by split."""
    if set(saved) == {"all"}:
        named: dict[str, list[pathlib.Path]] = saved
    else:
        spelled = {folder / name: split_of_word(name) for name in saved}
        splits = {path: split for path, split in spelled.items() if split}
        if others := [path.name for path in spelled if path not in splits]:
            log.notices.append(f"its splits {', '.join(others)} are left out")
        if len(splits) == 1:
            named = {"all": saved[next(iter(splits)).name]}
        else:
            found = _named_splits(folder, splits, log.notices)
            if not found:
                raise UserError(
                    f"{folder} has the splits {', '.join(saved)}; accepted are train, with test, "
                    "validation or unlabeled"
                )
            named = {split: saved[path.name] for split, path in found.items()}
    return _read_tables(named, form, log)


def is_visible(name: str) -> bool:
    """Returns whether a file or folder of this name is the user's, not hidden or of the system."""
    return not name.startswith(".") and name.lower() not in _LITTER


def visible_entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files and folders in a folder that are not hidden, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if is_visible(path.name))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error


def walk(
    folder: pathlib.Path, *, whole_examples: bool, _above: tuple[pathlib.Path, ...] = ()
) -> Iterator[pathlib.Path]:
    """Yields the visible files below a folder, in order and behind links too; and empty folders.

    Args:
        folder: the folder.
        whole_examples: whether a folder that is one example (a clip) is yielded as such.

    Raises:
        UserError: a link leads back to a folder above it.
    """
    real = folder.resolve()
    if real in _above:
        raise UserError(f"{folder} is a link to a folder that it lies in")
    entries = visible_entries(folder)
    if not entries:
        yield folder
    for path in entries:
        if not path.is_dir() or (whole_examples and modality_for_path(path)):
            yield path
        else:
            yield from walk(path, whole_examples=whole_examples, _above=(*_above, real))


def with_file_name_fields(
    examples: list[Example], fields: FileNameFieldPositions, *, unlabeled: bool = False
) -> list[Example]:
    """Returns the examples with label and group set from their file names.

    Unlabeled examples get no label, and no group if their names have none.

    Raises:
        UserError: a name has too few fields, or an example is not a file.
    """
    if fields == FileNameFieldPositions():
        return examples
    if unlabeled:
        return [
            dataclasses.replace(example, group=_field_or_none(example, fields.speaker))
            for example in examples
        ]
    return [
        dataclasses.replace(
            example,
            label=example.label if fields.label is None else _field(example, fields.label),
            group=None if fields.speaker is None else _field(example, fields.speaker),
        )
        for example in examples
    ]


def split_of_word(name: str) -> str | None:
    """Returns "train", "validation", "test" or "unlabeled" if a name spells it, else None."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    for word in (letters, _SPLIT_SUFFIX.sub("", letters)):
        if word in _SPLIT_OF_WORD:
            return _SPLIT_OF_WORD[word]
    return None


def split_of_file_name(name: str) -> str | None:
    """Returns the split that a file's name says, as in `reviews_train.csv` or `myTest.txt`."""
    found = {split_of_word(word) for word in re.split(r"[\W_]+", name)} - {None}
    if not found:
        stem = re.sub(r"[\d\W_]+$", "", name.split(".")[0].lower())
        found = {split for word, split in _SPLIT_OF_WORD.items() if stem.endswith(word)}
    return found.pop() if len(found) == 1 else None


def split_folders(
    folder: pathlib.Path, folders: list[pathlib.Path], notices: list[str]
) -> dict[str, pathlib.Path]:
    """Returns the folders of the splits by split, {} if there are none."""
    splits = {path: split for path in folders if (split := split_of_word(path.name))}
    others = [path.name for path in folders if path not in splits]
    found = _named_splits(folder, splits, notices)
    if found:
        if others:
            notices.append(f"beside the splits {', '.join(others)} is left out")
        return found
    splits = {path: split for path, split in splits.items() if split != "unlabeled"}
    exact = {path.name for path in splits} & {"train", "test"}
    if exact or (splits and not others):
        raise UserError(
            f"{folder} has only one of the subfolders train and test (it has: "
            f"{', '.join(sorted(path.name for path in folders))}); both are needed, or train and "
            "unlabeled"
        )
    for path in splits:
        notices.append(f"{path.name}, named like a split, is read as a class")
    return {}


def split_files(
    folder: pathlib.Path, entries: list[pathlib.Path], notices: list[str]
) -> dict[str, list[pathlib.Path]]:
    """Returns the text files of the splits, {} if there are none; a split may have shards."""
    folders = [path for path in entries if path.is_dir()]
    files = [path for path in entries if text_extension(path) and path.is_file()]
    shards: dict[pathlib.Path, list[pathlib.Path]] = {}
    for path in files:  # `train-00000-of-00002.parquet` stands for its whole
        shards.setdefault(path.with_name(_SHARD.sub("", path.name)), []).append(path)
    splits = {path: split for path in shards if (split := split_of_file_name(path.name))}
    if folders:  # beside folders, files such as train_list.txt may list their files
        splits = {path: split for path, split in splits.items() if _stem(path) == split}
    found = _named_splits(folder, splits, notices)
    if found:
        others = [*folders, *(path for path in shards if path not in splits)]
        if names := [path.name for path in others if not is_readme(path)]:
            notices.append(f"beside the splits {', '.join(names[:3])} is left out")
    return {split: shards[path] for split, path in found.items()}


def _named_splits(
    folder: pathlib.Path, splits: dict[pathlib.Path, str], notices: list[str]
) -> dict[str, pathlib.Path]:
    """Returns the paths of the splits, {} without train and another; tells what that means.

    The training split is "all" if there is no other with labels.
    """
    by_split: dict[str, pathlib.Path] = {}
    if "train" not in splits.values() or len(set(splits.values())) < 2:
        return {}
    for path, split in splits.items():
        if split in by_split:
            raise UserError(
                f"{folder}: {by_split[split].name} and {path.name} both say {split} in their "
                "names; one is accepted"
            )
        by_split[split] = path
    train, validation = by_split["train"], by_split.get("validation")
    test = by_split.get("test", validation)
    found = {"all" if test is None else "train": train}
    if test is not None:
        found["test"] = test
        if (_stem(train), _stem(test)) != ("train", "test"):
            notices.append(
                f"{train.name} is read as the train split, {test.name} as the test split"
            )
        if validation is not None and validation != test:
            found["validation"] = validation
    if "unlabeled" in by_split:
        found["unlabeled"] = by_split["unlabeled"]
    return found


def _stem(path: pathlib.Path) -> str:
    return path.name.split(".")[0]


def is_readme(path: pathlib.Path) -> bool:
    """Returns whether a file is about the data beside it, by its name."""
    return path.name.lower().startswith(("readme", "license", "licence"))


def _field_or_none(example: Example, number: int | None) -> str | None:
    """Returns a field of the file's name, None if there is none."""
    if number is None or isinstance(example.content, str):
        return None
    parts = example.content.stem.split(_SEPARATOR)
    return (parts[number] or None) if number < len(parts) else None


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
    folder: pathlib.Path,
    form: TextFormat,
    fields: FileNameFieldPositions,
    log: ReadLog,
    *,
    unlabeled: bool = False,
) -> list[Example]:
    if form.file_column and not unlabeled:
        return _read_files_of_table(folder, form, log)
    form = form.without_labels() if unlabeled else form
    anywhere = unlabeled and any(map(modality_for_path, walk(folder, whole_examples=True)))
    if anywhere or fields.label is not None:
        examples = _find_media_files(folder, log.notices)
    else:
        examples = _read_classes_or_files(folder, form, log)
    if unlabeled:
        examples = [dataclasses.replace(example, label=None) for example in examples]
    return with_file_name_fields(examples, fields, unlabeled=unlabeled)


def _read_files_of_table(folder: pathlib.Path, form: TextFormat, log: ReadLog) -> list[Example]:
    """Returns the examples of the one table in a folder, whose rows name the files."""
    tables = [path for path in visible_entries(folder) if text_extension(path) not in ("", ".txt")]
    if len(tables) != 1:
        listed = ", ".join(path.name for path in tables) or "none"
        raise UserError(
            f"--file_column={form.file_column}: {folder} has to hold one table that names files; "
            f"it holds: {listed}"
        )
    return read_text_file(tables[0], form, log)


def _find_media_files(folder: pathlib.Path, notices: list[str]) -> list[Example]:
    """Returns the images, sounds and clips anywhere in a folder; counts others in a notice."""
    found, others = [], 0
    for path in walk(folder, whole_examples=True):
        if modality_for_path(path):
            found.append(Example(path))
        elif path.is_file():
            others += 1
    if not found:
        raise UserError(f"{folder} holds no file ending in {', '.join(media_extensions())}")
    if others:
        notices.append(f"{others} files of other kinds were left out")
    return found


def _read_classes_or_files(folder: pathlib.Path, form: TextFormat, log: ReadLog) -> list[Example]:
    entries = visible_entries(folder)
    classes = [path for path in entries if path.is_dir()]
    if classes:
        beside = [
            path.name
            for path in entries
            if path not in classes and (text_extension(path) or modality_for_path(path))
        ]
        if beside := [name for name in beside if not is_readme(pathlib.Path(name))]:
            log.notices.append(
                f"{len(beside)} files beside the class folders are left out, such as {beside[0]}"
            )
        return [example for path in classes for example in _read_class(path, form, log)]
    if not entries:
        raise UserError(f"{folder} is empty")
    if all(modality_for_path(path) for path in entries):
        return [Example(path) for path in entries]
    extensions = {text_extension(path) or path.suffix.lower() for path in entries}
    shards = len(extensions) == 1 and extensions <= set(ARROW_EXTENSIONS)
    single = len(entries) == 1 and extensions <= set(TEXT_EXTENSIONS)
    if extensions == {".txt"} or shards or single:
        return _read_pile(entries, form, log)
    unknown = sorted(extensions - set(TEXT_EXTENSIONS) - set(media_extensions()))
    if unknown:
        raise UserError(
            f"{folder} holds files with the unknown ending {unknown[0]!r}; accepted: "
            f"{ACCEPTED_TEXT_FILES}, {', '.join(media_extensions())}"
        )
    media = [name for name, modality in MODALITIES.items() if modality.codec]
    raise UserError(
        f"{folder} mixes {', '.join(sorted(extensions))} files; accepted: files of one of "
        f"{', '.join(media)}, only .txt, one single .csv, .tsv or .jsonl file, only .parquet, or a "
        "train and a test file"
    )


def _read_pile(paths: list[pathlib.Path], form: TextFormat, log: ReadLog) -> list[Example]:
    own = dataclasses.replace(log, notices=[], ignored={})
    examples = [example for path in paths for example in read_text_file(path, form, own)]
    more = f" (and so on for {len(own.notices) - 1} more files)" if len(own.notices) > 1 else ""
    log.notices += [line + more for line in own.notices[:1]]
    if len(paths) == 1:
        log.ignored.update(own.ignored)
        return examples
    for reasons in own.ignored.values():  # the pile is counted as one
        log.ignored.setdefault(log.title, Counter()).update(reasons)
    return [dataclasses.replace(example, file=log.title) for example in examples]


def _read_class(folder: pathlib.Path, form: TextFormat, log: ReadLog) -> list[Example]:
    """Reads a class folder with its subfolders: one example per file or folder of frames."""
    below = [path for path in visible_entries(folder) if path.is_dir()]
    splits = {split_of_word(path.name) for path in below}
    if "train" in splits and splits & {"test", "validation"}:
        raise UserError(
            f"{folder} is a class folder with the splits inside "
            f"({', '.join(path.name for path in below)}); accepted are split folders with the "
            f"classes inside, such as train/{folder.name}"
        )
    examples = []
    for path in walk(folder, whole_examples=True):
        if path == folder:
            raise UserError(f"{folder} is empty; a subfolder holds the examples of one class")
        if modality_for_path(path):
            examples.append(Example(path, folder.name))
        elif path.is_dir():
            raise UserError(f"{path} is empty")
        elif path.suffix.lower() == ".txt":
            text = read_text(path, form.encoding).strip()
            if not text:
                raise UserError(f"{path} is empty")
            examples.append(Example(text, folder.name, row_id=log.name(path)))
        else:
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is a pipe, socket or device, not a file")
            raise UserError(
                f"{path}: unknown ending {path.suffix!r} in a folder by class; accepted: "
                f"{', '.join((*media_extensions(), '.txt'))}"
            )
    return examples
