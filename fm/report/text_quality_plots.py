"""Figures of a text quality study: quality against diversity, regret, copies, bits per byte."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fm.evaluation.text_quality.metrics import METRICS, METRICS_BY_NAME
from fm.report.schema import Arm
from fm.report.style import INK, SMALL, label_line_ends, new_figure, plot_style

Row = dict[str, Any]

# Okabe and Ito's colors and two of Tol's, each with a line style and marker of its own.
_STYLES = (
    ("#0072B2", "-", "o"),
    ("#56B4E9", "-", "^"),
    ("#009E73", "-", "D"),
    ("#8A7700", "-", "v"),
    ("#D55E00", "-", "s"),
    ("#882255", (0, (5, 2)), "P"),
    ("#CC79A7", "-", "X"),
    ("#E69F00", "-", "<"),
    ("#44AA99", (0, (1, 1)), ">"),
    ("#777777", (0, (1, 1)), "p"),
    ("#000000", "-", "h"),
)


def training_set_styles(results: dict[str, Any]) -> dict[str, Arm]:
    """Returns the plot style (label, color, line, marker) of each training set, by name."""
    training_sets = results["config"]["training_sets"]
    return {
        name: Arm(name, name, each["description"], color=color, linestyle=line, marker=marker)
        for (name, each), (color, line, marker) in zip(
            training_sets.items(), itertools.cycle(_STYLES)
        )
    }


def plot_quality_against_diversity(
    results: dict[str, Any], domain: str, x: str, y: str
) -> Figure | None:
    """Plots y against x after training, a curve over sampling temperatures per training set.

    Curves run through the temperatures; other sampling configs are pale marks.
    """
    rows = _end_rows(results, domain)
    if not rows:
        return None
    with plot_style():
        figure = new_figure(4.1)
        axes = figure.add_subplot()
        for arm, mine in _by_arm(results, rows):
            by_temperature = _by_temperature(mine)
            others = [row for row in mine if row["temperature"] is None]
            axes.plot(*_points(by_temperature, x, y), **_line(arm), label=arm.name)
            marks: dict[str, Any] = _line(arm) | {"linestyle": "none", "alpha": 0.35}
            axes.plot(*_points(others, x, y), **marks)
        for row in results["real_text"]:
            if row["domain"] == domain:
                _draw_cross(axes, row["values"][x], row["values"][y])
        axes.set_xlabel(_axis_label(x))
        axes.set_ylabel(_axis_label(y))
        figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL)
    return figure


def plot_regret_heatmap(selection: Row) -> Figure:
    """Plots each metric's regret (columns) when another metric (rows) selects the sample.

    Bold cells have non-overlapping intervals.
    """
    names = [metric.name for metric in METRICS]
    at = {(row["by"], row["metric"]): row for row in selection["regrets"]}
    table = np.array([[at[by, metric]["regret"] for metric in names] for by in names])
    titles = [metric.title for metric in METRICS]
    with plot_style():
        figure = new_figure(4.4)
        axes = figure.add_subplot()
        axes.imshow(np.clip(table, 0.0, 1.0), cmap="Oranges", vmin=0.0, vmax=1.15)
        for n, by in enumerate(names):
            for m, metric in enumerate(names):
                value, clear = table[n, m], at[by, metric]["clear"]
                axes.annotate(
                    f"{round(100 * value):d}".replace("-", "\N{MINUS SIGN}"),
                    (m, n),
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color="white" if value > 0.75 else INK if clear else "#8a8a8a",
                    fontweight="bold" if clear else "normal",
                )
        axes.set_xticks(range(len(names)), titles, rotation=55, ha="right", fontsize=SMALL)
        axes.set_yticks(range(len(names)), titles, fontsize=SMALL)
        axes.set_xlabel("metric that loses, % of its range", fontsize=9)
        axes.set_ylabel("metric that selects", fontsize=9)
        axes.grid(False)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    return figure


def plot_bits_per_byte(results: dict[str, Any], domain: str) -> Figure | None:
    """Plots held-out bits per byte of a domain against tokens seen, one line per training set."""
    rows = [row for row in results["models"] if row["domain"] == domain]
    if not rows:
        return None
    config = results["config"]
    tokens_per_step = {row["arm"]: row["tokens"] / row["steps"] for row in results["trained"]}
    lines = []
    for arm, mine in _by_arm(results, rows):
        steps_before = config["steps"] / 2 if config["training_sets"][arm.name]["init_from"] else 0
        x = [(steps_before + row["step"]) * tokens_per_step[arm.name] / 1e6 for row in mine]
        lines.append((arm, x, [row["value"] for row in mine]))
    with plot_style():
        figure = new_figure(3.5)
        axes = figure.add_subplot()
        _draw_lines(axes, lines)
        axes.set_xlabel("tokens seen, millions")
        axes.set_ylabel("bits per byte, held-out")
        label_line_ends(axes, [(values[-1][0], arm) for arm, _, values in lines], 2.7)
    return figure


def plot_longest_copy(results: dict[str, Any], domain: str) -> Figure | None:
    """Plots the mean longest copy of training text, in words, against temperature for each arm."""
    rows = _by_temperature(_end_rows(results, domain))
    if not rows:
        return None
    lines = [
        (arm, [row["temperature"] for row in mine], [row["values"]["longest_copy"] for row in mine])
        for arm, mine in _by_arm(results, rows)
    ]
    with plot_style():
        figure = new_figure(3.5)
        axes = figure.add_subplot()
        _draw_lines(axes, lines)
        for row in results["real_text"]:
            if row["domain"] == domain:
                real = row["values"]["longest_copy"][0]
                axes.axhline(real, color=INK, linewidth=1, linestyle=":")
                axes.annotate(
                    "real text",
                    (0.01, real),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(0, 3),
                    textcoords="offset points",
                    fontsize=9,
                )
        axes.set_xlabel("temperature")
        axes.set_ylabel("longest copy, words")
        label_line_ends(axes, [(values[-1][0], arm) for arm, _, values in lines], 2.7)
    return figure


def _end_rows(results: dict[str, Any], domain: str) -> list[Row]:
    return [r for r in results["samples"] if (r["domain"], r["stage"]) == (domain, "end")]


def _by_temperature(rows: list[Row]) -> list[Row]:
    """Returns the rows that differ in temperature only, coldest first."""
    plain = [row for row in rows if row["temperature"] is not None]
    return sorted(plain, key=lambda row: row["temperature"])


def _by_arm(results: dict[str, Any], rows: list[Row]) -> list[tuple[Arm, list[Row]]]:
    """Returns the rows of each arm that has any, in the config's order."""
    groups: list[tuple[Arm, list[Row]]] = []
    for name, arm in training_set_styles(results).items():
        mine = [row for row in rows if row["arm"] == name]
        if mine:
            groups.append((arm, mine))
    return groups


