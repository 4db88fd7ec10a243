"""Archives to files: no way out of their folder, no links or devices, no end without a bound."""

from __future__ import annotations

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

from fm.errors import UserError

# A bomb is small and its content is not; real data rarely shrinks to a hundredth.
MAX_BYTES = 32 * 2**30
MAX_FILES = 2_000_000
_TIMES, _HARMLESS = 200, 2**30

_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, struct.error, NotImplementedError, RuntimeError, OverflowError, IndexError),
)


def unzip(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the files of a zip (a wheel is one) into `folder`.

    Raises:
        UserError: it is not a readable zip file; it holds a path that leads out of `folder`, what
            is neither a file nor a folder, or a file twice; or it would grow beyond all bounds.
            Nothing has been written then, unless a file's content turns out to be broken.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            kept = _Extraction(archive, folder)
            for member in members:
                # What it is, which only Unix says, and not always.
                kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                # Not `filename`, which ends before a NUL.
                kept.add(member.orig_filename, member.file_size, plain, member.is_dir())
            kept.check()
            for member in members:
                if not member.is_dir():
                    with opened.open(member) as content, kept.open(member.filename) as file:
                        shutil.copyfileobj(content, file)
    except UserError:
        raise
    except _BROKEN as error:
        raise _unreadable(archive, "zip file", error) from error


def untar(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the files of a tar, compressed or not, into `folder`; see `unzip`."""
    try:
        with tarfile.open(archive) as opened:
            members, kept = [], _Extraction(archive, folder)
            for member in opened:
                # Before the next one is looked for: all between the two is decompressed for that.
                plain = member.isfile() or member.isdir()
                kept.add(member.name, member.size, plain, member.isdir())
                members.append(member)
            _check_end(opened)
            kept.check()
            for member in members:
                content = opened.extractfile(member)
                if content is not None:
                    with content, kept.open(member.name) as file:
                        shutil.copyfileobj(content, file)
    except UserError:
        raise
    except _BROKEN as error:
        raise _unreadable(archive, "tar file", error) from error


def _check_end(opened: tarfile.TarFile) -> None:
    """Sees that a block of zeros follows the last member: without, or at garbage, `tarfile` stops.

    Where the cut falls between two files, those after it would be missed by nobody.
    """
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut short or damaged: no end follows its last file")


class _Extraction:
    """What an archive may write, and how much."""

    def __init__(self, archive: pathlib.Path, folder: pathlib.Path):
        self._archive, self._folder = archive, folder.resolve()
        self._most = min(MAX_BYTES, max(_HARMLESS, _TIMES * archive.stat().st_size))
        self._bytes = 0
        self._files: set[pathlib.Path] = set()
        self._folders = {self._folder}

    def add(self, name: str, size: int, plain: bool, is_folder: bool) -> None:
        """Sees that a member may be written, before any is."""
        outside = "\\" in name or name.startswith("/") or re.match("[A-Za-z]:/", name)
        if outside or ".." in name.split("/") or "\0" in name:
            raise UserError(f"{self._archive}: refusing to unpack {name!r}, a path leading outside")
        if not plain:
            raise UserError(f"{self._archive}: {name!r} is neither a file nor a folder")
        place = self._folder / name
        self._folders |= {place, *place.parents} if is_folder else set(place.parents)
        if is_folder:
            return
        if place in self._files:
            raise UserError(f"{self._archive}: {name!r} is in it twice")
        self._files.add(place)
        self._bytes += size
        if self._bytes > self._most or len(self._files) > MAX_FILES:
            raise UserError(
                f"{self._archive} would unpack to over {self._most // 2**20:,} MB or "
                f"{MAX_FILES:,} files, as archives do that are made to fill a disk; unpack it "
                "yourself and give the folder, if this one is not"
            )

    def check(self) -> None:
        """Sees that no member is a file to one and a folder to another."""
        for both in self._files & self._folders:
            name = str(both.relative_to(self._folder))
            raise UserError(f"{self._archive}: {name!r} is both a file and a folder")

    def open(self, name: str) -> BinaryIO:
        """A new file for a member's content."""
        place = self._folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place.open("xb")


def _unreadable(archive: pathlib.Path, noun: str, error: Exception) -> UserError:
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{archive} is not a readable {noun}: {told.splitlines()[0].rstrip(':')}")


ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: pathlib.Path) -> bool:
    """Says whether a file's name is that of an archive."""
    return path.name.lower().endswith(ARCHIVE_EXTENSIONS)


@contextlib.contextmanager
def unpacked_archive(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the archive's files, deleted after the block.

    Where all lies in one folder, that one is yielded. A `UserError` of the block that names files
    in it names them inside the archive instead.

    Raises:
        UserError: not a readable archive, or one that is refused; see `fm.data.readers.archives`.
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
