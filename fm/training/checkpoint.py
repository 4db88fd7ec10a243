"""Checkpoints through Orbax: arrays and JSON, never code, so that reading one runs nothing.

A step's folder holds `params` and `memory` (the optimiser's state and the step) as arrays, and
`progress` (data position, counters) and `config` as JSON, and the digests of all their files.
Orbax writes on a thread of its own, gives a folder its name only when it is whole, and removes
what a killed run left half-written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fm import digests
from fm.errors import UserError
from fm.training.configs import must_agree
from fm.training.readable import left_in, newest_readable, reason
from fm.training.state import State

_log = logging.getLogger(__name__)
# Orbax's own, of times and handlers, written after the digests; what is in them is not used.
UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Orbax and its threads report every step of theirs, and what they raise besides raising it.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back.

    Attributes:
      state: of `fm.training.state`.
      progress: the JSON saved beside it.
    """

    state: State
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: pathlib.Path, *, keep: int = 2, keep_every: int | None = None):
        """Opens or makes `folder`; the last `keep` stay, and those at multiples of `keep_every`."""
        self._folder = pathlib.Path(folder).resolve()
        self._saving = 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every,
            cleanup_tmp_directories=True,
            # Called when all files are there and the folder has not got its name yet.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of the step, whole; one that is damaged is removed."""
        if step not in self._manager.all_steps():
            return False
        try:
            digests.check(self._folder / str(step), but=UNSEALED)
        except ValueError as error:
            _log.warning("checkpoint of step %d in %s is removed: %s", step, self._folder, error)
            self._manager.delete(step)
            return False
        return True

    def save(self, step: int, state: State, progress: dict, config: dict) -> None:
        """Takes the arrays now, writes them while training goes on.

        Args:
          step: steps done.
          state: of `fm.training.state`.
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
        digests.write(folder, UNSEALED)

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
                f"({reason(error, self._folder)}); {left_in(self._folder)}"
            ) from error

    def restore(self, like: State, config: dict) -> Restored | None:
        """The newest checkpoint that can be read; None when there is none.

        One that cannot be read is named in a warning and, once an older one has been read,
        removed: its steps are about to be done again.

        Args:
          like: a state of the same structure, for shapes, dtypes and devices.
          config: of this run.

        Raises:
          UserError: if it was made with another config, or none of them can be read.
        """

        def read(step: int) -> Restored:
            digests.check(self._folder / str(step), but=UNSEALED)
            saved = self._manager.restore(
                step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
            )["config"]
            must_agree(self._folder, saved, config)
            return self._read(step, like)

        restored, unreadable = newest_readable(self._folder, self._manager, read)
        for step in unreadable:
            _log.warning("checkpoint of step %d in %s is removed", step, self._folder)
            self._manager.delete(step)
        return restored

    def _read(self, step: int, like: State) -> Restored:
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
        return Restored(jax.tree.map(_placed_as, like, state), read["progress"])

    def close(self) -> None:
        """Waits until everything is on disk; raises as `save` does."""
        try:
            self.wait()
        finally:
            with self._told():
                self._manager.close()

    def __enter__(self) -> Checkpoints:
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
            digests.check(folder / str(step), ("params", "config"), UNSEALED)
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
