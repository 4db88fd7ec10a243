"""Checkpoints through Orbax: arrays and JSON, never code, so that loading one runs nothing.

A step's folder holds the arrays `params` and `optimizer` (optimizer state and step count), the
JSON `progress` (counters and data position) and `config`, and SHA-256 digests of all their files.
Orbax writes in a thread of its own, renames a folder when it is complete, and removes what a
killed run left incomplete. The digests, written last, are what makes a checkpoint complete: it
does not matter whether Orbax asks for them before it renames the folder, after that, or not at all.

A checkpoint whose files differ from their digests is damaged: an earlier one is used, and it is
renamed to `damaged-STEP`. Any other failure to read one is an error, and nothing is touched. Of
several processes the lead process decides which checkpoint is restored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from fm import files
from fm.errors import UserError
from fm.parallel import distributed
from fm.parallel.mesh import default_device
from fm.training.config import check_same_config
from fm.training.train_state import TrainState

# Number of the checkpoint layout and of the names in its config.
FORMAT = 2
# Orbax's own files (timestamps and handler names), written after the digests and never read.
UNHASHED_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")

_log = logging.getLogger(__name__)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Returns whether a record of absl's logger, which Orbax shares with others, is of others."""
    return "orbax" not in pathlib.Path(record.pathname).parts


# Orbax and its threads log every step, and every exception besides raising it.
logging.getLogger("absl").addFilter(_is_not_of_orbax)


@dataclasses.dataclass(frozen=True)
class RestoredCheckpoint:
    """A restored checkpoint: the train state and the JSON progress saved with it.

    Attributes:
      state: the train state.
      progress: the JSON saved with it.
    """

    state: TrainState
    progress: dict[str, Any]


class CheckpointStore:
    """Saves and restores a run's checkpoints; a context manager that waits for pending writes."""

    def __init__(
        self, folder: pathlib.Path, *, max_to_keep: int = 2, keep_period: int | None = None
    ):
        """Opens or makes `folder`.

        Args:
          folder: of the run's checkpoints.
          max_to_keep: number of latest checkpoints that are kept.
          keep_period: checkpoints at multiples of this step are kept as well.
        """
        self._folder = pathlib.Path(folder).resolve()
        self._saving = 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            keep_period=keep_period,
            cleanup_tmp_directories=True,
            # So that a run that is killed before `wait` has them.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """Returns the newest step saved, or None."""
        return self._manager.latest_step()

    def has_step(self, step: int) -> bool:
        """Returns whether there is an intact checkpoint of the step; sets a damaged one aside."""
        if step not in self._manager.all_steps():
            return False
        if not _is_damaged(self._folder, step):
            return True
        self._set_aside([step])
        return False

    def save(self, step: int, state: TrainState, progress: dict, config: dict) -> None:
        """Copies the arrays now and writes them while training goes on.

        Args:
          step: steps done.
          state: the train state.
          progress: JSON; everything that resuming needs besides the state.
          config: JSON; nested dict that a resumed run must share.

        Raises:
          UserError: this checkpoint, or the one before, could not be written; earlier ones stay.
        """
        self.wait()
        self._saving = step
        with self._report_write_errors():
            if not self._folder.is_dir():
                raise FileNotFoundError
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(_optimizer_tree(state)),
                    progress=ocp.args.JsonSave(progress),
                    config=ocp.args.JsonSave({"format": FORMAT, **config}),
                ),
            )

    def _write_digests(self) -> None:
        """Writes the digests of the checkpoint being saved, before or after it is renamed."""
        final = self._folder / str(self._saving)
        for folder in [final] if final.is_dir() else self._folder.glob(f"{self._saving}.*"):
            if not files.digests_exist(folder):
                files.write_digests(folder, UNHASHED_FILES)

    def wait(self) -> None:
        """Waits for the checkpoint being written.

        Raises:
          UserError: it could not be written.
        """
        with self._report_write_errors():
            self._manager.wait_until_finished()
            saved = self._saving and (self._folder / str(self._saving)).is_dir()
            if saved and distributed.is_lead_process():
                self._write_digests()

    @contextlib.contextmanager
    def _report_write_errors(self) -> Iterator[None]:
        try:
            yield
        # A full disk is an OSError in Python and another type in each library in between.
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint of step {self._saving} could not be written to {self._folder} "
                f"({_error_reason(error, self._folder)}); "
                f"{_remaining_checkpoints_message(self._folder)}"
            ) from error

    def restore(self, like: TrainState, config: dict) -> RestoredCheckpoint | None:
        """Reads the newest checkpoint that is not damaged; returns None if there is none.

        Damaged newer ones are set aside with a warning, since their steps will be done again. Of
        several processes all restore the step that the lead process finds.

        Args:
          like: a state of the same structure, for shapes, dtypes and devices.
          config: of this run.

        Raises:
          UserError: the run was made with another config or an earlier format, or there are
            checkpoints and all are damaged.
          OSError: a file cannot be read.
        """
        damaged: list[int] = []

        def choose() -> int:
            step, found = _newest_intact(self._folder, self._manager.all_steps())
            damaged.extend(found)
            return -1 if step is None else step

        step = distributed.broadcast_from_lead(choose)
        if step < 0:
            self._set_aside(damaged)
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        check_same_config(self._folder, _checked_format(self._folder, saved["config"]), config)
        restored = self._read(step, like)
        self._set_aside(damaged)
        return restored

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames damaged checkpoints, on the lead process, and forgets them on all."""

        def rename() -> int:
            for step in steps:
                aside = _unused_path(self._folder / f"damaged-{step}")
                (self._folder / str(step)).rename(aside)
                _log.warning("checkpoint of step %d is kept as %s", step, aside)
            return len(steps)

        if distributed.broadcast_from_lead(rename):
            self._manager.reload()

    def _read(self, step: int, like: TrainState) -> RestoredCheckpoint:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, (like.params, _optimizer_tree(like)))
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(shapes[0]),
                optimizer=ocp.args.StandardRestore(shapes[1]),
                progress=ocp.args.JsonRestore(),
            ),
        )
        state = TrainState(params=read["params"], **read["optimizer"])
        return RestoredCheckpoint(jax.tree.map(_placed_like, like, state), read["progress"])

    def close(self) -> None:
        """Waits until everything is on disk; raises UserError if it could not be written."""
        try:
            self.wait()
        finally:
            with self._report_write_errors():
                self._manager.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes; an error in doing so does not replace a UserError that ended the block."""
        failed = kind is not None and issubclass(kind, UserError)
        with contextlib.suppress(UserError) if failed else contextlib.nullcontext():
            self.close()


