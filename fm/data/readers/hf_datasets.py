"""Fetches a data set of the Hugging Face hub, which the user named, with the library `datasets`."""

import hashlib
import importlib
import pathlib
import re
from typing import Any

from fm.errors import UserError
from fm.files import atomic_dir, cache_dir

PREFIX = "hf:"
# name, or owner/name; with a configuration behind a colon.
_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.+-]+))?")


def fetch_dataset(name: str) -> pathlib.Path:
    """Returns the folder of a data set that is called `hf:NAME` or `hf:NAME:CONFIG`.

    It is fetched on first use, and read from the cache from then on.

    Raises:
        UserError: it is no such name, `datasets` is not installed, or it cannot fetch the data set.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise UserError(f"{name}: takes hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME:CONFIG")
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    folder = cache_dir() / "hf_datasets" / key / match["name"].replace("/", "-")
    if folder.exists():
        return folder
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(f'{name} needs the library datasets: pip install "fm[datasets]"') from error
    try:
        found = library.load_dataset(match["name"], match["config"])
        with atomic_dir(folder) as scratch:
            found.save_to_disk(str(scratch))
    except Exception as error:  # network, unknown name, a data set that runs code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"datasets cannot fetch {name}: {reason}") from error
    return folder
