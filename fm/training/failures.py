"""Handling of failures in training: one-line error messages, saving of the last good state."""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from fm.errors import UserError
from fm.files import atomic_path
from fm.training.checkpoint import CheckpointStore
from fm.training.objectives import Batch
from fm.training.optimizer import OptimizerConfig

_FAILURES = (UserError, OSError, MemoryError, jax.errors.JaxRuntimeError)
_MEMORY_ADVICE = "; make batch_size or the model smaller, or use a machine with more memory"


class NotFiniteError(UserError):
    """Raised when the loss or the gradient norm of a run is NaN or infinite."""


@contextlib.contextmanager
def save_on_failure(run_name: str, step: int, save: Callable[[], str]) -> Iterator[None]:
    """Context manager that, if a training step fails, calls `save` and raises a UserError instead.

    Caught are data that stall, end or cannot be read, and memory that runs out.

    Args:
      run_name: prefix of the message.
      step: the step taken inside the block.
      save: saves the steps before it and returns what to tell about it.

    Raises:
      UserError: says what failed and what was saved.
    """
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not is_out_of_memory(error):
            raise
        try:
            saved = save()
        except _FAILURES as save_error:
            saved = f"step {step - 1} could not be saved ({first_line(save_error)})"
        message = f"{run_name}: {_describe(error, step)}; {saved}{_advice(error)}"
        raise UserError(message) from error


@contextlib.contextmanager
def report_out_of_memory(run_name: str, saved: Callable[[], str]) -> Iterator[None]:
    """Runs the block; raises a one-line UserError if it runs out of host or device memory.

    Raises:
      UserError: memory ran out; ends with what `saved` returns.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{run_name}: out of memory ({first_line(error)}); {saved()}{_advice(error)}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception of Python, JAX or PyTorch means that memory ran out."""
    line = first_line(error)
    return (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in line
        or (isinstance(error, RuntimeError) and "out of memory" in line)
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type's name if it has none."""
    nothing = "no more from this machine" if isinstance(error, MemoryError) else ""
    return (str(error).strip().splitlines() or [nothing or type(error).__name__])[0]


def save_bad_batch(batch: Batch, folder: pathlib.Path, step: int) -> str:
    """Writes a failed step's batch to an .npz file; returns a clause for the error message.

    The file is `not-finite-step-N.npz` without pickles, one array for each of the batch, named
    `GROUP/NAME` in a multitask batch.
    """
    path = folder / f"not-finite-step-{step}.npz"
    arrays = {
        "/".join(key.key for key in key_path): np.asarray(leaf)
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        return f"its batch could not be saved ({error.strerror or error})"
    return f"its batch is in {path}"


def latest_checkpoint_message(store: CheckpointStore | None) -> str:
    """Returns a sentence that names the step of a run's latest checkpoint, if any."""
    step = store.latest_step() if store else None
    return f"the checkpoint of step {step} is kept" if step else "there is no checkpoint yet"


def not_finite_message(
    run_name: str,
    step: int,
    metrics: Mapping[str, float],
    optimizer_config: OptimizerConfig,
    saved: str,
) -> str:
    """Returns the error message for a loss or gradient norm that is NaN or infinite at `step`."""
    names = {"loss": "loss", "grad_norm": "gradient norm"}
    values = " and ".join(f"{names[key]} {metrics[key]:g}" for key in names if key in metrics)
    return (
        f"{run_name}: {values}{_diverged_groups(metrics)} at step {step} must be finite; {saved}; "
        f"try a learning_rate below {optimizer_config.learning_rate:g}"
    )


def interrupted_message(
    run_name: str, signal: str, step: int, steps: int, out_dir: pathlib.Path | None
) -> str:
    """Returns the message for a run stopped by a signal: its last step and how to resume."""
    stopped = f"{run_name}: stopped by {signal}"
    if out_dir is None:
        return f"{stopped} at step {step} of {steps}; nothing was saved"
    return f"{stopped}, step {step} of {steps} is saved; the same command resumes"


def _diverged_groups(metrics: Mapping[str, float]) -> str:
    """Names the groups whose loss is not finite, else the modalities whose gradient is not."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    groups = [name.removesuffix("/loss") for name in bad if name.endswith("/loss")]
    modalities = [name.removeprefix("grad_norm/") for name in bad if name.startswith("grad_norm/")]
    names = ", ".join(groups or modalities)
    return f" (of {names})" if names else ""


def _describe(error: BaseException, step: int) -> str:
    if is_out_of_memory(error):
        return f"out of memory at step {step} ({first_line(error)})"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"no batch for step {step} ({where}{error.strerror or first_line(error)})"
    return first_line(error)


def _advice(error: BaseException) -> str:
    return _MEMORY_ADVICE if is_out_of_memory(error) else ""
