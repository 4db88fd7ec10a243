"""What each arm cost, and after how many tasks pretraining has paid for itself.

A FLOP spent on pretraining is shared by every task that adapts the same model; a distinct
network per task pays no such sum but trains longer for the same quality. The fair rival is
therefore a network trained from scratch **until it is as good**: on as many labels as the
label multiplier asks for. Where no measured amount of labels gets it there, there is no rival
to price, and the row says so instead of showing a number.

Only arithmetic is charged. The extra labels that scratch needs cost people's time, which is not
in this ledger; the label multiplier itself is the figure to read for that.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fm.evaluation.label_efficiency import Equivalent


@dataclasses.dataclass(frozen=True)
class LedgerRow:
    """The bill of one arm on one task.

    Attributes:
      task: name of the task.
      arm: name of the arm.
      pretrain_flops: FLOPs spent before any label was seen; shared between tasks; None where
        others spent them.
      pretrain_seconds: wall time of the same.
      adapt_flops: FLOPs of adapting to this task, tuning trials included if they were charged.
      adapt_seconds: wall time of the same.
      break_even_tasks: number of such tasks from which on one shared model costs less than
        distinct networks of the same quality, in FLOPs; None when there is no such number.
      note: why there is none, or on what condition it holds; empty when nothing needs saying.
    """

    task: str
    arm: str
    pretrain_flops: float | None
    pretrain_seconds: float | None
    adapt_flops: float
    adapt_seconds: float
    break_even_tasks: int | None = None
    note: str = ""


def break_even_tasks(
    pretrain_flops: float, shared_flops_per_task: float, distinct_flops_per_task: float
) -> int | None:
    """Smallest K such that pretrain + K * shared < K * distinct; None when no K is enough.

    Raises:
      ValueError: a cost that is negative or not finite.
    """
    costs = (pretrain_flops, shared_flops_per_task, distinct_flops_per_task)
    if not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise ValueError(f"costs must be finite and not negative, got {costs}")
    saved_per_task = distinct_flops_per_task - shared_flops_per_task
    if saved_per_task <= 0:
        return None
    return int(pretrain_flops // saved_per_task) + 1


def distinct_flops(
    budgets_B: np.ndarray, scratch_flops_B: np.ndarray, labels: int, equivalent: Equivalent
) -> tuple[float | None, str]:
    """FLOPs of training from scratch to the quality an arm reached at `labels`, and a note.

    The scratch cost at ``label_multiplier * labels``, interpolated between the measured budgets
    as a power of the number of labels. Below the measured range the cost at the smallest budget
    stands in, an upper bound; above it nothing is known and the cost is None.

    Args:
      budgets_B: [B] rising label budgets of the scratch curve.
      scratch_flops_B: [B] training FLOPs of one scratch run at each.
      labels: the arm's own budget.
      equivalent: what `label_multiplier` returned for the arm at `labels`.
    """
    budgets_B = np.asarray(budgets_B, float)
    if equivalent.beyond == "above":
        return None, f"scratch never reached this quality, up to {budgets_B[-1]:g} labels"
    needed = equivalent.label_multiplier * labels
    flops = np.exp(np.interp(np.log(needed), np.log(budgets_B), np.log(scratch_flops_B)))
    if equivalent.beyond == "below":
        return float(flops), f"scratch does better on {budgets_B[0]:g} labels already"
    return float(flops), ""


def ledger_row(
    task: str,
    arm: str,
    *,
    pretrain_flops: float | None,
    pretrain_seconds: float | None,
    adapt_flops: float,
    adapt_seconds: float,
    distinct: tuple[float | None, str],
) -> LedgerRow:
    """The row of one arm, its break-even worked out against `distinct_flops`' answer."""
    flops, note = distinct
    tasks = None
    if flops is not None and pretrain_flops is not None:
        tasks = break_even_tasks(pretrain_flops, adapt_flops, flops)
        if tasks is None:
            costlier = "adapting costs no less per task than scratch of the same quality"
            note = f"{note}; {costlier}" if note else costlier
    return LedgerRow(
        task, arm, pretrain_flops, pretrain_seconds, adapt_flops, adapt_seconds, tasks, note
    )
