"""What a training run tells people: how far it is, and why it ended."""

from __future__ import annotations

import contextlib
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from tqdm import tqdm

from fm.errors import UserError
from fm.files import atomic_path
from fm.parallel import distributed
from fm.training.checkpoint import CheckpointStore
from fm.training.objectives import Batch
from fm.training.optimizer import OptimizerConfig
from fm.training.train_state import TrainState


def announce_resume(label: str, n: int, steps: int, *, finished: bool) -> None:
    """Says where a run goes on, or that it does not."""
    done = "already finished" if finished else "resumed"
    print(f"{label}: {done} at step {n} of {steps}", file=sys.stderr)


def progress_bar(label: str, first: int, steps: int) -> tqdm:
    """Of steps, on stderr."""
    # A file or a pipe gets a line now and then instead of ten a second.
    calm = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=steps,
        initial=first,
        desc=label,
        unit="step",
        mininterval=calm,
        leave=False,
        disable=not distributed.is_lead_process(),
    )


def not_finite_message(
    label: str, n: int, figures: Mapping[str, float], rule: OptimizerConfig, kept: str
) -> str:
    """What to tell of a step, or a validation after it, whose loss or gradient is not finite.

    `kept` says what is left.
    """
    names = {"loss": "loss", "grad_norm": "gradient norm"}
    told = " and ".join(f"{names[key]} {figures[key]:g}" for key in names if key in figures)
    return (
        f"{label}: {told}{_diverged(figures)} at step {n} must be finite; {kept}; try a "
        f"learning_rate below {rule.learning_rate:g}"
    )


def _diverged(figures: Mapping[str, float]) -> str:
    """Which of several formats it is, as far as that can be told: by loss, else by gradient."""
    broken = [name for name, figure in figures.items() if not math.isfinite(figure)]
    groups = [name.removesuffix("/loss") for name in broken if name.endswith("/loss")]
    streams = [name.removeprefix("grad_norm/") for name in broken if name.startswith("grad_norm/")]
    return f", of {', '.join(groups or streams)}," if groups or streams else ""


def interrupted_message(
    label: str, signal: str, n: int, steps: int, out: pathlib.Path | None
) -> str:
    """What to tell of a run stopped by a signal."""
    if out is None:
        return f"{label}: stopped by {signal} at step {n} of {steps}; nothing was saved"
    return f"{label}: stopped by {signal}, step {n} of {steps} is saved; the same command resumes"


def save_bad_batch(batch: Batch, folder: pathlib.Path, n: int) -> str:
    """Writes the batch of step `n` into the folder, and says where it is or why it is not.

    The file is NumPy's, without pickles: an array for each of the batch's, with the name of the
    group in front where there are several, as `image/segments`.
    """
    path = folder / f"not-finite-step-{n}.npz"
    arrays = {
        "/".join(key.key for key in place): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        return f"its batch could not be kept ({error.strerror or error})"
    return f"its batch is in {path}"


_FAILURES = (UserError, OSError, MemoryError, jax.errors.JaxRuntimeError)
_SMALLER = "make batch_size or the model smaller, or take a machine with more"


@contextlib.contextmanager
def save_on_failure(label: str, n: int, save: Callable[[], str]) -> Iterator[None]:
    """Turns what goes wrong inside, while step `n` is taken, into one line, once `save` has run.

    Data that stall, end or cannot be read, and memory that runs out, are such things.

    Args:
      label: in front of the line.
      n: the step.
      save: saves the steps before it, and says what is kept.

    Raises:
      UserError: says what went wrong and what is kept.
    """
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not is_out_of_memory(error):
            raise
        try:
            kept = save()
        except _FAILURES as failed:
            kept = f"step {n - 1} could not be saved ({first_line(failed)})"
        raise UserError(f"{label}: {_told(error, n)}; {kept}{_advice(error)}") from error


@contextlib.contextmanager
def report_out_of_memory(label: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turns memory that runs out inside into one line.

    Raises:
      UserError: it did; says what `kept` says.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{label}: out of memory ({first_line(error)}); {kept()}{_advice(error)}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, of the host's memory or a device's."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or what kind it is."""
    nothing = "no more from this machine" if isinstance(error, MemoryError) else ""
    return (str(error).strip().splitlines() or [nothing or type(error).__name__])[0]


def save_last_state(
    store: CheckpointStore | None,
    state: TrainState,
    done: int,
    settle: Callable[[], None],
    save: Callable[[], None],
) -> str:
    """Saves a run's last state, for `keeping`, where the next step could not be taken.

    Args:
      store: of checkpoints.
      state: after `done` steps, unless the step that failed has consumed it.
      done: steps.
      settle: reads the metrics of the last of them.
      save: gives the state to `store`.

    Returns:
      What to tell of it.
    """
    if store is None:
        return "nothing was saved"
    if done == 0 or not _alive(state):
        return latest_checkpoint_message(store)
    settle()
    if store.latest_step() != done:
        save()
    store.wait()
    return f"step {done} is saved, and the same command goes on from there"


def _alive(state: TrainState) -> bool:
    """Whether no array of a state has been given to a step, which then failed."""
    leaves = jax.tree.leaves(state)
    return not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


def latest_checkpoint_message(store: CheckpointStore | None) -> str:
    """What to tell of the checkpoints a run has."""
    step = store.latest_step() if store else None
    return f"the checkpoint of step {step} is kept" if step else "there is no checkpoint yet"


def _told(error: BaseException, n: int) -> str:
    if is_out_of_memory(error):
        return f"out of memory at step {n} ({first_line(error)})"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"no batch for step {n} ({where}{error.strerror or first_line(error)})"
    return first_line(error)


def _advice(error: BaseException) -> str:
    return f"; {_SMALLER}" if is_out_of_memory(error) else ""
