"""Prepares TFDS builders as ArrayRecord, atomically and with digests."""

import contextlib
import io
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from fm.data import tfds_safety
from fm.files import check_cached, digests_exist, new_dir, write_digests

MakeBuilder = Callable[[pathlib.Path], Any]


def prepare(make: MakeBuilder, data_dir: pathlib.Path) -> Any:
    """Returns the prepared builder, preparing it on first use.

    Args:
        make: creates a `tfds.core.DatasetBuilder` (ArrayRecord format) for a data folder.
        data_dir: the folder of all prepared data sets.

    Raises:
        UserError: a prepared file has changed since.
    """
    builder = make(data_dir)
    target = pathlib.Path(builder.data_path)
    if not is_prepared(target):
        print(f"preparing {builder.info.full_name} ...", file=sys.stderr, flush=True)
        tfds.disable_progress_bar()
        with new_dir(target) as scratch:
            inner = make(scratch)
            # TFDS prints lines that name the scratch folder to stdout.
            with contextlib.redirect_stdout(io.StringIO()):
                inner.download_and_prepare()
            _move_up(pathlib.Path(inner.data_path), scratch)
            write_digests(scratch)
    return open_checked(target)


def is_prepared(target: pathlib.Path) -> bool:
    """Returns whether a data set was prepared there, even if it is damaged."""
    return digests_exist(target) or (target / "dataset_info.json").exists()


def open_checked(target: pathlib.Path) -> Any:
    """Returns the builder of a prepared folder, after checking its digests if it has any.

    Raises:
        UserError: a prepared file has changed since; see also `fm.data.tfds_safety`.
    """
    if digests_exist(target):
        check_cached(target)
    return tfds_safety.open_prepared(target)


def _move_up(inner: pathlib.Path, outer: pathlib.Path) -> None:
    """Moves the files of `inner`, a folder below `outer`, up into `outer`."""
    for file in inner.iterdir():
        file.replace(outer / file.name)
    shutil.rmtree(outer / inner.relative_to(outer).parts[0])
