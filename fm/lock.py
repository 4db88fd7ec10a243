"""A lock that prevents two processes from using one folder.

The lock is the operating system's `flock`, which also works over NFS and ends with its process, so
a `.lock` left behind by a killed run locks nothing. The file holds the owner's process id and host
for the error message of others (`filelock` does not record them, and fails on file systems that
support no locks). Where locks are not supported, a line on stderr says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from fm.errors import UserError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_descriptors: dict[pathlib.Path, int] = {}  # of the locks that this process holds


NAME = ".lock"


def acquire(folder: pathlib.Path, name: str = NAME) -> None:
    """Locks a folder for this process until `release`; no-op if this process already holds it.

    Args:
        folder: an existing folder.
        name: of the lock file; different names are different locks.

    Raises:
        UserError: another process holds the lock; the message gives its id and host.
        OSError: the folder does not exist or cannot be written.
    """
    path = folder.resolve() / name
    if path in _descriptors and _is_file_at(path, _descriptors[path]):
        return
    if fcntl is None:
        _warn_unsupported(folder, "this system has no flock")
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 300).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by {owner}; wait until that ends, or take another folder"
            ) from error
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
            _warn_unsupported(folder, error.strerror or str(error))
            return
        # The previous owner may have removed the file between `open` and `flock`.
        if _is_file_at(path, descriptor):
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _descriptors[path] = descriptor


@contextlib.contextmanager
def held(folder: pathlib.Path, name: str, *, seconds: float = 10.0) -> Iterator[None]:
    """Context manager that holds a folder's lock, waiting for processes that hold it for a moment.

    It keeps other processes out, not other threads of this one.

    Args:
        folder: an existing folder.
        name: of the lock file.
        seconds: how long to wait.

    Raises:
        UserError: another process still holds it after so many seconds.
        OSError: see `acquire`.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            acquire(folder, name)
            break
        except UserError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        _release(folder.resolve() / name)


def release() -> None:
    """Releases all folder locks of this process and deletes their lock files."""
    for path in list(_descriptors):
        _release(path)


def _release(path: pathlib.Path) -> None:
    descriptor = _descriptors.pop(path, None)
    if descriptor is None:
        return
    if _is_file_at(path, descriptor):
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(descriptor)


def _is_file_at(path: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _warn_unsupported(folder: pathlib.Path, reason: str) -> None:
    print(f"{folder} cannot be locked ({reason}): start nothing else in it", file=sys.stderr)
