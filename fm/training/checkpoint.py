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
from typing import Any

import jax
import orbax.checkpoint as ocp

from fm.errors import UserError
from fm.training.state import State

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

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        """Opens or makes `folder`, of which the last `keep` checkpoints stay."""
        self._folder = pathlib.Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
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
        unreadable = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = self._manager.restore(
                    step,
                    args=ocp.args.Composite(config=ocp.args.JsonRestore()),
                )["config"]
                if differences(saved, config):
                    raise UserError(_mismatch(self._folder, saved, config))
                restored = self._read(step, like)
            except UserError:
                raise
            # A torn file surfaces as whatever its reader happens to stumble over.
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                _log.warning("checkpoint %s of step %d unreadable: %s", self._folder, step, reason)
                unreadable.append(step)
                continue
            for bad in unreadable:
                _log.warning("going back to step %d; step %d is removed", step, bad)
                self._manager.delete(bad)
            return restored
        if unreadable:
            raise UserError(
                f"no checkpoint in {self._folder} can be read (steps {unreadable}); delete the "
                "folder to start anew, or give another one"
            )
        return None

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
        return Restored({"params": read["params"], **read["memory"]}, read["progress"])

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_params(folder: pathlib.Path) -> tuple[dict, dict]:
    """Parameters and config of the newest checkpoint in a folder, for use in another run.

    Raises:
      UserError: if the folder holds no checkpoint.
    """
    folder = pathlib.Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of checkpoints")
    with ocp.CheckpointManager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder} holds no checkpoint")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            dict(manager.item_metadata(step)["params"]),
        )
        read = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(shapes),
                config=ocp.args.JsonRestore(),
            ),
        )
    return read["params"], read["config"]


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
