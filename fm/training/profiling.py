"""A profile of some steps of a run: a trace of `jax.profiler` in the run's folder."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import jax

from fm.progress_lines import say

FOLDER = "profile"


class StepProfiler:
    """Traces the steps `first` to `last` of a run, counted from 1, to a folder.

    The steps themselves compute what they compute without a trace.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        out_dir: pathlib.Path | None,
        run_name: str,
        done: int = 0,
    ):
        """Traces nothing if `steps` or `out_dir` is None, or the first of the steps is done."""
        if steps is not None and steps[0] <= done:
            say(f"{run_name}: no profile of steps {steps[0]} to {steps[1]}: {done} steps are done")
            steps = None
        self._steps = steps if out_dir is not None else None
        self._folder = None if out_dir is None else out_dir / FOLDER
        self._run_name, self._is_tracing = run_name, False

    def begins_at(self, step: int) -> bool:
        """Returns whether the trace begins with this step."""
        return self._steps is not None and not self._is_tracing and step == self._steps[0]

    def ends_after(self, step: int) -> bool:
        """Returns whether the trace ends after this step."""
        return self._is_tracing and self._steps is not None and step >= self._steps[1]

    def start(self) -> None:
        """Starts the trace; all steps before must have ended."""
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self._is_tracing = True

    def stop(self) -> None:
        """Ends the trace, if one is being taken, and writes it."""
        if not self._is_tracing:
            return
        self._is_tracing = False
        jax.profiler.stop_trace()
        assert self._steps is not None
        first, last = self._steps
        say(f"{self._run_name}: profile of steps {first} to {last} written to {self._folder}")

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Marks the block as a step in the trace, if one is being taken."""
        if not self._is_tracing:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield


def how_to_open(out_dir: pathlib.Path) -> str | None:
    """Returns a line that says how to open the profile of a run, None if it has none."""
    folder = out_dir / FOLDER
    if not any(folder.glob("plugins/profile/*/*.xplane.pb")):
        return None
    return (
        f"profile: {folder}; open it by `pip install xprof` and `xprof --logdir={folder}`, or drop "
        "its trace.json.gz on https://ui.perfetto.dev"
    )
