"""One process to a folder, by a lock of the operating system's, gone with whoever held it.

`flock` holds on Linux and macOS, over NFS too, and ends with its process however that ends: a
`.lock` that a killed run left behind locks nothing. Windows, and file systems that know no locks,
have nothing of the kind: there a line says that nobody watches.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import sys

try:
    import fcntl
except ImportError:
    fcntl = None

from fm.errors import UserError

_UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_held: dict[pathlib.Path, int] = {}  # descriptors


def acquire(folder: pathlib.Path, name: str = ".lock") -> None:
    """Keeps other processes from a folder until `release`; a folder held already stays so.

    With another `name` it is what goes by that name that they are kept from.

    Raises:
      UserError: another process holds it; names that and its host.
      OSError: the folder is not there or cannot be written.
    """
    path = folder.resolve() / name
    if path in _held and _same(path, _held[path]):
        return
    if fcntl is None:
        _unwatched(folder, "this system has no flock")
        return
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 300).decode(errors="replace") or "another process"
            os.close(file)
            raise UserError(
                f"{folder} is in use by {holder}; wait until that ends, or take another folder"
            ) from error
        except OSError as error:
            os.close(file)
            if error.errno not in _UNKNOWN:
                raise
            _unwatched(folder, error.strerror or str(error))
            return
        # Who held it until now may have removed the file between the two calls.
        if _same(path, file):
            break
        os.close(file)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held[path] = file


def release() -> None:
    """Lets go of every folder that this process holds."""
    while _held:
        path, file = _held.popitem()
        if _same(path, file):
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(file)


def _same(path: pathlib.Path, file: int) -> bool:
    """Whether a descriptor is of what is at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _unwatched(folder: pathlib.Path, reason: str) -> None:
    print(f"{folder} cannot be locked ({reason}): start nothing else in it", file=sys.stderr)
