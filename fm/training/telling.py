"""What a training run tells people: how far it is, and why it ended."""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Mapping

from tqdm import tqdm

from fm.training import processes
from fm.training.optimizer import OptimizerConfig


def announce(label: str, n: int, steps: int, *, finished: bool) -> None:
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
        disable=not processes.first(),
    )


def not_finite(
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


def how_to_resume(label: str, signal: str, n: int, steps: int, out: pathlib.Path | None) -> str:
    """What to tell of a run stopped by a signal."""
    if out is None:
        return f"{label}: stopped by {signal} at step {n} of {steps}; nothing was saved"
    return f"{label}: stopped by {signal}, step {n} of {steps} is saved; the same command resumes"
