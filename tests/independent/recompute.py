"""Recomputes every comparison of a study from its predictions, by other code than the study's.

    python tests/independent/recompute.py runs/compare

Takes folders with a results.json (or results.json.xz) and a predictions.csv (or predictions.csv.gz,
predictions.csv.xz).
Imports nothing of fm: pandas reads and pairs the predictions, numpy and scipy do the rest. Every
score, difference, interval end, p-value, equivalence p-value and variance must agree to 1e-9, every
adjusted p-value to five standard errors of the simulations that both sides do. Predictions of chrF
are rounded to six decimals: its scores and differences must agree to 1e-6, what follows from them
to as much as that changes it.
"""

from __future__ import annotations

import json
import lzma
import pathlib
import sys
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

EXACT, ROUNDED = 1e-9, 1e-6
# How much a figure may change with the scores, where these are rounded.
_SENSITIVITY = {"low": 10, "high": 10, "p": 200, "p_equivalence": 200}
# Simulated draws of the null hypothesis, of the study and of this script.
STUDY_DRAWS, DRAWS = 10_000, 20_000
_SEED = 20_250_101
_STANDARD_ERRORS = 5.0
_CHUNK = 500
BEST_RIVAL = "best rival"
ANSWERS = ("truth", "prediction")
_NAMES = ("predictions.csv", "predictions.csv.gz", "predictions.csv.xz")

Row = dict[str, Any]


def _read_results(folder: pathlib.Path) -> Any:
    path = folder / "results.json"
    if path.exists():
        return json.loads(path.read_bytes())
    return json.loads(lzma.decompress(path.with_name("results.json.xz").read_bytes()))


def main(folders: list[str]) -> int:
    """Checks the folders; prints a line for each and returns 1 if any disagrees."""
    if not folders:
        print(__doc__)
        return 2
    worst = 0
    for folder in folders:
        problems, summary = recompute(pathlib.Path(folder))
        print("\n".join([f"{folder}: {line}" for line in [*problems[:20], summary]]))
        worst |= bool(problems)
    return worst


def recompute(folder: pathlib.Path, draws: int = DRAWS) -> tuple[list[str], str]:
    """Returns what disagrees, a line each, and one line that sums up.

    Args:
      folder: of the study.
      draws: of the null hypothesis, for adjusted p-values.
    """
    results = _read_results(folder)
    predictions = read_predictions(folder)
    metrics = {task["name"]: task["metric"] for task in results["tasks"]}
    cells = {
        key: score_table(rows, metrics[str(key[0])])
        for key, rows in predictions.groupby(["task", "arm", "num_labels"], sort=False)
    }
    tolerances = {task: ROUNDED if metric == "chrF" else EXACT for task, metric in metrics.items()}
    problems = check_cells(results["cells"], cells, tolerances)
    comparisons = results["comparisons"]
    measured = [row for row in comparisons if row["baseline"] != BEST_RIVAL]
    tables = []
    for row in measured:
        table, units = difference_table(row, cells, predictions)
        tables.append(table)
        problems += check_comparison(row, table, units, tolerances[row["task"]])
    problems += check_adjusted(measured, tables, draws)
    problems += check_best_rivals(comparisons, rivals(results))
    summary = (
        f"{len(results['cells'])} scores and {len(comparisons)} comparisons recomputed from "
        f"{len(predictions):,} predictions, {len(problems)} disagree"
    )
    return problems, summary


def read_predictions(folder: pathlib.Path) -> pd.DataFrame:
    """Returns the predictions as text, with numbers of labels and seeds as integers."""
    path = next((folder / name for name in _NAMES if (folder / name).exists()), None)
    if path is None:
        raise SystemExit(f"{folder}: takes a folder with one of {', '.join(_NAMES)}")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
    numbers = {name: table[name].astype(int) for name in ("num_labels", "seed", "row")}
    return table.assign(**numbers)


