"""A run that cannot take its next step: one line, and the state of the last one kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from fm.errors import UserError
from fm.training.checkpoint import Checkpoints
from fm.training.state import State

_FAILURES = (UserError, OSError, MemoryError, jax.errors.JaxRuntimeError)
_SMALLER = "make batch_size or the model smaller, or take a machine with more"


@contextlib.contextmanager
def keeping(label: str, n: int, save: Callable[[], str]) -> Iterator[None]:
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
        if isinstance(error, jax.errors.JaxRuntimeError) and not out_of_memory(error):
            raise
        try:
            kept = save()
        except _FAILURES as failed:
            kept = f"step {n - 1} could not be saved ({first_line(failed)})"
        raise UserError(f"{label}: {_told(error, n)}; {kept}{_advice(error)}") from error


@contextlib.contextmanager
def told_if_out_of_memory(label: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turns memory that runs out inside into one line.

    Raises:
      UserError: it did; says what `kept` says.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"{label}: out of memory ({first_line(error)}); {kept()}{_advice(error)}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, of the host's memory or a device's."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or what kind it is."""
    nothing = "no more from this machine" if isinstance(error, MemoryError) else ""
    return (str(error).strip().splitlines() or [nothing or type(error).__name__])[0]


def rescued(
    store: Checkpoints | None,
    state: State,
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
        return held(store)
    settle()
    if store.latest() != done:
        save()
    store.wait()
    return f"step {done} is saved, and the same command goes on from there"


def _alive(state: State) -> bool:
    """Whether no array of a state has been given to a step, which then failed."""
    leaves = jax.tree.leaves(state)
    return not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


def held(store: Checkpoints | None) -> str:
    """What to tell of the checkpoints a run has."""
    step = store.latest() if store else None
    return f"the checkpoint of step {step} is kept" if step else "there is no checkpoint yet"


def _told(error: BaseException, n: int) -> str:
    if out_of_memory(error):
        return f"out of memory at step {n} ({first_line(error)})"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"no batch for step {n} ({where}{error.strerror or first_line(error)})"
    return first_line(error)


def _advice(error: BaseException) -> str:
    return f"; {_SMALLER}" if out_of_memory(error) else ""
