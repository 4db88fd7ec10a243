"""Checkpoints through Orbax: arrays and JSON, never code, so that reading one runs nothing.

A step's folder holds `params` and `memory` (the optimiser's state and the step) as arrays, and
`progress` (data position, counters) and `config` as JSON. Orbax writes on a thread of its own,
marks a folder whole only when it is, and removes what a killed run left half-written.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fm.errors import UserError
from fm.training.state import State

T = TypeVar("T")

_log = logging.getLogger(__name__)
# Orbax and its threads report every step of theirs.
logging.getLogger("absl").setLevel(logging.ERROR)


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
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, progress: dict, config: dict) -> None:
        """Takes the arrays now, writes them while training goes on.

        Args:
          step: steps done.
          state: of `fm.training.state`.
          progress: JSON-able; must hold all that resuming needs beside the state.
          config: JSON-able nested dict that a resumed run must share.
        """
        memory = {"opt_state": state["opt_state"], "step": state["step"]}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state["params"]),
                memory=ocp.args.StandardSave(memory),
                progress=ocp.args.JsonSave(progress),
                config=ocp.args.JsonSave(config),
            ),
        )

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
            saved = self._manager.restore(
                step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
            )["config"]
            if differences(saved, config):
                raise UserError(_mismatch(self._folder, saved, config))
            return self._read(step, like)

        restored, unreadable = _newest_readable(self._folder, self._manager, read)
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
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


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
        found, _ = _newest_readable(folder, manager, read, step)
    if found is None:
        raise UserError(f"{folder} holds no checkpoint")
    return found


def _placed_as(like: jax.Array, leaf: jax.Array) -> jax.Array:
    # Orbax pins arrays to their device, and jit compiles another program for pinned ones.
    return leaf if like.committed else jnp.array(jax.device_get(leaf))


def _newest_readable(
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
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            _log.warning("checkpoint of step %d in %s is unreadable: %s", step, folder, reason)
            unreadable.append(step)
    if unreadable:
        raise UserError(
            f"no checkpoint in {folder} can be read (steps {unreadable}); delete the folder to "
            "start anew, or give another one"
        )
    return None, []


def differences(saved: dict, now: dict) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, by dotted name: (saved, now); "absent" where there is none."""
    left, right = _flat(saved), _flat(json.loads(json.dumps(now)))
    return {
        name: (left.get(name, "absent"), right.get(name, "absent"))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, "absent") != right.get(name, "absent")
    }


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _mismatch(folder: pathlib.Path, saved: dict, now: dict) -> str:
    fields = ", ".join(
        f"{name}={was!r} (now {value!r})" for name, (was, value) in differences(saved, now).items()
    )
    return f"{folder} holds a run with {fields}; take those values, or another folder"
