"""What arms cost in compute, and after how many tasks pretraining has paid for itself.

A FLOP spent on pretraining is shared by every task that adapts the same model; a distinct
network per task pays no such sum but trains longer for the same quality. The fair rival is
therefore a network trained from scratch **until it is as good**: on as many labels as the
label multiplier asks for. Where no measured number of labels gets it there, there is no rival
to price, and the row says so instead of showing a number.

Only arithmetic is charged. The extra labels that scratch needs cost people's time, which is not
counted here; the label multiplier itself is the figure to read for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fm.evaluation.label_efficiency import LabelEfficiency

# Break-even is searched up to this number of tasks.
MAX_TASKS = 1000
# A saving per task below this fraction of its cost is a rounding error of interpolated budgets.
_LEAST_SAVING = 1e-6


@dataclasses.dataclass(frozen=True)
class ComputeCost:
    """Compute cost of an arm on a task: FLOPs, seconds and the break-even number of tasks.

    Attributes:
      task: name of the task.
      arm: name of the arm.
      pretrain_flops: FLOPs of one pretraining run, spent before any label was seen; shared
        between tasks; None where others spent them.
      pretrain_cpu_seconds: CPU time of the process of the same; None where others spent it.
      adapt_flops: FLOPs of adapting to this task, tuning trials included if they were charged.
      adapt_cpu_seconds: CPU time of the process of the same, predictions included, without
        compilation and the features of a frozen model.
      break_even_tasks: number of such tasks from which on one shared model costs less than
        distinct networks of the same quality, in FLOPs; None when there is no such number.
      note: why there is none, or on what condition it holds; empty when nothing needs saying.
    """

    task: str
    arm: str
    pretrain_flops: float | None
    pretrain_cpu_seconds: float | None
    adapt_flops: float
    adapt_cpu_seconds: float
    break_even_tasks: int | None = None
    note: str = ""


def compute_cost(
    task: str,
    arm: str,
    *,
    pretrain_flops: float | None,
    pretrain_cpu_seconds: float | None,
    adapt_flops: float,
    adapt_cpu_seconds: float,
    scratch_cost: tuple[float | None, str],
) -> ComputeCost:
    """Returns FLOPs and seconds of an arm on a task, and its break-even number of tasks.

    Args:
      task: name of the task.
      arm: name of the arm.
      pretrain_flops: of pretraining; None if unknown.
      pretrain_cpu_seconds: of pretraining; None if unknown.
      adapt_flops: of adaptation to the task.
      adapt_cpu_seconds: of adaptation to the task.
      scratch_cost: FLOPs that scratch needs for the same quality (None if unknown), and a note.
    """
    flops, note = scratch_cost
    tasks = None
    if flops is not None and pretrain_flops is not None:
        tasks = break_even_tasks(pretrain_flops, adapt_flops, flops)
        if tasks is None:
            costlier = "adapting costs no less per task than scratch of the same quality"
            note = f"{note}; {costlier}" if note else costlier
    return ComputeCost(
        task, arm, pretrain_flops, pretrain_cpu_seconds, adapt_flops, adapt_cpu_seconds, tasks, note
    )


def break_even_tasks(
    pretrain_flops: float, shared_flops_per_task: float, scratch_flops_per_task: float
) -> int | None:
    """Returns the least number of tasks at which pretraining costs fewer FLOPs; None if never.

    Savings of less than a millionth per task are none.

    Raises:
      ValueError: a cost that is negative or not finite.
    """
    costs = (pretrain_flops, shared_flops_per_task, scratch_flops_per_task)
    if not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise ValueError(f"costs must be finite and not negative, got {costs}")
    saved_per_task = scratch_flops_per_task - shared_flops_per_task
    if saved_per_task <= _LEAST_SAVING * scratch_flops_per_task:
        return None
    return int(pretrain_flops // saved_per_task) + 1


def matching_scratch_flops(
    budgets_B: np.ndarray, scratch_flops_B: np.ndarray, num_labels: int, efficiency: LabelEfficiency
) -> tuple[float | None, str]:
    """Returns FLOPs (or None) for from-scratch training to match an arm's quality, and a note.

    The scratch cost at ``label_multiplier * num_labels``, interpolated between the measured
    budgets as a power of the number of labels. Beyond the measured range nothing is known and the
    cost is None. It is None too for an arm that scratch equals with fewer labels than the arm had:
    such an arm saves nothing that could pay its pretraining back.

    Args:
      budgets_B: [B] rising label budgets of the scratch curve.
      scratch_flops_B: [B] training FLOPs of one scratch run at each.
      num_labels: the arm's own budget.
      efficiency: what `label_multiplier` returned for the arm at `num_labels`.
    """
    budgets_B = np.asarray(budgets_B, float)
    if efficiency.censored == "above":
        return None, f"scratch never reached this quality, up to {budgets_B[-1]:g} labels"
    if efficiency.censored == "below":
        return None, f"scratch does better on {budgets_B[0]:g} labels already"
    needed = efficiency.label_multiplier * num_labels
    if needed < num_labels * (1 - _LEAST_SAVING):
        return None, f"scratch is as good with {needed:.0f} labels"
    if efficiency.low is None or efficiency.low <= 1:
        return None, "the interval of the label multiplier does not lie above 1"
    flops = np.exp(np.interp(np.log(needed), np.log(budgets_B), np.log(scratch_flops_B)))
    return float(flops), ""


@dataclasses.dataclass(frozen=True)
class CostItem:
    """One cost in several units, and a function from number of tasks to the fraction they pay.

    Attributes:
      costs: by unit; None where it was not recorded.
      share: fraction of it that K tasks pay; more than 1 where they need it again.
    """

    costs: Mapping[str, float | None]
    share: Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """Numbers of tasks at which one total cost is below another: from `first` on, or up to `last`.

    Attributes:
      first: the number from which on it is, up to `MAX_TASKS`; None if it is not in the end.
      last: in that case the largest number at which it is; None if there is none.
    """

    first: int | None
    last: int | None = None


def per_task_share(tasks: int) -> Callable[[int], float]:
    """Returns a function from k to k / tasks: the fraction of all tasks' cost that k tasks pay."""
    return lambda count: count / tasks


