"""Which checkpoint of a folder can be read, and what to tell of those that cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fm import files
from fm.errors import UserError
from fm.training.config import check_same_config
from fm.training.train_state import TrainState

T = TypeVar("T")

_log = logging.getLogger(__name__)


def newest_readable(
    folder: pathlib.Path,
    manager: ocp.CheckpointManager,
    read: Callable[[int], T],
    only: int | None = None,
) -> tuple[T | None, list[int]]:
    """What `read` gives for the newest step it can read, and the newer steps it cannot.

    With `only`, no other step is tried.

    Raises:
      UserError: from `read`, or if there are checkpoints and none can be read.
    """
    unreadable = []
    steps = sorted(manager.all_steps(), reverse=True) if only is None else [only]
    for step in steps:
        try:
            return read(step), unreadable
        except UserError:
            raise
        # A torn file surfaces as whatever its reader happens to stumble over.
        except Exception as error:
            _log.warning(
                "checkpoint of step %d in %s is unreadable: %s",
                step,
                folder,
                error_reason(error, folder),
            )
            unreadable.append(step)
    if unreadable:
        raise UserError(
            f"no checkpoint in {folder} can be read (steps {unreadable}); delete the folder to "
            "start anew, or give another one"
        )
    return None, []


def remaining_checkpoints_message(folder: pathlib.Path) -> str:
    """What to tell of the checkpoints in a folder that one more could not be written to."""
    try:
        steps = [int(each.name) for each in folder.iterdir() if each.name.isdigit()]
    except FileNotFoundError:
        steps = []
    except OSError:
        return "those before it were left alone"
    if not steps:
        return "there is no other"
    return f"the one of step {max(steps)} is kept, and the same command goes on from there"


def error_reason(error: Exception, folder: pathlib.Path) -> str:
    """The first line of what an error says; the system's own words where there are any."""
    try:
        folder.stat()
    except FileNotFoundError:
        return "the folder is gone"
    except OSError as gone:
        # To Orbax, what it may not look at does not exist.
        error = gone
    told = getattr(error, "strerror", None) or str(error)
    if code := re.search(r"os_error_code='(\d+)'", told):
        told = os.strerror(int(code[1]))
    return (told.splitlines() or [""])[0] or type(error).__name__


