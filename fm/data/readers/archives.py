"""Unpacks archives safely: no paths outside the folder, no links or devices, bounded size.

`tarfile`'s data filter is not used: it allows links, has no limit of size, and takes an archive cut
short between two files for a complete one.
"""

import contextlib
import lzma
import pathlib
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fm.data.readers.folders import visible_entries
from fm.errors import UserError

ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Decompression bombs: real data rarely shrinks to a hundredth.
MAX_BYTES = 32 * 2**30
MAX_FILES = 2_000_000
_MAX_RATIO, _ALWAYS_ALLOWED_BYTES = 200, 2**30

_ZIP_UTF8_FLAG = 0x800

_FORMAT_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, struct.error, NotImplementedError, RuntimeError, OverflowError, IndexError),
)


def is_archive(path: pathlib.Path) -> bool:
    """Returns whether the path's extension is that of a supported archive."""
    return path.name.lower().endswith(ARCHIVE_EXTENSIONS)


@contextlib.contextmanager
def unpacked_archive(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the archive's files, deleted after the block.

    If the archive holds a single folder, that one is yielded; what Finder or Explorer added beside
    it does not count. Paths in a UserError of the block are rewritten to paths inside the archive.

    Raises:
        UserError: not a readable archive, or an unsafe one; see `unzip`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch).resolve()
        (unzip if path.suffix.lower() == ".zip" else untar)(path, root)
        folder = root
        while len(inside := visible_entries(folder)) == 1 and inside[0].is_dir():
            (folder,) = inside
        try:
            yield folder
        except UserError as error:
            raise UserError(str(error).replace(str(root), str(path))) from error


def unzip(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Extracts a zip file (e.g. a wheel) into `folder`, after checking it for unsafe members.

    Raises:
        UserError: it is not a readable zip file; it has a path outside `folder`, a member that is
            neither a file nor a folder, or a file twice; or it is too large. Nothing has been
            written then, unless the content of a file is broken.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            extraction = _Extraction(archive, folder)
            for member in members:
                # The type of a member; only Unix records it, and not always.
                kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
                regular = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                name = _zip_member_name(member)
                extraction.add(name, member.file_size, regular, _is_zip_folder(name))
            extraction.check()
            for member in members:
                name = _zip_member_name(member)
                if not _is_zip_folder(name):
                    with opened.open(member) as content, extraction.open(name) as file:
                        shutil.copyfileobj(content, file)
    except UserError:
        raise
    except _FORMAT_ERRORS as error:
        raise _unreadable(archive, "zip file", error) from error


def _zip_member_name(member: zipfile.ZipInfo) -> str:
    """Returns a member's name; Finder writes UTF-8 without saying so, others code page 437."""
    name = member.orig_filename  # not `filename`, which ends at a NUL
    if not member.flag_bits & _ZIP_UTF8_FLAG:
        with contextlib.suppress(UnicodeError):
            return name.encode("cp437").decode("utf-8")
    return name


def _is_zip_folder(name: str) -> bool:
    return name.endswith(("/", "\\"))


def untar(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Extracts a tar file, compressed or not, into `folder`, after checking for unsafe members."""
    try:
        with tarfile.open(archive) as opened:
            members, extraction = [], _Extraction(archive, folder)
            for member in opened:
                # Checked before the next member is sought, which decompresses this one's content.
                regular = member.isfile() or member.isdir()
                extraction.add(member.name, member.size, regular, member.isdir())
                members.append(member)
            _check_end(opened)
            extraction.check()
            for member in members:
                content = opened.extractfile(member)
                if content is not None:
                    with content, extraction.open(member.name) as file:
                        shutil.copyfileobj(content, file)
    except UserError:
        raise
    except _FORMAT_ERRORS as error:
        raise _unreadable(archive, "tar file", error) from error


def _check_end(opened: tarfile.TarFile) -> None:
    """Checks that a block of zeros follows the last member.

    `tarfile` also stops silently at the end of the file or at garbage, so that the members after a
    cut between two files would be missed.
    """
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut short or damaged: no end follows its last file")


class _Extraction:
    """The files an archive may write, checked before any is written."""

    def __init__(self, archive: pathlib.Path, folder: pathlib.Path):
        self._archive, self._folder = archive, folder.resolve()
        ratio_limit = _MAX_RATIO * archive.stat().st_size
        self._max_bytes = min(MAX_BYTES, max(_ALWAYS_ALLOWED_BYTES, ratio_limit))
        self._bytes = 0
        self._files: set[pathlib.Path] = set()
        self._folders = {self._folder}

    def add(self, name: str, size: int, regular: bool, is_folder: bool) -> None:
        """Checks one member."""
        portable = _with_slashes(name)
        outside = portable.startswith("/") or re.match("[A-Za-z]:/", portable)
        if outside or ".." in portable.split("/") or "\0" in name:
            raise UserError(f"{self._archive}: refusing to unpack {name!r}, a path leading outside")
        if not regular:
            raise UserError(f"{self._archive}: {name!r} is neither a file nor a folder")
        path = self._folder / portable
        self._folders |= {path, *path.parents} if is_folder else set(path.parents)
        if is_folder:
            return
        if path in self._files:
            raise UserError(f"{self._archive}: {name!r} is in it twice")
        self._files.add(path)
        self._bytes += size
        if self._bytes > self._max_bytes or len(self._files) > MAX_FILES:
            raise UserError(
                f"{self._archive} would unpack to over {self._max_bytes // 2**20:,} MB or "
                f"{MAX_FILES:,} files, like a decompression bomb; if it is none, unpack it "
                "yourself and give the folder"
            )

    def check(self) -> None:
        """Checks that no path is both a file and a folder."""
        for both in self._files & self._folders:
            name = str(both.relative_to(self._folder))
            raise UserError(f"{self._archive}: {name!r} is both a file and a folder")

    def open(self, name: str) -> BinaryIO:
        """Opens a new file for a member's content."""
        path = self._folder / _with_slashes(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _with_slashes(name: str) -> str:
    """Returns a member's name with slashes; older tools of Windows write backslashes."""
    return name.replace("\\", "/")


def _unreadable(archive: pathlib.Path, noun: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{archive} is not a readable {noun}: {reason.splitlines()[0].rstrip(':')}")
