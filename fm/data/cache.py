"""Where prepared data lives, and how a folder gets there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from fm import digests
from fm.errors import UserError
from fm.files import expanded, naming


def cache_folder() -> pathlib.Path:
    """Returns `$FM_CACHE`, or `~/.cache/fm` when that is unset."""
    return expanded(os.environ.get("FM_CACHE") or "~/.cache/fm").absolute()


@contextlib.contextmanager
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a scratch folder that becomes `target` when the block ends without an error.

    A reader sees all of `target` or nothing. When two processes race, the first one wins and
    the second one's copy is thrown away: both hold the same content by construction.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with naming(target):
            yield scratch
        try:
            scratch.replace(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check(folder: pathlib.Path) -> None:
    """Compares the files of a folder of the cache with their digests.

    Raises:
        UserError: one is not what was written there.
    """
    try:
        digests.check(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}); delete it and run again") from error
