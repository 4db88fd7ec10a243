"""Recomputes a study's differences, intervals and p-values from its predictions, without `fm`.

    python tests/study/recompute.py FOLDER

reads predictions.csv and results.json of a folder and prints the largest distance of each figure
from its recomputed value. Tasks of classes only. Written from docs/statistics.md, in plain loops.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
import pandas as pd
from scipy import stats

DRAWS = 4000


def differences(predictions, row):
    """Returns differences [seeds, items] of a comparison, its checkpoints and its groups."""
    own = predictions[predictions.task == row["task"]]
    if row["num_labels"] is not None:
        own = own[own.num_labels == row["num_labels"]]
    own = own.assign(right=(own.truth == own.prediction).astype(float))
    arm, baseline = (
        own[own.arm == name].pivot_table(index="seed", columns="row", values="right")
        for name in (row["arm"], row.get("rival") or row["baseline"])
    )
    checkpoints = None
    if "checkpoint" in own and row["checkpoints"] > 1:
        first = own[own.arm == row["arm"]].groupby("seed").checkpoint.first()
        checkpoints = first.to_numpy()
    groups = own.groupby("row").group.first().to_numpy() if row.get("groups") else None
    return (arm - baseline).to_numpy(), checkpoints, groups


def units(table, checkpoints, groups):
    """Returns the table of independent rows and columns."""
    if checkpoints is not None:
        table = pd.DataFrame(table).groupby(checkpoints).mean().to_numpy()
    if groups is not None:
        names, items = pd.unique(groups), table.shape[1]
        center = table.mean(axis=1, keepdims=True)
        columns = []
        for name in names:
            own = groups == name
            # How far the mean moves when the group is left out.
            moved = center[:, 0] - table[:, ~own].mean(axis=1)
            columns.append((len(names) - 1) * moved)
            assert 0 < own.sum() < items
        shares = np.stack(columns, axis=1)
        table = center + shares - shares.mean(axis=1, keepdims=True)
    return table


def mean_squares(table):
    """Returns mean squares and degrees of freedom of rows, columns and error of a table."""
    rows, columns = table.shape
    row_means, column_means, mean = table.mean(1), table.mean(0), table.mean()
    error = sum(
        (table[r, c] - row_means[r] - column_means[c] + mean) ** 2
        for r, c in itertools.product(range(rows), range(columns))
    )
    df = rows - 1, columns - 1, (rows - 1) * (columns - 1)
    sums = (columns * ((row_means - mean) ** 2).sum(), rows * ((column_means - mean) ** 2).sum())
    return [total / each for total, each in zip((*sums, error), df, strict=True)], df


def t_test(mean, squares, df, shape):
    """Returns p, standard error and degrees of freedom of a mean."""
    total = squares[0] + max(squares[1] - squares[2], 0)
    if total == 0:
        return float(mean == 0), 0.0, min(df[:2])
    freedom = total**2 / sum(square**2 / each for square, each in zip(squares, df, strict=True))
    freedom = max(freedom, min(df[:2]))
    error = (total / np.prod(shape)) ** 0.5
    return 2 * stats.t.sf(abs(mean) / error, freedom), error, freedom


def adjusted(tables, tasks, draws=DRAWS):
    """Returns step-down max-T adjusted p-values, from whole rotations of rows and of columns."""
    random = np.random.default_rng(1)
    observed = []
    for table in tables:
        squares, df = mean_squares(table)
        total = squares[0] + max(squares[1] - squares[2], 0)
        mean = table.mean()
        share = [square / total if total else 0 for square in squares]
        rows = table.mean(1) - mean + mean * share[0] ** 0.5
        columns = table.mean(0) - mean + mean * share[1] ** 0.5
        own = max(squares[1] - squares[2], 0) / squares[1] if squares[1] else 0
        observed.append((rows, columns, own**0.5, squares, df, table.shape))
    p = [
        t_test(table.mean(), each[3], each[4], each[5])[0]
        for table, each in zip(tables, observed, strict=True)
    ]
    order = np.argsort(p, kind="stable")
    exceeded = np.zeros(len(tables))
    for _ in range(draws):
        rotations, directions, drawn = {}, {}, []
        for (rows, columns, own, squares, df, shape), task in zip(observed, tasks, strict=True):
            if len(rows) not in rotations:
                rotations[len(rows)] = stats.ortho_group.rvs(len(rows), random_state=random)
            if (task, len(columns)) not in directions:
                normal = random.normal(size=len(columns))
                directions[task, len(columns)] = normal / np.sqrt((normal**2).sum())
            turned = rotations[len(rows)] @ rows
            row_square = shape[1] * ((turned - turned.mean()) ** 2).sum() / df[0]
            pulled = directions[task, len(columns)] @ columns
            column_square = shape[0] * ((columns**2).sum() - pulled**2) / df[1]
            mean = turned.mean() + own * pulled / len(columns) ** 0.5
            drawn.append(t_test(mean, (row_square, column_square, squares[2]), df, shape)[0])
        least = np.minimum.accumulate(np.array(drawn)[order][::-1])[::-1]
        exceeded += least <= np.array(p)[order]
    found = np.empty(len(tables))
    found[order] = np.maximum.accumulate((exceeded + 1) / (draws + 1))
    return np.maximum(found, p)


def recompute(predictions, comparisons, draws=DRAWS):
    """Returns a table of the rows recomputed: difference, low, high, p and p_adjusted."""
    plain = [row for row in comparisons if row["baseline"] != "best rival"]
    tables, rows = [], []
    for row in plain:
        table = units(*differences(predictions, row))
        squares, df = mean_squares(table)
        p, error, freedom = t_test(table.mean(), squares, df, table.shape)
        half = stats.t.ppf(0.975, freedom) * error
        mean = table.mean()
        rows.append({"difference": mean, "low": mean - half, "high": mean + half, "p": p})
        tables.append(table)
    tasks = [row["task"] for row in plain]
    declared = [n for n, row in enumerate(plain) if row["primary"]]
    every = adjusted(tables, tasks, draws)
    among = adjusted([tables[n] for n in declared], [tasks[n] for n in declared], draws)
    for n, row in enumerate(rows):
        row["p_adjusted"] = among[declared.index(n)] if n in declared else every[n]
    return pd.DataFrame(rows), plain


def main(folder):
    """Prints how far each figure of a study is from its recomputed value."""
    folder = pathlib.Path(folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    predictions = pd.read_csv(folder / "predictions.csv")
    found, plain = recompute(predictions, results["comparisons"])
    for name in found:
        distance = (found[name] - [row[name] for row in plain]).abs().max()
        print(f"{name}: {len(plain)} rows, largest distance {distance:.2g}")


if __name__ == "__main__":
    main(sys.argv[1])