def shared_cost_probability(users: int, tasks: int) -> Callable[[int], float]:
    """Returns k -> the chance that k of `tasks` tasks include one of the `users` of a cost."""
    others = tasks - users

    def share(count: int) -> float:
        return 1.0 - (math.comb(others, count) / math.comb(tasks, count) if count <= others else 0)

    return share


def joint_tuning_step_fraction(
    steps: int, epochs: float, batch_size: int, num_labels: int, tasks: int
) -> Callable[[int], float]:
    """Returns a function of k: joint tuning steps on k tasks, as a fraction of those on all.

    Args:
      steps: at least.
      epochs: over the labels, at least.
      batch_size: of an update.
      num_labels: of each task.
      tasks: whose tuning is charged in full.
    """

    def updates(count: int) -> int:
        return max(steps, math.ceil(epochs * num_labels * count / batch_size))

    return lambda count: updates(count) / updates(tasks)


def amortized_cost(items: Sequence[CostItem], unit: str, num_tasks: int) -> float | None:
    """Returns the expected total cost of `num_tasks` random tasks; None if a part is unknown.

    More tasks than there are stand for further tasks like these.
    """
    parts = [(item.costs[unit], item.share(num_tasks)) for item in items if unit in item.costs]
    if any(cost is None for cost, _ in parts):
        return None
    return math.fsum(cost * share for cost, share in parts if cost is not None)


def break_even(items: Sequence[CostItem], others: Sequence[CostItem], unit: str) -> BreakEven:
    """Returns the least number of tasks from which on `items` cost less than `others`, if any."""
    costs = [
        (amortized_cost(items, unit, k), amortized_cost(others, unit, k))
        for k in range(1, MAX_TASKS + 1)
    ]
    lower = [a is not None and b is not None and a < b for a, b in costs]
    if not lower[-1]:
        return BreakEven(None, max((k for k, yes in enumerate(lower, 1) if yes), default=None))
    return BreakEven(1 + max((k for k, yes in enumerate(lower, 1) if not yes), default=0))
