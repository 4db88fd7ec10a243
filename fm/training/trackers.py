"""Trackers: libraries that show the metrics of a run, chosen by --tracker.

Metrics are on disk and in TensorBoard events in any case, see `fm.training.metric_writer`. A
tracker gets the same records besides. Its library is imported when the first record is written. To
add a tracker, pass one more to `register_tracker`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from fm.errors import UserError

PROJECT = "fm"
# Writes nothing besides what `MetricWriter` writes anyway.
TENSORBOARD = "tensorboard"


class Tracker(Protocol):
    """Protocol of what a tracker's library keeps of one run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds the metrics of a step."""
        ...

    def finish(self) -> None:
        """Writes what is left, and closes the run."""
        ...


@dataclasses.dataclass(frozen=True)
class TrackerSpec:
    """A tracker that --tracker can name.

    Attributes:
      name: of the tracker.
      description: where it keeps metrics, in one line.
      requirement: what pip installs; "" if nothing is needed.
      open: given the run's name and its folder, starts or continues it.
    """

    name: str
    description: str
    requirement: str = ""
    open: Callable[[str, pathlib.Path], Tracker] | None = None

    @property
    def module(self) -> str:
        """Returns the module that the requirement brings."""
        return self.requirement.partition(">=")[0]


TRACKERS: dict[str, TrackerSpec] = {}
# A module's variable, since studies also train in threads of their own.
_active: list[TrackerSpec] = []


def register_tracker(spec: TrackerSpec) -> None:
    """Adds a tracker to the registry, or replaces the one with the same name."""
    TRACKERS[spec.name] = spec


@contextlib.contextmanager
def tracking(name: str | None) -> Iterator[None]:
    """Sends the metrics of all runs in the block to a tracker; None or "tensorboard" to none.

    Raises:
      UserError: there is no such tracker, or its library is not installed.
    """
    if name is None:
        yield
        return
    if name not in TRACKERS:
        raise UserError(f"--tracker={name}: must be one of {', '.join(TRACKERS)}")
    spec = TRACKERS[name]
    if spec.module and importlib.util.find_spec(spec.module) is None:
        raise UserError(
            f"--tracker={name}: needs {spec.module}, which is not installed; "
            f'python -m pip install "{spec.requirement}"'
        )
    _active.append(spec)
    try:
        yield
    finally:
        _active.remove(spec)


class TrackedRun:
    """What the active tracker gets of one run; nothing without one.

    A tracker that fails says so once and gets no more: training goes on.
    """

    def __init__(self, folder: pathlib.Path):
        """Starts nothing yet: a finished run that is opened again writes no records."""
        self._folder = pathlib.Path(folder)
        self._spec = _active[-1] if _active and _active[-1].open else None
        self._tracker: Tracker | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Logs the numbers of a record as KIND/METRIC.

        Raises:
          UserError: the tracker cannot be started.
        """
        spec = self._spec
        if spec is None:
            return
        if self._tracker is None:
            self._tracker = self._start(spec)
        metrics = {
            f"{record['kind']}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step") and isinstance(value, int | float)
        }
        with self._reported(spec):
            self._tracker.log(metrics, record["step"])

    def _start(self, spec: TrackerSpec) -> Tracker:
        assert spec.open is not None
        name = "/".join(self._folder.resolve().parts[-4:])
        try:
            # Libraries print where the run can be seen; stdout is for results.
            with contextlib.redirect_stdout(sys.stderr):
                return spec.open(name, self._folder)
        except Exception as error:
            raise UserError(f"--tracker={spec.name} cannot be started ({error})") from error

    @contextlib.contextmanager
    def _reported(self, spec: TrackerSpec) -> Iterator[None]:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            line = " ".join(str(error).split())
            print(f"--tracker={spec.name} failed and gets no more: {line}", file=sys.stderr)
            self._spec = None

    def close(self) -> None:
        """Finishes the tracker's run, if there is one."""
        if self._spec is not None and self._tracker is not None:
            with self._reported(self._spec):
                self._tracker.finish()


def _run_id(folder: pathlib.Path) -> str:
    """Returns an id that a resumed run has again."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


class _WandbRun:
    """A run of Weights & Biases. Whether it uses the network is for its own settings to say."""

    def __init__(self, name: str, folder: pathlib.Path):
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=PROJECT,
            name=name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder),
            reinit="create_new",
        )
        # A resumed run writes the steps after its checkpoint again: wandb's own never go back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def finish(self) -> None:
        self._run.finish()


class _TrackioRun:
    """A run of Trackio, in its local data base unless its settings name a Space."""

    def __init__(self, name: str, folder: pathlib.Path):
        trackio = importlib.import_module("trackio")
        self._run = trackio.init(project=PROJECT, name=name, resume="allow")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


for _spec in (
    TrackerSpec(TENSORBOARD, "event files beside the checkpoints, which every run writes"),
    TrackerSpec(
        "trackio", "a local data base; `trackio show` opens it", "trackio>=0.4", _TrackioRun
    ),
    TrackerSpec(
        "wandb", "Weights & Biases; WANDB_MODE=offline keeps it local", "wandb>=0.19.10", _WandbRun
    ),
):
    register_tracker(_spec)
