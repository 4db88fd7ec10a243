"""What a study's scores say: differences with adjusted p-values, label savings and decisions.

Every function takes `TaskScores`, the scores of all cells of a task with their design, and returns
rows of results.json. Nothing here knows how the scores came about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fm.evaluation.design import Design
from fm.evaluation.label_efficiency import label_multiplier
from fm.evaluation.learning_curves import Crossing, LearningCurves
from fm.evaluation.multiple_comparisons import max_t_adjusted
from fm.evaluation.power import detectable_difference, items_to_decide, seeds_to_decide
from fm.evaluation.statistics import DEFAULT_MARGIN, Difference, table_difference

Row = dict[str, Any]
# Stands for all arms without pretraining together: an arm has to beat every one of them.
BEST_RIVAL = "best rival"
# The hypotheses declared before results are seen, for each task: an arm against a rival, in the
# mean over all label budgets. They are adjusted among themselves.
PRIMARY = (
    ("in_domain", BEST_RIVAL),
    ("in_domain_with_classical", BEST_RIVAL),
    ("in_domain", "scratch"),
)
SIGNIFICANT = 0.05
_DIFFERENCE_FIELDS = tuple(field.name for field in dataclasses.fields(Difference))
_POWER_FIELDS = ("detectable", "seeds_to_decide", "items_to_decide")


@dataclasses.dataclass(frozen=True, eq=False)
class TaskScores:
    """The scores of all arms of a task at all label budgets, on the same seeds and test items.

    Attributes:
      task: name of the task.
      label_budgets: rising.
      scores: by (arm, number of labels), [S, N], higher better.
      rivals: the arms without pretraining.
      checkpoints: of each arm that has several pretrained checkpoints, the one each seed started
        from.
      groups: of each test item, its group; None if items are independent.
    """

    task: str
    label_budgets: tuple[int, ...]
    scores: Mapping[tuple[str, int], np.ndarray]
    rivals: tuple[str, ...]
    checkpoints: Mapping[str, Sequence[Hashable]] = dataclasses.field(default_factory=dict)
    groups: Sequence[Hashable] | None = None

    @property
    def arms(self) -> list[str]:
        """The arms in order."""
        return list(dict.fromkeys(arm for arm, _ in self.scores))

    @property
    def num_seeds(self) -> int:
        """The number of seeds."""
        return len(next(iter(self.scores.values()), ()))

    def design(self, *arms: str) -> Design:
        """Returns the design of a comparison of arms: their checkpoints together, and groups."""
        found = [
            self.checkpoints[arm] for arm in arms if len(set(self.checkpoints.get(arm, ()))) > 1
        ]
        checkpoints = None
        if found:
            # Seeds that share any arm's checkpoint are not independent; those of a study share all.
            checkpoints = min(found, key=lambda each: len(set(each)))
        return Design(checkpoints, self.groups)

    def checkpoint(self, arm: str, seed: int) -> Hashable:
        """Returns the checkpoint that a seed of an arm started from; "" if it has not several."""
        return self.checkpoints[arm][seed] if arm in self.checkpoints else ""

    def curve(self, arm: str) -> np.ndarray:
        """Returns an arm's scores at all label budgets, [B, S, N]."""
        return np.stack([self.scores[arm, num_labels] for num_labels in self.label_budgets])


@dataclasses.dataclass(frozen=True, eq=False)
class _Compared:
    """A comparison: its place in the table, the independent differences and their statistics."""

    row: Row
    table_RM: np.ndarray
    found: Difference


