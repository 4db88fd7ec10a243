"""How often the test items of a task have been scored before: results kept here, and this user's.

A task scores a slice of its test split, in a fixed random order. `test_slices.json` beside this
file holds what had been scored when this version was made; a ledger in the cache folder,
`test_slices.json`, gets a record of every study that scores a slice here. A configuration counts
once however often it runs, since running it again reveals nothing new.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from fm import lock
from fm.config_io import parse
from fm.data.patches import DEFAULT_IMAGE_SIZE
from fm.errors import UserError
from fm.files import cache_dir, read_checked_json, read_json, write_checked_json
from fm.progress_lines import say
from fm.study.task import Task
from fm.study.tasks import first_test_item

LEDGER_FILE = "test_slices.json"
UNKNOWN = "unknown"
_HISTORY = pathlib.Path(__file__).with_name("test_slices.json")


@dataclasses.dataclass(frozen=True)
class TestSlice:
    """A run of test items, in the fixed random order of a test split.

    Attributes:
      dataset: name or path of the data.
      test: digest of the ids of the whole test split, "" if unknown.
      start: first item.
      stop: the one after the last; None for the end of the split.
    """

    __test__ = False  # for pytest

    dataset: str
    test: str
    start: int
    stop: int | None

    def overlaps(self, other: TestSlice) -> bool:
        """Returns whether two slices share items, as far as names and digests tell."""
        both = self.test and other.test
        same = self.test == other.test if both else self.dataset == other.dataset
        ends = (float("inf") if each.stop is None else each.stop for each in (self, other))
        return same and max(self.start, other.start) < min(ends)


@dataclasses.dataclass(frozen=True)
class ScoredSlice:
    """A slice with the configurations that have scored it.

    Attributes:
      dataset, test, start, stop: see `TestSlice`.
      configs: config hashes.
      others: smallest number of further configurations, whose hashes are not known.
      note: where that number is from.
    """

    dataset: str
    test: str
    start: int
    stop: int | None
    configs: tuple[str, ...] = ()
    others: int = 0
    note: str = ""

    @property
    def slice(self) -> TestSlice:
        """Returns the slice alone."""
        return TestSlice(self.dataset, self.test, self.start, self.stop)


def slice_of(task: Task) -> TestSlice:
    """Returns the slice of the test split that a task scores.

    Its digest is unknown at another image size than the default, where the same items have other
    ids: it then shares items with any slice of the data set by that name.
    """
    start = first_test_item(task.config)
    digest = hashlib.sha256("".join(task.dataset.test.ids).encode()).hexdigest()[:32]
    digest = digest if task.config.image_size == DEFAULT_IMAGE_SIZE else ""
    return TestSlice(task.config.dataset, digest, start, start + len(task.test))


def slice_name(task: Task) -> str:
    """Returns a slice's name: "development", "all test items", or "items 1,000 to 1,999"."""
    if task.config.split != "test":
        return task.config.split
    if len(task.test) == len(task.dataset.test):
        return "all test items"
    start = first_test_item(task.config)
    return f"items {start:,} to {start + len(task.test) - 1:,} of {len(task.dataset.test):,}"


def record(task: Task, config_hash: str) -> dict[str, Any]:
    """Records that a configuration scores a task's slice; returns the task's row of `test_slice`.

    A development part is not test data: it is not recorded.

    Returns:
      name, items, scored_before (at least so many other configurations before this one, or
      "unknown" if the ledger cannot be used), sealed (whether none has).
    """
    row = {"name": slice_name(task), "items": len(task.test)}
    if task.config.split != "test":
        return row | {"scored_before": None, "sealed": False}
    own = slice_of(task)
    try:
        earlier = _add_to_ledger(own, config_hash)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        say(
            f"{cache_dir() / LEDGER_FILE}: how often the test items of {task.name} have been "
            f"scored before is unknown ({reason})"
        )
        return row | {"scored_before": UNKNOWN, "sealed": False}
    count = scored_before(own, config_hash, [*history(), *earlier])
    return row | {"scored_before": count, "sealed": count == 0}


def scored_before(own: TestSlice, config_hash: str, scored: Sequence[ScoredSlice]) -> int:
    """Returns how many other configurations, at least, have scored items of a slice."""
    overlapping = [each for each in scored if own.overlaps(each.slice)]
    configs = {name for each in overlapping for name in each.configs} - {config_hash}
    # Unnamed configurations of two slices may be the same ones.
    return len(configs) + max((each.others for each in overlapping), default=0)


@functools.cache
def history() -> tuple[ScoredSlice, ...]:
    """Returns what had been scored when this version was made."""
    return parse(tuple[ScoredSlice, ...], read_json(_HISTORY), _HISTORY.name)


def _add_to_ledger(own: TestSlice, config_hash: str) -> list[ScoredSlice]:
    """Adds a record unless it is there; returns the records before it.

    Raises:
      OSError: the cache folder cannot be written.
      UserError: the ledger is damaged, or another process does not let go of it.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LEDGER_FILE
    with lock.held(folder, f".{LEDGER_FILE}.lock"):
        content = read_checked_json(path) if path.exists() else []
        records = list(parse(tuple[ScoredSlice, ...], content, str(path)))
        added = ScoredSlice(**dataclasses.asdict(own), configs=(config_hash,))
        if added in records:
            return records[: records.index(added)]
        write_checked_json(path, [dataclasses.asdict(each) for each in [*records, added]])
        return records
