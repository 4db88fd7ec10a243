"""What K tasks cost with one model or with a network each, and from which K one is cheaper."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy.optimize import isotonic_regression

from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.methods import METHODS
from fm.evaluation.cost import (
    CostItem,
    amortized_cost,
    break_even,
    joint_tuning_step_fraction,
    per_task_share,
    shared_cost_probability,
)
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study.adaptation import Arm, ModelArm
from fm.study.arms import ARMS, arm_spec
from fm.study.multitask_instructions import InstructionTunedArm
from fm.study.task import Task

Row = dict[str, Any]
UNITS = ("flops", "cpu_seconds", "parameters")
# Modality-specific parameters: embedding, and what predicts tokens or patches.
_PARTS = ("embedding", "head", "bias")


class CostCalculator:
    """Computes amortized costs and break-even task counts of neural arms from study results.

    Args:
      sections: cells, compute_cost, tasks and sizes.
      instruction_tuning: of the arms that share one tuned model.
    """

    def __init__(self, sections: dict[str, Any], instruction_tuning: FinetuneConfig):
        self.sections, self.instruction_tuning = sections, instruction_tuning
        cells = sections["cells"]
        present = {cell["arm"] for cell in cells}
        self.arms = [arm for arm in ARMS if arm in present and ARMS[arm].cost.is_network]
        self.budgets = sorted({cell["num_labels"] for cell in cells})
        self.tasks = [task["name"] for task in sections["tasks"]]
        self.modalities = {task["name"]: task["modality"] for task in sections["tasks"]}
        self.sizes = {row["task"]: row for row in sections.get("sizes", [])}
        self.cells = _mean_cells(cells)

    def amortized_cost_rows(self) -> list[Row]:
        """Returns the cost of 1 to all tasks by arm and label budget."""
        rows = []
        for arm in self.arms:
            for num_labels in self.budgets:
                items = self.cost_items(arm, {task: num_labels for task in self.tasks})
                rows += [
                    {"arm": arm, "num_labels": num_labels, "num_tasks": count}
                    | {unit: amortized_cost(items, unit, count) for unit in UNITS}
                    for count in range(1, len(self.tasks) + 1)
                ]
        return rows

    def break_even_rows(self) -> list[Row]:
        """Returns from how many tasks on each arm is cheaper than another at equal quality.

        Equal quality of a task is what the better of the two reaches with the fewest labels: each
        pays for the smallest budget that reaches it, on its learning curve made non-decreasing by
        isotonic regression. A task on which one of the two never does is left out for both, and
        listed under `never`.
        """
        pairs = [(a, b) for n, b in enumerate(self.arms) for a in self.arms[n + 1 :]]
        rows = []
        for pair in pairs:
            reached = {task: self.equal_quality_budgets(task, *pair) for task in self.tasks}
            never = [
                {"task": task, "arm": arm}
                for task, budgets in reached.items()
                for arm in pair
                if budgets[arm] is None
            ]
            both = [task for task in self.tasks if None not in reached[task].values()]
            items = [
                self.cost_items(arm, {task: reached[task][arm] or 0 for task in both})
                for arm in pair
            ]
            row = {"arm": pair[0], "baseline": pair[1], "tasks": both, "never": never}
            for unit in UNITS:
                found = break_even(items[0], items[1], unit) if both else None
                row[unit] = found.first if found else None
                row[f"{unit}_until"] = found.last if found else None
            rows.append(row)
        return rows

    def equal_quality_budgets(self, task: str, arm: str, baseline: str) -> dict[str, int | None]:
        """Returns each arm's smallest budget with the better one's quality at its first budget."""
        curves = {each: self._learning_curve(task, each) for each in (arm, baseline)}
        goal = max(values[0] for values in curves.values())
        return {
            each: next(
                (
                    budget
                    for budget, value in zip(self.budgets, values, strict=True)
                    if value >= goal - 1e-12
                ),
                None,
            )
            for each, values in curves.items()
        }

    def cost_items(self, arm: str, budgets: Mapping[str, int]) -> list[CostItem]:
        """Returns the costs of solving tasks with an arm, each with its number of labels.

        A model that is shared by all tasks is tuned once, with the largest of the budgets.
        Otherwise a fresh network and a fine-tuned one are kept for every task; a frozen network is
        kept once for the tasks that share it, and a head for each.
        """
        count, policy = len(budgets), arm_spec(arm).cost
        if not count:
            return []
        items = self._pretraining_items(arm, list(budgets))
        shared_size = self.sizes.get(None, {}).get("network")
        if policy.tuning == "shared":
            num_labels, config = max(budgets.values()), self.instruction_tuning
            cells = [self.cells[task, arm, num_labels] for task in budgets]
            # Each cell has its share of tuning on all tasks of the study.
            flops = float(np.mean([cell["train_flops"] for cell in cells]) * len(self.tasks))
            share = joint_tuning_step_fraction(
                config.min_steps,
                config.min_epochs,
                config.batch_size,
                num_labels=num_labels,
                tasks=len(self.tasks),
            )
            items.append(CostItem({"flops": flops}, share))
            items += [
                CostItem({"cpu_seconds": cell["cpu_seconds"]}, per_task_share(count))
                for cell in cells
            ]
            return [
                *items,
                CostItem({"parameters": shared_size}, shared_cost_probability(count, count)),
            ]
        users_of_frozen: dict[str, list[str]] = {}
        for task, num_labels in budgets.items():
            cell, size = self.cells[task, arm, num_labels], self.sizes.get(task)
            method, parameters = cell["method"], None
            if size and method in size["heads"]:
                parameters = size["heads"][method]
                frozen = method in METHODS and not METHODS[method].updates_model
                if frozen and policy.pretraining != "none":
                    users_of_frozen.setdefault(self._corpus(arm, task), []).append(task)
                else:
                    parameters += size["network"]
            costs = {
                "flops": cell["train_flops"],
                "cpu_seconds": cell["cpu_seconds"],
                "parameters": parameters,
            }
            items.append(CostItem(costs, per_task_share(count)))
        for users in users_of_frozen.values():
            per_modality = policy.pretraining == "per_modality"
            size = self.sizes[users[0]]["network"] if per_modality else shared_size
            items.append(CostItem({"parameters": size}, shared_cost_probability(len(users), count)))
        return items

    def _pretraining_items(self, arm: str, tasks: list[str]) -> list[CostItem]:
        """Returns the cost of each pretraining run that the tasks use."""
        users: dict[str, int] = {}
        last_row: dict[str, Row] = {}
        for row in self.sections["compute_cost"]:
            if row["arm"] == arm and row["task"] in tasks and row["pretrain_flops"]:
                corpus = self._corpus(arm, row["task"])
                users[corpus] = users.get(corpus, 0) + 1
                last_row[corpus] = row
        return [
            CostItem(
                {"flops": row["pretrain_flops"], "cpu_seconds": row["pretrain_cpu_seconds"]},
                shared_cost_probability(users[corpus], len(tasks)),
            )
            for corpus, row in last_row.items()
        ]

    def _corpus(self, arm: str, task: str) -> str:
        per_modality = arm_spec(arm).cost.pretraining == "per_modality"
        return self.modalities[task] if per_modality else "all"

    def _learning_curve(self, task: str, arm: str) -> list[float]:
        """Returns the mean over seeds at every budget, made non-decreasing."""
        values: dict[int, list[float]] = {}
        for cell in self.sections["cells"]:
            if (cell["task"], cell["arm"]) == (task, arm):
                values.setdefault(cell["num_labels"], []).append(cell["value"])
        means = [float(np.mean(values[num_labels])) for num_labels in sorted(values)]
        return isotonic_regression(means).x.tolist()


def _mean_cells(rows: Sequence[Row]) -> dict[tuple[str, str, int], Row]:
    """Returns mean costs over seeds and the method most seeds chose, by (task, arm, labels)."""
    grouped: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row["task"], row["arm"], row["num_labels"]), []).append(row)
    return {
        key: {
            "train_flops": float(np.mean([row["train_flops"] for row in own])),
            "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in own])),
            "method": statistics.mode(row["hparams"].get("method") for row in own),
        }
        for key, own in grouped.items()
    }


def size_row(task: Task, arms: Sequence[Arm]) -> Row:
    """Returns the parameter counts of a task's network and of the head of each arm's methods."""
    modalities = (task.modality,)
    if isinstance(arms[0], InstructionTunedArm):
        network = count_parameters(arms[0].models.model_config, modalities, generates_text=True)
        return {"task": task.name, "network": network, "heads": {"instruct": 0}}
    networks = [arm for arm in arms if isinstance(arm, ModelArm)]
    assert networks, "classical arms have no network"
    return {
        "task": task.name,
        "network": count_parameters(
            networks[0].model.model_config, modalities, generates_text=False
        ),
        "heads": {
            method.name: method.num_task_params(arm.model)
            for arm in networks
            for method in arm.supported_methods()
        },
    }


def shared_model_size_row(model_config: ModelConfig) -> Row:
    """Returns the number of parameters of a model for all modalities with text output, as a row."""
    modalities = ("text", *(name for name, _ in model_config.patch_dims))
    network = count_parameters(model_config, modalities, generates_text=True)
    return {"task": None, "network": network, "heads": {}}


def count_parameters(
    model_config: ModelConfig, modalities: tuple[str, ...], *, generates_text: bool
) -> int:
    """Returns the number of parameters a model needs for the given modalities alone.

    Args:
      model_config: architecture.
      modalities: that the model reads.
      generates_text: whether it answers in text, so that the head of tokens counts too.
    """
    params = jax.eval_shape(lambda: init(jax.random.key(0), model_config))
    used = {f"{'token' if name == 'text' else name}_embedding" for name in modalities}
    if generates_text:
        used.add("token_head")
    names = ("token", *(name for name, _ in model_config.patch_dims))
    specific = {f"{name}_{part}" for name in names for part in _PARTS}
    streams = {
        name: leaf
        for name, leaf in params["streams"].items()
        if name in used or name not in specific
    }
    return sum(leaf.size for leaf in jax.tree.leaves({**params, "streams": streams}))
