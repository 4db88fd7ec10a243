"""Archives of plain files, unpacked without letting anything out of the folder they go to."""

import contextlib
import lzma
import pathlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator

from fm.data.fetch import unpack
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
        UserError: not a readable archive, or one that holds links, devices or paths outside.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch).resolve()
        if path.suffix.lower() == ".zip":
            unpack(path, root)
        else:
            _untar(path, root)
        folder = root
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            (folder,) = inside
        try:
            yield folder
        except UserError as error:
            raise UserError(str(error).replace(str(root), str(path))) from error


def _untar(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes a tar file's regular files, member by member; of other kinds it accepts folders."""
    try:
        with tarfile.open(path) as opened:
            members = [member for member in opened if not member.isdir()]
            for member in members:
                if not member.isfile():
                    raise UserError(f"{path}: {member.name!r} is neither a file nor a folder")
                if not (folder / member.name).resolve().is_relative_to(folder):
                    raise UserError(
                        f"{path}: refusing to unpack {member.name!r}, a path leading outside"
                    )
            for member in members:
                target, content = folder / member.name, opened.extractfile(member)
                assert content is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(f"{path} is not a readable archive: {error}") from error