def comparison_rows(
    tasks: Sequence[TaskScores],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    *,
    primary: Sequence[tuple[str, str]] = PRIMARY,
    margin: float = DEFAULT_MARGIN,
) -> list[Row]:
    """Returns rows of paired differences of a study, with p-values adjusted over all of them.

    A row per task, (arm, rival) pair and label budget, then one of its mean over budgets (of
    number of labels None). The means of declared pairs are the primary family, whose p-values are
    adjusted among themselves; all others over the whole table.

    The row against the best rival is an intersection-union test (Berger 1982): an arm is ahead of
    the best rival if it is ahead of each, so p is the largest over rivals, and nothing is selected
    on the result. Its figures are those against the rival with the smallest lower end, its
    `rival`.

    Args:
      tasks: of the study.
      pairs: by task, (arm, rival) pairs to compare.
      primary: declared (arm, rival) pairs; a rival may be `BEST_RIVAL`.
      margin: of equivalence, in units of the score.
    """
    compared: list[_Compared] = []
    for task in tasks:
        if task.num_seeds < 2:
            continue
        declared = _declared_pairs(task, primary)
        for arm, rival in dict.fromkeys([*pairs[task.task], *declared]):
            gap_BSN = task.curve(arm) - task.curve(rival)
            design = task.design(arm, rival)
            cells: list[tuple[int | None, np.ndarray]] = [
                *zip(task.label_budgets, gap_BSN, strict=True)
            ]
            if len(cells) > 1 or (arm, rival) in declared:
                cells.append((None, gap_BSN.mean(axis=0)))
            for num_labels, gap_SN in cells:
                row = {"task": task.task, "num_labels": num_labels, "arm": arm, "baseline": rival}
                row["primary"] = num_labels is None and (arm, rival) in declared
                found = table_difference(gap_SN, design=design, margin=margin)
                compared.append(_Compared(row, design.reduce(gap_SN), found))
    rows = _adjusted_rows(compared)
    return rows + [
        best
        for task in tasks
        for arm, rival in primary
        if rival == BEST_RIVAL
        for best in [_best_rival_row(rows, task, arm)]
        if best is not None
    ]


def difference_rows(
    differences: Sequence[tuple[Row, np.ndarray, Design]], *, margin: float = DEFAULT_MARGIN
) -> list[Row]:
    """Returns rows of differences with p-values adjusted over all of them, for any tables.

    Args:
      differences: (fields of the row, differences [S, N], design); rows with equal `task` are on
        the same test items.
      margin: of equivalence, in units of the score.
    """
    return _adjusted_rows(
        [
            _Compared(
                {"primary": False} | row,
                design.reduce(gap_SN),
                table_difference(gap_SN, design=design, margin=margin),
            )
            for row, gap_SN, design in differences
        ]
    )


def with_differences(
    rows: Sequence[Row], differences: Sequence[tuple[np.ndarray, Design] | None]
) -> list[Row]:
    """Returns the rows with the fields of `difference_rows`, p-values adjusted over all rows.

    Args:
      rows: with a `task`.
      differences: of each row, its table [S, N] and design; None where it is compared with nothing,
        or there is only one seed: its fields are then None.
    """
    compared = iter(
        difference_rows(
            [
                (row, *difference)
                for row, difference in zip(rows, differences, strict=True)
                if difference is not None
            ]
        )
    )
    missing = dict.fromkeys((*_DIFFERENCE_FIELDS, "p_adjusted", *_POWER_FIELDS))
    return [
        next(compared) if difference is not None else missing | row
        for row, difference in zip(rows, differences, strict=True)
    ]


