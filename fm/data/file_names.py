"""Files whose names say what they are: `7_george_3.wav` is a seven that George said."""

import dataclasses
import pathlib
import sys

from fm.data import media
from fm.data.text_files import Example
from fm.errors import UserError

SEPARATOR = "_"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which field of a file's name, less its ending and parted by `_`, says what; from 0.

    Attributes:
        label: the class; None where the folder says it.
        speaker: who, of whom none is in both splits; None where the split is by content.
    """

    label: int | None = None
    speaker: int | None = None


def gather(folder: pathlib.Path) -> list[Example]:
    """Returns the images, sounds, ... anywhere in a folder; what else it holds is said on stderr.

    Raises:
        UserError: there are none.
    """
    found, others = [], 0
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and media.owner(path):
            found.append(Example(path))
        elif not hidden and path.is_file():
            others += 1
    if not found:
        raise UserError(f"{folder} holds no file ending in {', '.join(media.ENDINGS)}")
    if others:
        print(f"{others} files of other kinds were left out", file=sys.stderr, flush=True)
    return found


def told(examples: list[Example], fields: Fields) -> list[Example]:
    """Returns the examples with the labels and groups that their files' names say.

    Raises:
        UserError: a name has too few fields; the file is named. Or an example is not a file.
    """
    if fields == Fields():
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
    parts = example.content.stem.split(SEPARATOR)
    if number >= len(parts) or not parts[number]:
        raise UserError(
            f"{example.content}: no field {number} in the name; by {SEPARATOR!r} it has: "
            f"{', '.join(f'{n}={part!r}' for n, part in enumerate(parts))}"
        )
    return parts[number]