def load_params(folder: pathlib.Path, step: int | None = None) -> tuple[dict, dict]:
    """Returns (parameters, config dict) of a checkpoint, for use outside the run that wrote it.

    Args:
      folder: the `checkpoints` folder of a run.
      step: the newest checkpoint that is not damaged unless given.

    Raises:
      UserError: the folder holds no checkpoint, none of that step, only damaged ones, or one of
        an earlier format.
      OSError: a file cannot be read.
    """
    folder = pathlib.Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of checkpoints")
    handlers = {"params": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
        # On the default device, whatever devices it was trained on.
        local = jax.sharding.SingleDeviceSharding(default_device())
        if step is not None and step not in manager.all_steps():
            raise UserError(f"{folder} holds no checkpoint of step {step}")
        steps = manager.all_steps() if step is None else [step]
        step, _ = _newest_intact(folder, steps, ("params", "config"))
        if step is None:
            raise UserError(f"{folder} holds no checkpoint")
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=local),
            dict(manager.item_metadata(step)["params"]),
        )
        saved = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(shapes),
                config=ocp.args.JsonRestore(),
            ),
        )
    return saved["params"], _checked_format(folder, saved["config"])


def _checked_format(folder: pathlib.Path, config: Any) -> dict:
    """Returns a checkpoint's config without its format number.

    Raises:
      UserError: it is of another format.
    """
    saved = config.pop("format", 1) if isinstance(config, dict) else 1
    if saved == 1:
        raise UserError(
            f"{folder}: written by fm before format 2 (commit c908ea1 or earlier); pretrain again "
            "or use that version"
        )
    if saved != FORMAT:
        raise UserError(f"{folder}: written in format {saved!r}; this fm reads format {FORMAT}")
    return config


def _newest_intact(
    folder: pathlib.Path, steps: Sequence[int], subdirs: Sequence[str] | None = None
) -> tuple[int | None, list[int]]:
    """Returns the newest step whose files are what was written, and the newer steps.

    A folder without digests is one that a killed run left incomplete.

    Args:
      folder: of the checkpoints.
      steps: that there are.
      subdirs: the parts of a checkpoint that are needed; all if None.

    Raises:
      UserError: there are steps, not one is intact and some are damaged.
      OSError: a file cannot be read, which says nothing about damage.
    """
    others = []
    for step in sorted(steps, reverse=True):
        if not _is_damaged(folder, step, subdirs):
            return step, others
        others.append(step)
    damaged = [step for step in others if files.digests_exist(folder / str(step))]
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} can be read (steps {damaged}); delete the folder to "
            "start again, or use another one"
        )
    return None, others


def _is_damaged(folder: pathlib.Path, step: int, subdirs: Sequence[str] | None = None) -> bool:
    """Returns whether files of a checkpoint are missing or not what was written, with a warning."""
    path = folder / str(step)
    try:
        with files.oserror_with_filename(path):
            files.check_digests(path, subdirs, UNHASHED_FILES)
    except ValueError as error:
        _log.warning("checkpoint of step %d in %s is damaged: %s", step, folder, error)
        return True
    return False


def _unused_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, with a number behind it if there is something of that name."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def _remaining_checkpoints_message(folder: pathlib.Path) -> str:
    """Returns which checkpoint the folder still has, after one could not be written."""
    try:
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    except FileNotFoundError:
        steps = []
    except OSError:
        return "those before it were left alone"
    if not steps:
        return "there is no other"
    return f"the one of step {max(steps)} is kept, and the same command resumes from there"


def _error_reason(error: Exception, folder: pathlib.Path) -> str:
    """Returns the first line of the error's message, or the system's if it has a code."""
    try:
        folder.stat()
    except FileNotFoundError:
        return "the folder is gone"
    except OSError as stat_error:
        # Orbax reports a folder without read permission as missing.
        error = stat_error
    message = getattr(error, "strerror", None) or str(error)
    if code := re.search(r"os_error_code='(\d+)'", message):
        message = os.strerror(int(code[1]))
    return (message.splitlines() or [""])[0] or type(error).__name__


def _optimizer_tree(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step}


def _placed_like(like: jax.Array, leaf: jax.Array) -> jax.Array:
    # Orbax commits arrays to their device, and jit compiles another program for those.
    return leaf if like.committed else jax.device_put(jax.device_get(leaf), may_alias=False)