def _line(arm: Arm) -> dict[str, Any]:
    return {"color": arm.color, "linestyle": arm.linestyle, "marker": arm.marker}


def _draw_lines(axes: Axes, lines: list[tuple[Arm, list[float], list[list[float]]]]) -> None:
    """Draws [value, low, high] against x with a band, one line per arm."""
    for arm, x, values in lines:
        middle, low, high = zip(*values, strict=True)
        axes.plot(x, middle, **_line(arm))
        axes.fill_between(x, low, high, color=arm.color, alpha=0.12, linewidth=0)


def _points(rows: list[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    return [row["values"][x][0] for row in rows], [row["values"][y][0] for row in rows]


def _draw_cross(axes: Axes, x: list[float], y: list[float]) -> None:
    """Draws real text as a star with its intervals as a cross."""
    axes.plot([x[1], x[2]], [y[0], y[0]], color=INK, linewidth=1.4)
    axes.plot([x[0], x[0]], [y[1], y[2]], color=INK, linewidth=1.4)
    axes.plot([x[0]], [y[0]], color=INK, marker="*", markersize=11, linestyle="none")
    axes.annotate("real text", (x[0], y[0]), xytext=(7, 6), textcoords="offset points", fontsize=9)


def _axis_label(name: str) -> str:
    metric = METRICS_BY_NAME[name]
    better = "higher" if metric.better_direction == "high" else "lower"
    return f"{metric.title} ({better} is better)"
