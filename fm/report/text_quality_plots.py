"""The pictures of a study of text: frontier, choices, regret, copies, bits per byte."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fm.evaluation.text_quality.metrics import METRICS, METRICS_BY_NAME
from fm.report import style
from fm.report.schema import Arm

Row = dict[str, Any]

# Okabe and Ito's colours, two of Tol's besides, each with a line and a marker of its own.
_LOOKS = (
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


def arm_styles(results: dict[str, Any]) -> dict[str, Arm]:
    """How every arm is drawn, by name."""
    diets = results["config"]["diets"]
    return {
        name: Arm(
            name,
            title=name,
            description=diet["says"],
            **dict(zip(("color", "linestyle", "marker"), _LOOKS[n % len(_LOOKS)], strict=True)),
        )
        for n, (name, diet) in enumerate(diets.items())
    }


def plot_quality_against_diversity(
    results: dict[str, Any], domain: str, x: str, y: str
) -> Figure | None:
    """One metric against another at the end of training, a training set a curve.

    Curves run through the temperatures; other decodings are pale marks.
    """
    rows = [r for r in results["samples"] if (r["domain"], r["stage"]) == (domain, "end")]
    if not rows:
        return None
    arms = arm_styles(results)
    with style.plot_style():
        drawn = style.new_figure(4.1)
        axes = drawn.add_subplot()
        for name in dict.fromkeys(row["arm"] for row in rows):
            arm, mine = arms[name], [row for row in rows if row["arm"] == name]
            line = [row for row in mine if row["temperature"] is not None]
            line.sort(key=lambda row: row["temperature"])
            axes.plot(
                *_points(line, x, y),
                color=arm.color,
                linestyle=arm.linestyle,
                marker=arm.marker,
                label=name,
            )
            others = [row for row in mine if row["temperature"] is None]
            axes.plot(
                *_points(others, x, y),
                color=arm.color,
                linestyle="none",
                marker=arm.marker,
                alpha=0.35,
            )
        for row in (each for each in results["human"] if each["domain"] == domain):
            _cross(axes, row["values"][x], row["values"][y])
        axes.set_xlabel(_label(x))
        axes.set_ylabel(_label(y))
        drawn.legend(loc="outside lower center", ncols=4, fontsize=8)
    return drawn


def _points(rows: list[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    return [row["values"][x][0] for row in rows], [row["values"][y][0] for row in rows]


def _cross(axes: Axes, x: list[float], y: list[float]) -> None:
    """Real text, with its intervals as the arms of a cross."""
    axes.plot([x[1], x[2]], [y[0], y[0]], color=style.INK, linewidth=1.4)
    axes.plot([x[0], x[0]], [y[1], y[2]], color=style.INK, linewidth=1.4)
    axes.plot([x[0]], [y[0]], color=style.INK, marker="*", markersize=11, linestyle="none")
    axes.annotate("real text", (x[0], y[0]), xytext=(7, 6), textcoords="offset points", fontsize=9)


def _label(metric: str) -> str:
    found = METRICS_BY_NAME[metric]
    return f"{found.title} ({'more' if found.better_direction == 'high' else 'less'} is better)"


def plot_regret_heatmap(choice: Row) -> Figure:
    """Who chooses down, who judges across: the share of its range a metric loses."""
    names = [metric.name for metric in METRICS]
    at = {(row["by"], row["metric"]): row for row in choice["regrets"]}
    table = np.array([[at[by, metric]["regret"] for metric in names] for by in names])
    titles = [METRICS_BY_NAME[name].title for name in names]
    with style.plot_style():
        drawn = style.new_figure(4.4)
        axes = drawn.add_subplot()
        axes.imshow(np.clip(table, 0.0, 1.0), cmap="Oranges", vmin=0.0, vmax=1.15)
        for n, by in enumerate(names):
            for m, metric in enumerate(names):
                value, clear = table[n, m], at[by, metric]["clear"]
                axes.annotate(
                    f"{round(100 * value):d}".replace("-", "\N{MINUS SIGN}"),
                    (m, n),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 0.75 else style.INK if clear else "#8a8a8a",
                    fontweight="bold" if clear else "normal",
                )
        axes.set_xticks(range(len(names)), titles, rotation=55, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), titles, fontsize=8)
        axes.set_xlabel("loses, % of its range", fontsize=9)
        axes.set_ylabel("chooses", fontsize=9)
        axes.grid(False)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    return drawn


def plot_bits_per_byte(results: dict[str, Any], domain: str) -> Figure | None:
    """Bits per byte on held-out text of a domain against tokens seen, checkpoint by checkpoint."""
    rows = [row for row in results["models"] if row["domain"] == domain]
    if not rows:
        return None
    arms = arm_styles(results)
    tokens = {row["arm"]: row["tokens"] / row["steps"] for row in results["trained"]}
    before = {name: diet["start"] for name, diet in results["config"]["diets"].items()}
    with style.plot_style():
        drawn = style.new_figure(3.5)
        axes = drawn.add_subplot()
        ends = []
        for name in dict.fromkeys(row["arm"] for row in rows):
            arm, mine = arms[name], [row for row in rows if row["arm"] == name]
            lead = results["config"]["steps"] / 2 if before[name] else 0
            x = [(lead + row["step"]) * tokens[name] / 1e6 for row in mine]
            y = [row["value"][0] for row in mine]
            axes.plot(x, y, color=arm.color, linestyle=arm.linestyle, marker=arm.marker)
            axes.fill_between(
                x,
                [row["value"][1] for row in mine],
                [row["value"][2] for row in mine],
                color=arm.color,
                alpha=0.12,
                linewidth=0,
            )
            ends.append((y[-1], arm))
        axes.set_xlabel("tokens seen, millions")
        axes.set_ylabel("bits per byte, held-out")
        style.label_line_ends(axes, ends, 2.7)
    return drawn


def plot_copy_lengths(results: dict[str, Any], domain: str) -> Figure | None:
    """The longest stretch copied from the training text, by decoding, a training set a line."""
    rows = [r for r in results["samples"] if (r["domain"], r["stage"]) == (domain, "end")]
    rows = [row for row in rows if row["temperature"] is not None]
    if not rows:
        return None
    arms = arm_styles(results)
    with style.plot_style():
        drawn = style.new_figure(3.5)
        axes = drawn.add_subplot()
        ends = []
        for name in dict.fromkeys(row["arm"] for row in rows):
            arm = arms[name]
            mine = sorted(
                (row for row in rows if row["arm"] == name), key=lambda row: row["temperature"]
            )
            x = [row["temperature"] for row in mine]
            values = [row["values"]["copied"] for row in mine]
            axes.plot(
                x,
                [v[0] for v in values],
                color=arm.color,
                linestyle=arm.linestyle,
                marker=arm.marker,
            )
            axes.fill_between(
                x,
                [v[1] for v in values],
                [v[2] for v in values],
                color=arm.color,
                alpha=0.12,
                linewidth=0,
            )
            ends.append((values[-1][0], arm))
        for row in (each for each in results["human"] if each["domain"] == domain):
            axes.axhline(row["values"]["copied"][0], color=style.INK, linewidth=1, linestyle=":")
            axes.annotate(
                "real text",
                (0.01, row["values"]["copied"][0]),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_xlabel("temperature")
        axes.set_ylabel("longest copy, words")
        style.label_line_ends(axes, ends, 2.7)
    return drawn
