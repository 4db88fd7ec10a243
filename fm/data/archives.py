"""Archives of plain files, unpacked without letting anything out of the folder they go to."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from fm.data.unpacking import untar, unzip
from fm.errors import UserError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: pathlib.Path) -> bool:
    """Says whether a file's name is that of an archive."""
    return path.name.lower().endswith(ENDINGS)


@contextlib.contextmanager
def unpacked(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the archive's files, deleted after the block.

    Where all lies in one folder, that one is yielded. A `UserError` of the block that names files
    in it names them inside the archive instead.

    Raises:
        UserError: not a readable archive, or one that is refused; see `fm.data.unpacking`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch).resolve()
        (unzip if path.suffix.lower() == ".zip" else untar)(path, root)
        folder = root
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            (folder,) = inside
        try:
            yield folder
        except UserError as error:
            raise UserError(str(error).replace(str(root), str(path))) from error