_log = logging.getLogger(__name__)
# Orbax's own, of times and handlers, written after the digests; what is in them is not used.
UNHASHED_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Orbax and its threads report every step of theirs, and what they raise besides raising it.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class RestoredCheckpoint:
    """What a checkpoint gave back.

    Attributes:
      state: of `fm.training.train_state`.
      progress: the JSON saved beside it.
    """

    state: TrainState
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self, folder: pathlib.Path, *, max_to_keep: int = 2, keep_period: int | None = None
    ):
        """Opens or makes `folder`; the last `keep` stay, and those at multiples of `keep_every`."""
        self._folder = pathlib.Path(folder).resolve()
        self._saving = 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            keep_period=keep_period,
            cleanup_tmp_directories=True,
            # Called when all files are there and the folder has not got its name yet.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def has_step(self, step: int) -> bool:
        """Whether there is a checkpoint of the step, whole; one that is damaged is removed."""
        if step not in self._manager.all_steps():
            return False
        try:
            files.check_digests(self._folder / str(step), exclude=UNHASHED_FILES)
        except ValueError as error:
            _log.warning("checkpoint of step %d in %s is removed: %s", step, self._folder, error)
            self._manager.delete(step)
            return False
        return True

    def save(self, step: int, state: TrainState, progress: dict, config: dict) -> None:
        """Takes the arrays now, writes them while training goes on.

        Args:
          step: steps done.
          state: of `fm.training.train_state`.
          progress: JSON-able; must hold all that resuming needs beside the state.
          config: JSON-able nested dict that a resumed run must share.

        Raises:
          UserError: this one, or the one before, could not be written; those before it stay.
        """
        self.wait()
        self._saving = step
        memory = {"opt_state": state["opt_state"], "step": state["step"]}
        with self._told():
            if not self._folder.is_dir():
                raise FileNotFoundError
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state["params"]),
                    memory=ocp.args.StandardSave(memory),
                    progress=ocp.args.JsonSave(progress),
                    config=ocp.args.JsonSave(config),
                ),
            )

    def _seal(self) -> None:
        """Writes the digests into the folder of the step that is being saved."""
        (folder,) = self._folder.glob(f"{self._saving}.*")
        files.write_digests(folder, UNHASHED_FILES)

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: it could not be.
        """
        with self._told():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns a failure to write into one line."""
        try:
            yield
        # A full disk is an OSError to Python, and something else to each library on the way.
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint of step {self._saving} could not be written to {self._folder} "
                f"({error_reason(error, self._folder)}); {remaining_checkpoints_message(self._folder)}"
            ) from error

    def restore(self, like: TrainState, config: dict) -> RestoredCheckpoint | None:
        """The newest checkpoint that can be read; None when there is none.

        One that cannot be read is named in a warning and, once an older one has been read,
        removed: its steps are about to be done again.

        Args:
          like: a state of the same structure, for shapes, dtypes and devices.
          config: of this run.

        Raises:
          UserError: if it was made with another config, or none of them can be read.
        """

        def read(step: int) -> RestoredCheckpoint:
            files.check_digests(self._folder / str(step), exclude=UNHASHED_FILES)
            saved = self._manager.restore(
                step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
            )["config"]
            check_same_config(self._folder, saved, config)
            return self._read(step, like)

        restored, unreadable = newest_readable(self._folder, self._manager, read)
        for step in unreadable:
            _log.warning("checkpoint of step %d in %s is removed", step, self._folder)
            self._manager.delete(step)
        return restored

    def _read(self, step: int, like: TrainState) -> RestoredCheckpoint:
        memory = {"opt_state": like["opt_state"], "step": like["step"]}
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, (like["params"], memory))
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(shapes[0]),
                memory=ocp.args.StandardRestore(shapes[1]),
                progress=ocp.args.JsonRestore(),
            ),
        )
        state = {"params": read["params"], **read["memory"]}
        return RestoredCheckpoint(jax.tree.map(_placed_as, like, state), read["progress"])

    def close(self) -> None:
        """Waits until everything is on disk; raises as `save` does."""
        try:
            self.wait()
        finally:
            with self._told():
                self._manager.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes; what a run already ends with is not hidden by what that raises."""
        told = kind is not None and issubclass(kind, UserError)
        with contextlib.suppress(UserError) if told else contextlib.nullcontext():
            self.close()


def load_params(folder: pathlib.Path, step: int | None = None) -> tuple[dict, dict]:
    """Parameters and config of the newest checkpoint in a folder, for use in another run.

    Args:
      folder: the `checkpoints` of a run.
      step: of the checkpoint to read; the newest unless given.

    Raises:
      UserError: if the folder holds no checkpoint, or none of that step, or none that can be read.
    """
    folder = pathlib.Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of checkpoints")
    handlers = {"params": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
        # Wherever it was trained, it is wanted here.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def read(step: int) -> tuple[dict, dict]:
            files.check_digests(folder / str(step), ("params", "config"), UNHASHED_FILES)
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                dict(manager.item_metadata(step)["params"]),
            )
            saved = manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(shapes),
                    config=ocp.args.JsonRestore(),
                ),
            )
            return saved["params"], saved["config"]

        if step is not None and step not in manager.all_steps():
            raise UserError(f"{folder} holds no checkpoint of step {step}")
        found, _ = newest_readable(folder, manager, read, step)
    if found is None:
        raise UserError(f"{folder} holds no checkpoint")
    return found


def _placed_as(like: jax.Array, leaf: jax.Array) -> jax.Array:
    # Orbax pins arrays to their device, and jit compiles another program for pinned ones.
    return leaf if like.committed else jnp.array(jax.device_get(leaf))