def _declared_pairs(task: TaskScores, primary: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the declared pairs of a task, with each of its rivals in place of the best."""
    pairs = [
        (arm, own)
        for arm, rival in primary
        for own in (task.rivals if rival == BEST_RIVAL else (rival,))
        if arm in task.arms and own in task.arms and own != arm
    ]
    return list(dict.fromkeys(pairs))


def _adjusted_rows(compared: Sequence[_Compared]) -> list[Row]:
    every = list(range(len(compared)))
    declared = [n for n in every if compared[n].row["primary"]]
    adjusted = np.ones(len(compared))
    critical = np.ones(len(compared))
    for family, members in ((every, set(every) - set(declared)), (declared, set(declared))):
        if not members:
            continue
        tests = max_t_adjusted(
            [compared[n].table_RM for n in family],
            [compared[n].row["task"] for n in family],
            level=SIGNIFICANT,
        )
        for n, p in zip(family, tests.adjusted_K, strict=True):
            if n in members:
                adjusted[n], critical[n] = p, tests.critical_p
    rows = []
    for each, p_adjusted, level in zip(compared, adjusted, critical, strict=True):
        found = each.found
        decided = p_adjusted < SIGNIFICANT or found.p_equivalence < SIGNIFICANT
        rows.append(
            each.row
            | dataclasses.asdict(found)
            | {
                "p_adjusted": float(max(p_adjusted, found.p)),
                "detectable": detectable_difference(found.standard_error, found.df, level=level),
                "seeds_to_decide": None if decided else seeds_to_decide(found, level=level),
                "items_to_decide": None if decided else items_to_decide(found, level=level),
            }
        )
    return rows


def _best_rival_row(rows: Sequence[Row], task: TaskScores, arm: str) -> Row | None:
    """Returns the row of an arm's mean over budgets against the best of the task's rivals."""
    own = [
        row
        for row in rows
        if (row["task"], row["num_labels"], row["arm"]) == (task.task, None, arm)
        and row["baseline"] in task.rivals
    ]
    if not own:
        return None
    return against_every(own) | {"baseline": BEST_RIVAL}


def against_every(rows: Sequence[Row]) -> Row:
    """Returns the row of an arm against the best of several rivals, an intersection-union test.

    Args:
      rows: of the arm against each rival, at the same labels.

    Returns:
      The row against the rival with the smallest lower end, which `rival` names. Unless that
      rival is ahead of the arm, p and adjusted p are the largest over all rivals: small only where
      the arm is ahead of each.
    """
    quoted = min(rows, key=lambda row: row["low"])
    behind = quoted["high"] < 0
    largest = {
        name: quoted[name] if behind else max(row[name] for row in rows)
        for name in ("p", "p_adjusted")
    }
    return quoted | largest | {"rival": quoted["baseline"]}


def label_multiplier_rows(
    task: TaskScores,
    steps_to_quality: Mapping[tuple[str, int], int | None],
    *,
    reference: str = "scratch",
) -> list[Row]:
    """Returns a row per arm, rival and budget: how many times as many labels the rival needs.

    Pretrained arms are set against every rival, rivals against the reference only.

    Args:
      task: the task.
      steps_to_quality: by arm and number of labels, fine-tuning steps to the validation score of
        the reference; given in the rows against the reference.
      reference: name of an arm without pretraining.
    """
    budgets = task.label_budgets
    if len(budgets) < 2 or task.num_seeds < 2:
        return []
    rows = []
    for arm in task.arms:
        for rival in task.rivals if arm not in task.rivals else (reference,):
            if rival == arm or rival not in task.arms:
                continue
            design, rival_BSN = task.design(arm, rival), task.curve(rival)
            for num_labels in budgets:
                found = label_multiplier(
                    budgets, rival_BSN, task.scores[arm, num_labels], num_labels, design=design
                )
                steps = steps_to_quality.get((arm, num_labels)) if rival == reference else None
                rows.append(
                    {
                        "task": task.task,
                        "num_labels": num_labels,
                        "arm": arm,
                        "rival": rival,
                        **dataclasses.asdict(found),
                        "steps_to_scratch_quality": steps,
                    }
                )
    return rows


def learning_curve_rows(task: TaskScores) -> tuple[list[Row], list[Row]]:
    """Returns rows of fitted learning curves, and of where pretrained arms stop being ahead.

    The second are of every pretrained arm against each rival, then against the best of them.
    """
    if len(task.label_budgets) < 2 or task.num_seeds < 2:
        return [], []
    arms = task.arms
    fitted = LearningCurves(
        task.label_budgets,
        np.stack([task.curve(arm) for arm in arms]),
        design=task.design(*arms),
    )
    curve_rows = [
        {"task": task.task, "arm": arm, **dataclasses.asdict(curve)}
        for arm, curve in zip(arms, fitted.curves, strict=True)
    ]
    rivals = [rival for rival in task.rivals if rival in arms]
    crossing_rows = []
    for arm in arms:
        if arm in rivals or not rivals:
            continue
        against = {rival: [rival] for rival in rivals} | {BEST_RIVAL: rivals}
        for name, own in against.items():
            crossing = fitted.crossing(arms.index(arm), [arms.index(rival) for rival in own])
            crossing_rows.append(_crossing_row(task.task, arm, name, crossing))
    return curve_rows, crossing_rows


def _crossing_row(task: str, arm: str, rival: str, crossing: Crossing) -> Row:
    return {"task": task, "arm": arm, "rival": rival, **dataclasses.asdict(crossing)}


def decision_rows(
    task: TaskScores,
    comparisons: Sequence[Row],
    label_efficiency: Sequence[Row],
    *,
    still_improving: Collection[tuple[str, int]] = (),
    published: Collection[str] = ("published",),
) -> list[Row]:
    """Returns a row per label budget: the best arms, and whether to pretrain.

    Args:
      task: the task.
      comparisons: of the study.
      label_efficiency: of the task.
      still_improving: (arm, number of labels) of arms whose training had not reached its end;
        nothing is said to beat them.
      published: arms that others pretrained: never `best_pretrained`.

    Returns:
      Rows whose difference, interval and p are of the best pretrained arm to the best rival, as
      in `against_every`; its `rival` is the one they are quoted against. The verdict is
      "pretrain" where the arm is ahead of every rival, "do not" where a rival is ahead of it (by
      adjusted p and the interval), "still improving" where one of the two holds but the arm behind
      was not trained to its end, else "no clear difference".
    """
    return [
        _decision_row(task, num_labels, comparisons, label_efficiency, still_improving, published)
        for num_labels in task.label_budgets
    ]


def _decision_row(
    task: TaskScores,
    num_labels: int,
    comparisons: Sequence[Row],
    label_efficiency: Sequence[Row],
    still_improving: Collection[tuple[str, int]],
    published: Collection[str],
) -> Row:
    means = {arm: float(task.scores[arm, num_labels].mean()) for arm in task.arms}
    given = [means[arm] for arm in means if arm in published]
    own = [arm for arm in means if arm not in task.rivals and arm not in published]
    best = max(means, key=means.__getitem__)
    row: Row = {
        "task": task.task,
        "num_labels": num_labels,
        "best_arm": best,
        "best_value": means[best],
        "published_value": max(given, default=None),
        "best_pretrained": max(own, key=means.__getitem__, default=None),
        "best_rival": max(
            (arm for arm in means if arm in task.rivals), key=means.__getitem__, default=None
        ),
        **dict.fromkeys(("rival", "difference", "low", "high", "p", "p_adjusted")),
        **dict.fromkeys(("p_equivalence", "margin", "detectable", "smallest_multiplier")),
        "label_multiplier": {},
        "verdict": "no clear difference",
    }

    def belongs(other: Row) -> bool:
        key = task.task, num_labels, row["best_pretrained"]
        return (other["task"], other["num_labels"], other["arm"]) == key

    savings = [each for each in label_efficiency if belongs(each)]
    row["label_multiplier"] = {
        each["rival"]: {
            "value": None if each["censored"] else each["label_multiplier"],
            **{name: each[name] for name in ("low", "high", "censored")},
            "bound": each["label_multiplier"] if each["censored"] else None,
        }
        for each in savings
    }
    least = min(savings, key=lambda each: each["label_multiplier"], default=None)
    if least is not None and least["censored"] is None:
        row["smallest_multiplier"] = least["label_multiplier"]
    rows = [each for each in comparisons if belongs(each) and each["baseline"] in task.rivals]
    if rows:
        names = ("rival", "difference", "low", "high", "p", "p_adjusted", "p_equivalence")
        quoted = against_every(rows)
        row |= {name: quoted[name] for name in (*names, "margin", "detectable")}
        row["verdict"] = _verdict(rows, num_labels, still_improving)
    return row


def _verdict(
    rows: Sequence[Row], num_labels: int, still_improving: Collection[tuple[str, int]]
) -> str:
    """Returns the verdict on an arm from its differences to every rival at a label budget."""

    def unfinished(arm: str) -> bool:
        return (arm, num_labels) in still_improving

    clear = [row for row in rows if row["p_adjusted"] < SIGNIFICANT]
    ahead = [row for row in clear if row["low"] > 0]
    behind = [row for row in clear if row["high"] < 0]
    if behind:
        return "still improving" if unfinished(behind[0]["arm"]) else "do not"
    if len(ahead) == len(rows):
        unfinished_rival = any(unfinished(row["baseline"]) for row in rows)
        return "still improving" if unfinished_rival else "pretrain"
    return "no clear difference"


def study_sections(
    tasks: Sequence[TaskScores],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    label_efficiency: Sequence[Row],
    *,
    still_improving: Mapping[str, Collection[tuple[str, int]]] | None = None,
    published: Collection[str] = ("published",),
    primary: Sequence[tuple[str, str]] = PRIMARY,
    margin: float = DEFAULT_MARGIN,
) -> dict[str, list[Row]]:
    """Returns the sections comparisons, learning_curves, crossings and decisions of a study.

    Args:
      tasks: of the study.
      pairs: by task, see `comparison_rows`.
      label_efficiency: of all tasks, see `label_multiplier_rows`.
      still_improving: by task, see `decision_rows`.
      published: see `decision_rows`.
      primary: see `comparison_rows`.
      margin: of equivalence, in units of the score.
    """
    sections: dict[str, list[Row]] = {
        "comparisons": comparison_rows(tasks, pairs, primary=primary, margin=margin),
        **{name: [] for name in ("learning_curves", "crossings", "decisions")},
    }
    for task in tasks:
        curves, crossings = learning_curve_rows(task)
        sections["learning_curves"] += curves
        sections["crossings"] += crossings
        sections["decisions"] += decision_rows(
            task,
            sections["comparisons"],
            label_efficiency,
            still_improving=(still_improving or {}).get(task.task, ()),
            published=published,
        )
    return sections
