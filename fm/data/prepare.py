"""Preparing a TFDS builder once, whole or not at all, as ArrayRecord."""

import contextlib
import io
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from fm import files
from fm.data import tfds_safety
from fm.files import check_cached, new_dir

MakeBuilder = Callable[[pathlib.Path], Any]


def prepare(make: MakeBuilder, data_dir: pathlib.Path) -> Any:
    """Returns the prepared builder, preparing it on first use.

    Args:
        make: builds a `tfds.core.DatasetBuilder` (ArrayRecord format) for a data folder.
        data_dir: the folder that holds all prepared data sets.

    Returns:
        The builder, reading from `data_dir`.

    Raises:
        UserError: a file is not what was prepared.
    """
    builder = make(data_dir)
    target = pathlib.Path(builder.data_path)
    if not is_prepared(target):
        print(f"preparing {builder.info.full_name} ...", file=sys.stderr, flush=True)
        tfds.disable_progress_bar()
        with new_dir(target) as scratch:
            inside = make(scratch)
            # TFDS prints its own lines to stdout, naming the scratch folder.
            with contextlib.redirect_stdout(io.StringIO()):
                inside.download_and_prepare()
            _lift(pathlib.Path(inside.data_path), scratch)
            files.write_digests(scratch)
    return open_checked(target)


def is_prepared(target: pathlib.Path) -> bool:
    """Whether a data set was prepared there, in whatever state it is."""
    return files.digests_exist(target) or (target / "dataset_info.json").exists()


def open_checked(target: pathlib.Path) -> Any:
    """Returns the builder of a prepared folder.

    One of before there were digests is taken as it is.

    Raises:
        UserError: a file is not what was prepared; or see `fm.data.tfds_safety`.
    """
    if files.digests_exist(target):
        check_cached(target)
    return tfds_safety.open_prepared(target)


def _lift(inner: pathlib.Path, outer: pathlib.Path) -> None:
    """Moves the files of `inner`, a folder below `outer`, up into `outer`."""
    for file in inner.iterdir():
        file.replace(outer / file.name)
    shutil.rmtree(outer / inner.relative_to(outer).parts[0])
