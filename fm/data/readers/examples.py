"""`Example`: one example read from the user's files; `TextFormat` and `ReadLog` of the reading."""

import dataclasses
import pathlib
import unicodedata
from collections import Counter

# A class; the classes of a label set; a number; a text to generate (a str too).
Label = str | tuple[str, ...] | float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FurtherColumns:
    """What some data sets have beside a text and its label, by the names of columns; "" for none.

    Attributes:
        group_column: of the group that no two splits share.
        id_column: of the id by which the user knows a row.
        value_column: of a number to predict, instead of a label.
        label_separator: separates the classes of a label set in `label_column`; "" for one class.
        second_text_column: of the second text of a pair.
        file_column: of the file that is the input, instead of a text.
    """

    group_column: str = ""
    id_column: str = ""
    value_column: str = ""
    label_separator: str = ""
    second_text_column: str = ""
    file_column: str = ""


@dataclasses.dataclass(frozen=True)
class TextFormat(FurtherColumns):
    """How text files and tables are read: their encoding, and the names of their columns.

    Attributes:
        text_column: the column or JSON key of the text.
        label_column: that of the class; several, separated by commas, are 0/1 columns of a label
            set; "" for unlabeled data.
        target_column: that of a target text, instead of a label; "" for none.
        encoding: a name that Python's `codecs` knows.
        item_group: the column of the group of an example, for statistics alone; "" for none.
    """

    text_column: str = "text"
    label_column: str = "label"
    target_column: str = ""
    encoding: str = "utf-8"
    item_group: str = ""

    def without_labels(self) -> "TextFormat":
        """Returns the format of files whose examples are unlabeled."""
        return dataclasses.replace(
            self, label_column="", target_column="", value_column="", label_separator=""
        )


@dataclasses.dataclass(frozen=True)
class Example:
    """An example from the user's files: its text or media path, its label, group and id.

    Attributes:
        content: its text; or the file (or folder) with its image, sound or clip. Both texts of a
            pair are joined by a blank line.
        label: the class, the sorted classes of a label set, the number or the target text; None if
            unlabeled.
        group: which no two splits may share, e.g. a speaker; None for a split by content.
        item_group: for statistics by group; both splits may have it.
        row_id: the id by which the user knows it; "" for the path of a media file.
        file: the file or folder that it is counted under, see `fm.data.file_counts`.
        second_text: the second text of a pair, None without one.
    """

    content: str | pathlib.Path
    label: Label | None = None
    group: str | None = None
    item_group: str | None = None
    row_id: str = ""
    file: str = ""
    second_text: str | None = None


@dataclasses.dataclass
class ReadLog:
    """What a reader has to say: notices, rows that are no examples, and where it may unpack files.

    Attributes:
        root: the folder (or file) that names of files are relative to.
        title: what that folder or file is called in ids and counts.
        scratch: a temporary folder for images and sounds that a table holds.
        only_inside: whether files that a table names must lie in `root`, as in an archive.
        notices: a line for each choice that the files left open.
        files: the tables read so far.
        ignored: by file, how many of its rows are no examples, by reason.
    """

    root: pathlib.Path
    title: str
    scratch: pathlib.Path
    only_inside: bool = False
    notices: list[str] = dataclasses.field(default_factory=list)
    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    ignored: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)

    def name(self, path: pathlib.Path) -> str:
        """Returns a file's path relative to the data folder, or the title of the data file."""
        if path == self.root:
            return self.title
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else str(path)

    def ignore(self, file: str, reason: str, count: int = 1) -> None:
        """Counts rows of a file that are no examples."""
        self.ignored.setdefault(file, Counter())[reason] += count


def to_nfc(name: str) -> str:
    """Returns a name in Unicode NFC, so that composed and decomposed spellings are equal."""
    return unicodedata.normalize("NFC", name)
