"""The stages of a study: which there are, which one begins, and about how long it will take."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Hashable, Iterator, Sequence

from fm.progress_lines import duration, phase, say

# Replaced in tests.
_clock = time.monotonic


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a study that runs; see `fm.study.dry_run.StageEstimate` for one before.

    Attributes:
      key: what tells it from the others.
      title: what it does, such as "films: pretraining in_domain".
    """

    key: Hashable
    title: str


class StagePlan:
    """The stages of a study in order; says on stderr which one begins and how long it may take.

    A time is given only if an earlier stage of the same kind of work has been measured.

    Attributes:
      stages: those planned.
    """

    def __init__(self, stages: Sequence[Stage] = ()):
        self.stages = list(dict.fromkeys(stages))
        self._measured: dict[Hashable, tuple[float, float]] = {}  # seconds and work, by kind

    @contextlib.contextmanager
    def stage(self, stage: Stage, *, kind: Hashable = None, work: float = 0.0) -> Iterator[None]:
        """Says that a stage begins, and measures the time of the block.

        Args:
          stage: one that is not planned has no number.
          kind: of the work; equal kinds take equally long for each unit of work.
          work: how much there is to do, in any unit; 0 if it is done already or not known.
        """
        number = ""
        if stage in self.stages:
            number = f"{self.stages.index(stage) + 1} of {len(self.stages)}: "
        seconds, known = self._measured.get(kind, (0.0, 0.0))
        expected = f", about {duration(seconds / known * work)}" if known and work else ""
        say(f"{number}{stage.title}{expected}")
        began = _clock()
        with phase(stage.title, quiet=True, has_bar=False):
            yield
        if kind is not None and work:
            self._measured[kind] = seconds + _clock() - began, known + work