def score_table(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns the scores of a cell, seeds by items (by their row), whose means are the metric."""
    if metric == "entity F1":
        counts = rows["prediction"].str.split("/", expand=True).astype(float)
        wide = rows.assign(
            numerator=2 * counts[0], denominator=counts[1] + rows["truth"].astype(float)
        )
        return ratio_scores(wide)
    if metric == "rank correlation":
        truth, prediction = (
            rows.assign(number=rows[name].astype(float)).pivot(
                index="seed", columns="row", values="number"
            )
            for name in ("truth", "prediction")
        )
        scores = [
            rank_correlation_scores(*each)
            for each in zip(prediction.to_numpy(), truth.to_numpy(), strict=True)
        ]
        return pd.DataFrame(scores, index=truth.index, columns=truth.columns)
    if metric == "micro F1":
        sets = [rows[name].map(lambda text: set(text.split(";")) - {""}) for name in ANSWERS]
        shared = [2.0 * len(truth & own) for truth, own in zip(*sets, strict=True)]
        sizes = [float(len(truth) + len(own)) for truth, own in zip(*sets, strict=True)]
        return ratio_scores(rows.assign(numerator=shared, denominator=sizes))
    if metric == "chrF":
        score = rows["prediction"].astype(float)
    elif metric == "accuracy":
        score = (rows["prediction"] == rows["truth"]).astype(float)
    else:
        raise SystemExit(
            f"metric {metric!r} is not known; takes accuracy, entity F1, chrF, rank correlation "
            "and micro F1"
        )
    return rows.assign(score=score).pivot(index="seed", columns="row", values="score")


def ratio_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns scores, seeds by items, of a ratio of sums of "numerator" and "denominator"."""
    numerator, denominator = (
        rows.pivot(index="seed", columns="row", values=name)
        for name in ("numerator", "denominator")
    )
    sums = denominator.sum(axis=1)
    ratio = (numerator.sum(axis=1) / sums.where(sums > 0, 1.0)).where(sums > 0, 0.0)
    # A ratio's influence on itself: (numerator - ratio denominator) over the mean denominator.
    influence = numerator.sub(denominator.mul(ratio, axis=0))
    return influence.div(denominator.mean(axis=1).where(sums > 0, 1.0), axis=0).add(ratio, axis=0)


def rank_correlation_scores(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation plus each item's influence on it, from all pairs of items.

    With weights w of the items, ranks are r_i = sum_j w_j [x_j < x_i], ties half, and
    rho = cov(r, q) / sqrt(var(r) var(q)); the influence of an item is the derivative by its weight.
    """
    count = len(x)
    below = [(each[:, None] < each) + 0.5 * (each[:, None] == each) for each in (x, y)]
    r, q = (each.mean(axis=0) - 0.5 for each in below)
    cov, of_r, of_q = (r * q).mean(), (r**2).mean(), (q**2).mean()
    if of_r < 1e-12 or of_q < 1e-12:
        return np.zeros(count)
    d_cov = r * q + below[0] @ q / count + below[1] @ r / count - 3 * cov
    d_r = r**2 + 2 * below[0] @ r / count - 3 * of_r
    d_q = q**2 + 2 * below[1] @ q / count - 3 * of_q
    rho = cov / np.sqrt(of_r * of_q)
    return rho + d_cov / np.sqrt(of_r * of_q) - rho / 2 * (d_r / of_r + d_q / of_q)


def check_cells(
    rows: list[Row], cells: dict[Any, pd.DataFrame], tolerances: dict[str, float]
) -> list[str]:
    """Returns the scores of seeds that the predictions do not give."""
    problems = []
    for row in rows:
        key = row["task"], row["arm"], row["num_labels"]
        if key not in cells:
            problems.append(f"{key}: no predictions")
            continue
        found = cells[key].loc[row["seed"]].mean()
        if not close(found, row["value"], tolerances[row["task"]]):
            problems.append(f"{key} seed {row['seed']}: {row['value']}, recomputed {found}")
    return problems


def difference_table(
    row: Row, cells: dict[Any, pd.DataFrame], predictions: pd.DataFrame
) -> tuple[np.ndarray, Row]:
    """Returns a comparison's differences, independent rows by columns, and how many there are.

    Without a number of labels they are means over all of the task's budgets.
    """
    task, arm, baseline = row["task"], row["arm"], row["baseline"]
    budgets = (
        sorted({key[2] for key in cells if key[:2] == (task, arm)})
        if row["num_labels"] is None
        else [row["num_labels"]]
    )
    seeds_by_items = sum(
        cells[task, arm, budget] - cells[task, baseline, budget] for budget in budgets
    ) / len(budgets)
    of_task = predictions[predictions["task"] == task]
    units: Row = {"seeds": len(seeds_by_items), "items": seeds_by_items.shape[1]}
    units |= {"checkpoints": 1, "groups": None}
    if "checkpoint" in of_task:
        names = [
            of_task[of_task["arm"] == name].drop_duplicates("seed").set_index("seed")["checkpoint"]
            for name in (arm, baseline)
        ]
        several = [each for each in names if each.nunique() > 1]
        if several:
            shared = min(several, key=lambda each: each.nunique())
            shared = shared.reindex(seeds_by_items.index)
            seeds_by_items = seeds_by_items.groupby(shared).mean()
            units["checkpoints"] = len(seeds_by_items)
    if "group" in of_task and (of_task["group"] != "").all():
        group = of_task.drop_duplicates("row").set_index("row")["group"]
        group = group.reindex(seeds_by_items.columns)
        mean = seeds_by_items.mean(axis=1)
        totals = seeds_by_items.sub(mean, axis=0).T.groupby(group).sum().T
        units["groups"] = number = totals.shape[1]
        # How far a group pulls the mean, as it shows when the group is left out.
        share = group.value_counts().reindex(totals.columns) / units["items"]
        pull = totals * (number / units["items"]) * (1 - 1 / number) / (1 - share)
        seeds_by_items = pull.sub(pull.mean(axis=1), axis=0).add(mean, axis=0)
    return seeds_by_items.to_numpy(float), units


def mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean squares of rows, columns and the rest, of a two-way analysis of variance."""
    rows, columns = table.shape
    total = ((table - table.mean()) ** 2).sum()
    between_rows = columns * ((table.mean(axis=1) - table.mean()) ** 2).sum()
    between_columns = rows * ((table.mean(axis=0) - table.mean()) ** 2).sum()
    rest = max(total - between_rows - between_columns, 0.0)
    return (
        between_rows / (rows - 1),
        between_columns / (columns - 1),
        rest / ((rows - 1) * (columns - 1)),
    )


def variance_and_df(squares: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Returns the variance of the mean of a crossed table and Satterthwaite's degrees of freedom.

    Var = (MS_rows + max(MS_columns - MS_rest, 0)) / (rows columns), and degrees of freedom
    (sum of mean squares)^2 / sum of (mean square^2 / its own), at least min(rows, columns) - 1.
    """
    rows, columns = shape
    of_rows, of_columns, rest = (np.asarray(each, float) for each in squares)
    total = of_rows + np.clip(of_columns - rest, 0.0, None)
    own = of_rows**2 / (rows - 1) + of_columns**2 / (columns - 1)
    own = own + rest**2 / ((rows - 1) * (columns - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(own > 0, total**2 / own, 0.0)
    return total / (rows * columns), np.maximum(df, min(rows, columns) - 1)


def two_sided_p(mean: Any, variance: Any, df: Any) -> Any:
    """Returns p of a t test; 0 and 1 where nothing varies and the mean is or is not zero."""
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(df, -np.abs(mean) / np.sqrt(variance))
    return np.where(variance > 0, p, np.where(mean == 0, 1.0, 0.0))


def normal_deviate(mean: Any, variance: Any, df: Any) -> Any:
    """Returns Wallace's (1959) normal deviate of a t statistic: near that of the same p-value.

    u = (8 df + 1) / (8 df + 3) sqrt(df log(1 + t^2 / df)); infinite where nothing varies but the
    mean is not zero. Statistics of different degrees of freedom are compared by it.
    """
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviate = np.sqrt(df * np.log(1 + mean**2 / variance / df)) * (8 * df + 1) / (8 * df + 3)
    return np.where(variance > 0, deviate, np.where(mean == 0, 0.0, np.inf))


def check_comparison(row: Row, table: np.ndarray, units: Row, tolerance: float) -> list[str]:
    """Returns the figures of a comparison that differ from those recomputed from its table."""
    squares = mean_squares(table)
    variance, df = variance_and_df(squares, table.shape)
    mean, error = float(table.mean()), float(np.sqrt(variance))
    low, high = mean + error * stats.t.ppf([0.025, 0.975], float(df))
    expected: Row = {"difference": mean, "low": low, "high": high, **units}
    expected["p"] = float(two_sided_p(mean, variance, df))
    if row.get("margin") is not None:
        room = row["margin"] - abs(mean)
        expected["p_equivalence"] = (
            float(stats.t.sf(room / error, float(df))) if error else float(room <= 0)
        )
    of_rows, of_columns, rest = squares
    found = dict(row)
    found |= {f"variance.{name}": value for name, value in (row.get("variance") or {}).items()}
    expected["variance.run"] = max(of_rows - rest, 0.0) / table.shape[1]
    expected["variance.item"] = max(of_columns - rest, 0.0) / table.shape[0]
    return [
        f"{label(row)}: {name} is {found.get(name)}, recomputed {value}"
        for name, value in expected.items()
        if not close(value, found.get(name), _tolerance(name, tolerance))
    ]


def _tolerance(name: str, tolerance: float) -> float:
    return tolerance if tolerance == EXACT else tolerance * _SENSITIVITY.get(name, 1)


def check_adjusted(comparisons: list[Row], tables: list[np.ndarray], draws: int) -> list[str]:
    """Returns the adjusted p-values that are further from the recomputed than chance allows.

    Those of declared (primary) rows are adjusted among themselves, all others over all rows.
    """
    every = list(range(len(comparisons)))
    primary = [n for n in every if comparisons[n].get("primary")]
    others = [n for n in every if n not in primary]
    problems = []
    for family, members in ((every, others), (primary, primary)):
        if not members:
            continue
        tasks = [comparisons[n]["task"] for n in family]
        adjusted = westfall_young([tables[n] for n in family], tasks, draws)
        for n, p in zip(family, adjusted, strict=True):
            row, given = comparisons[n], comparisons[n]["p_adjusted"]
            # Both sides are shares of simulated draws.
            variance = max(p, given) * (1 - min(p, given)) * (1 / STUDY_DRAWS + 1 / draws)
            allowed = _STANDARD_ERRORS * np.sqrt(variance) + 2 / draws
            if n in members and (abs(p - given) > allowed or given < row["p"]):
                problems.append(f"{label(row)}: p_adjusted is {given}, recomputed {p}")
    return problems


def rivals(results: Row) -> set[str]:
    """Returns the arms that nothing was pretrained for."""
    return {arm["name"] for arm in results.get("arms", []) if arm.get("pretrained_on") is None}


def check_best_rivals(comparisons: list[Row], names: set[str]) -> list[str]:
    """Returns what is wrong in rows against the best rival.

    Such a row is that against the rival with the smallest lower end; unless that rival is ahead,
    its p-values are the largest over the rivals (intersection-union test).
    """
    problems = []
    for row in comparisons:
        if row["baseline"] != BEST_RIVAL:
            continue
        own = [
            other
            for other in comparisons
            if other["baseline"] in names
            and all(other[key] == row[key] for key in ("task", "arm", "num_labels"))
        ]
        quoted = min(own, key=lambda other: other["low"])
        expected = {name: quoted[name] for name in ("difference", "low", "high")}
        expected |= {name: quoted[name] for name in ("p", "p_adjusted")}
        if quoted["high"] >= 0:
            expected |= {name: max(each[name] for each in own) for name in ("p", "p_adjusted")}
        problems += [
            f"{label(row)}: {name} is {row[name]}, recomputed {value}"
            for name, value in expected.items()
            if not close(value, row[name], EXACT)
        ]
        if row.get("rival") != quoted["baseline"]:
            problems.append(f"{label(row)}: rival is {row.get('rival')}, not {quoted['baseline']}")
    return problems


def westfall_young(tables: list[np.ndarray], tasks: list[str], draws: int) -> np.ndarray:
    """Returns step-down adjusted p-values (Westfall and Young 1993, algorithm 2.8) of K tables.

    Under the null hypothesis a table's row effects, with their part of the mean, are a normal
    vector, and so are its column effects. Rotated at random (Langsrud 2005) they give means and
    mean squares as likely as those seen. Tables of as many rows are rotated together, and so are
    the columns of one task, which keeps what their comparisons have in common.
    """
    K = len(tables)
    squares = [mean_squares(table) for table in tables]
    observed = np.array(
        [
            two_sided_p(table.mean(), *variance_and_df(square, table.shape))
            for table, square in zip(tables, squares, strict=True)
        ]
    )
    random = np.random.default_rng(_SEED)
    row_blocks = [table.shape[0] for table in tables]
    column_blocks = [(task, table.shape[1]) for task, table in zip(tasks, tables, strict=True)]
    effects = [_effects(table, square) for table, square in zip(tables, squares, strict=True)]
    deviates = np.array(
        [
            normal_deviate(table.mean(), *variance_and_df(square, table.shape))
            for table, square in zip(tables, squares, strict=True)
        ]
    )
    null = np.empty((draws, K))
    for start in range(0, draws, _CHUNK):
        chunk = min(_CHUNK, draws - start)
        row_sums, row_squares = _rotated([each[0] for each in effects], row_blocks, chunk, random)
        column_sums, column_squares = _rotated(
            [each[1] for each in effects], column_blocks, chunk, random
        )
        for k, table in enumerate(tables):
            rest = np.full(chunk, squares[k][2])
            variance, df = variance_and_df(
                (row_squares[:, k], column_squares[:, k], rest), table.shape
            )
            mean = (row_sums[:, k] + effects[k][2] * column_sums[:, k]) / np.sqrt(table.size)
            null[start : start + chunk, k] = normal_deviate(mean, variance, df)
    adjusted = np.empty(K)
    order = np.argsort(observed, kind="stable")
    largest = 0.0
    for place, k in enumerate(order):
        most = null[:, order[place:]].max(axis=1)
        largest = max(largest, float(1 + np.sum(most >= deviates[k])) / (1 + draws))
        adjusted[k] = min(1.0, max(largest, observed[k]))
    return adjusted


def _effects(
    table: np.ndarray, squares: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns row effects, column effects and the columns' weight in the mean.

    Effects are scaled so that their mean squares are those of the table. The squared mean, times
    the size of the table, is shared out between the two like the mean's variance.
    """
    rows, columns = table.shape
    of_rows, of_columns, rest = squares
    excess = max(of_columns - rest, 0.0)
    total = of_rows + excess
    mean = table.mean() * np.sqrt(table.size)
    row_share, column_share = (
        np.sqrt(each / total) if total > 0 else 0.0 for each in (of_rows, of_columns)
    )
    row_effects = (table.mean(axis=1) - table.mean()) * np.sqrt(columns)
    column_effects = (table.mean(axis=0) - table.mean()) * np.sqrt(rows)
    return (
        row_effects + row_share * mean / np.sqrt(rows),
        column_effects + column_share * mean / np.sqrt(columns),
        np.sqrt(excess / of_columns) if of_columns > 0 else 0.0,
    )


def _rotated(
    vectors: list[np.ndarray], blocks: list[Any], draws: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sqrt(n) times the means, and the mean squares, of vectors rotated at random."""
    sums = np.empty((draws, len(vectors)))
    for block in dict.fromkeys(blocks):
        own = [k for k, each in enumerate(blocks) if each == block]
        together = np.column_stack([vectors[k] for k in own])
        directions = random.standard_normal((draws, len(together)))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        sums[:, own] = directions @ together
    lengths = np.array([np.dot(vector, vector) for vector in vectors])
    df = np.array([len(vector) - 1 for vector in vectors])
    return sums, np.clip(lengths - sums**2, 0.0, None) / df


def close(expected: Any, given: Any, tolerance: float) -> bool:
    """Returns whether two figures agree; None only with None."""
    if expected is None or given is None:
        return expected is given
    return bool(abs(expected - given) <= tolerance)


def label(row: Row) -> str:
    """Returns a comparison's name in messages."""
    return f"{row['task']} {row['arm']} - {row['baseline']} at {row['num_labels']} labels"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
