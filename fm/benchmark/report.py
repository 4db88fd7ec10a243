"""The benchmark's page (FILE.html), its two figures, and the table for a terminal."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from fm.benchmark.suites import SUITES
from fm.benchmark.timing import quartiles
from fm.files import atomic_write
from fm.report import formats, style
from fm.report.pages import data_uri, flatten_config, template_environment
from fm.report.parsing import sanitize

_MARKERS = {"float32": "o", "bfloat16": "^"}
_LINESTYLES = {"float32": "-", "bfloat16": (0, (5, 2))}


SMOKE_TEST = "Smoke test, do not quote: sizes at --scale=quick are too small to mean anything."


def is_smoke_test(results: dict[str, Any]) -> bool:
    """Returns whether a benchmark was run at the quick scale."""
    return results["config"].get("scale") == "quick"


def write_report(results: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a benchmark's HTML report and PNG figures beside its results file, atomically."""
    results = sanitize(results)
    figures = {"roofline": roofline(results), "scaling": scaling(results)}
    pngs = {name: style.to_png(figure) for name, figure in figures.items() if figure is not None}
    page = render_html(results, pngs)
    for name, png in pngs.items():
        atomic_write(path.with_name(f"{path.stem}-{name}.png"), png)
    atomic_write(path.with_suffix(".html"), page.encode())


def render_html(results: dict[str, Any], pngs: dict[str, bytes]) -> str:
    """Returns the page as HTML; result values are escaped and no external file is loaded."""
    environment = template_environment()
    folders = (("fm.benchmark", "."), ("fm.report", "templates"))
    environment.loader = jinja2.ChoiceLoader([jinja2.PackageLoader(*each) for each in folders])
    environment.filters |= {
        "si": format_si,
        "percent": formats.percent,
        "ratio": format_ratio,
        "significance": ratio_css_class,
        "data_uri": data_uri,
        "config_value": formats.config_value,
    }
    return environment.get_template("benchmark.html.jinja").render(
        results=results,
        pngs=pngs,
        tables=list(tables_by_suite(results["rows"])),
        summary=summarize_ratios(results["rows"]),
        verdict=verdict(results["rows"]),
        smoke_test=SMOKE_TEST if is_smoke_test(results) else "",
        config=flatten_config(results["config"]),
        missing=formats.MISSING,
    )


def tables_by_suite(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields one dict per suite with its title and the benchmark rows of its report tables.

    Each has `suite`, `title`; `compared`, the rows against an available peer; `alone`, one row per
    case and implementation of ours; `several`, whether a case has several of those; `used`, the
    fields that have any value.
    """
    for suite in dict.fromkeys(row["suite"] for row in rows):
        own = [row for row in rows if row["suite"] == suite]
        alone: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in own:
            alone.setdefault((row["case"], row["dtype"], row["implementation"]), row)
        compared = [row for row in own if row["peer_implementation"] is not None]
        used = {name for row in compared for name in row if row[name] is not None}
        used |= {name for row in alone.values() for name in row if row[name] is not None} - {"note"}
        yield {
            "suite": suite,
            "title": _title(suite),
            "compared": compared,
            "alone": list(alone.values()),
            "several": len(alone) > len({(row["case"], row["dtype"]) for row in own}),
            "used": used,
        }


def _title(suite: str) -> str:
    return SUITES[suite].title if suite in SUITES else suite


def summarize_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns count, median, min and max of speed ratios by suite, dtype and compared library.

    `faster` and `slower` count the cases whose interquartile range is on one side of 1.
    """
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    shown: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if row["ratio"] is not None:
            name = (row["suite"], row["dtype"], row["peer"], row["peer_implementation"])
            groups.setdefault(name, []).append(row["ratio"])
            shown.setdefault(name, []).append(ratio_css_class(row["ratio_spread"]))
    return [
        {
            **dict(zip(("suite", "dtype", "peer", "peer_implementation"), name, strict=True)),
            "title": _title(name[0]),
            "cases": len(ratios),
            "faster": shown[name].count("better"),
            "slower": shown[name].count("worse"),
            "median": quartiles(ratios)[1],
            "min": min(ratios),
            "max": max(ratios),
        }
        for name, ratios in groups.items()
    ]


def verdict(rows: list[dict[str, Any]]) -> str:
    """Returns in how many of all comparisons this code is clearly faster and slower."""
    shown = [ratio_css_class(row["ratio_spread"]) for row in rows if row["ratio"] is not None]
    total = f"{len(shown)} comparison{'s' * (len(shown) != 1)}"
    return (
        f"Clearly faster than its peers in {shown.count('better') or 'none'} of {total}, clearly "
        f"slower in {shown.count('worse') or 'none'}."
    )


def ratio_css_class(spread: tuple[float, float] | list[float] | None) -> str:
    """Returns the CSS class of a ratio's quartiles: better, worse, unclear or unknown."""
    if spread is None:
        return "unknown"
    if spread[0] == spread[1]:
        return "unclear"  # a single round has no spread
    return "better" if spread[0] > 1 else "worse" if spread[1] < 1 else "unclear"


def format_si(value: float | None, unit: str = "") -> str:
    """Formats a number to three digits with an SI prefix: `31.4 µs`, `1.52 GFLOP/s`."""
    return formats.MISSING if value is None else EngFormatter(unit)(float(f"{value:.3g}")).strip()


def format_ratio(value: float | None) -> str:
    """Formats a ratio to three digits: `×1.52`."""
    if value is None:
        return formats.MISSING
    return f"×{value:.0f}" if value >= 100 else f"×{value:.1f}" if value >= 10 else f"×{value:.2f}"


def text_table(results: dict[str, Any]) -> str:
    """Returns all result rows as a plain-text table."""
    header = (
        *("suite", "case", "dtype", "implementation", "time", "of GEMM rate", "of read rate"),
        *("peer", "ratio"),
    )
    lines: list[tuple[str, ...]] = [header]
    for row in results["rows"]:
        peer = " ".join(filter(None, [row["peer"], row["peer_implementation"]]))
        lines.append(
            (
                row["suite"],
                row["case"],
                row["dtype"],
                row["implementation"],
                format_si(row["median_seconds"], "s"),
                formats.percent(row["gemm_utilization"]),
                # Results of an earlier version have none.
                formats.percent(row.get("read_utilization")),
                f"{peer} ({row['note']})" if row["note"] else peer,
                format_ratio(row["ratio"]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    for fit in results["scaling"]:
        error = f" ± {fit['exponent_error']:.2f}" if fit["exponent_error"] is not None else ""
        text.append(f"time grows as {fit['axis']} to the power {fit['exponent']:.2f}{error}")
    return "\n".join([*text, *([SMOKE_TEST] if is_smoke_test(results) else [])])


def roofline(results: dict[str, Any]) -> Figure | None:
    """Draws a roofline figure: FLOP/s over FLOPs per byte (Williams et al. 2009); None if empty."""
    roof = results["roofline"]
    colors = {name: suite.color for name, suite in SUITES.items() if suite.color}
    rows = {
        (row["suite"], row["case"], row["dtype"], row["implementation"]): row
        for row in results["rows"]
        if row["suite"] in colors and row["flops_per_s"] and row["min_bytes"]
    }
    if not rows or not roof:
        return None
    points = [(row["flops"] / row["min_bytes"], row["flops_per_s"], row) for row in rows.values()]
    with style.plot_style():
        figure = style.new_figure(4.2)
        axes = figure.add_subplot()
        left = min(min(x for x, _, _ in points) / 2, 1.0)
        right = max(max(x for x, _, _ in points) * 2, 1e3)
        for dtype, peak in roof["flops_per_s"].items():
            axes.plot(
                [left, peak / roof["bytes_per_s"], right],
                [left * roof["bytes_per_s"], peak, peak],
                color=style.FAINT,
                linestyle=_LINESTYLES[dtype],
                linewidth=1.4,
                label=f"{dtype}, {format_si(peak, 'FLOP/s')}",
            )
        for suite, color in colors.items():
            for dtype, marker in _MARKERS.items():
                own = [
                    (x, y) for x, y, row in points if (row["suite"], row["dtype"]) == (suite, dtype)
                ]
                if own:
                    axes.plot(
                        *zip(*own, strict=True),
                        linestyle="none",
                        marker=marker,
                        color=color,
                        markerfacecolor="white" if dtype == "bfloat16" else color,
                        label=f"{suite}, {dtype}",
                    )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_xlabel("FLOPs per byte that must move (log scale)")
        axes.set_ylabel("FLOP/s (log scale)")
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside lower center", ncols=2, fontsize=style.SMALL)
    return figure


def scaling(results: dict[str, Any]) -> Figure | None:
    """Plots step time against each varied size (e.g. seq_len) with power-law fits; None if none."""
    fits = results["scaling"]
    if not fits:
        return None
    columns, lines = 2, (len(fits) + 1) // 2
    with style.plot_style():
        figure = style.new_figure(0.4 + 2.1 * lines)
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes, fit in zip(panels, fits, strict=False):
            _scaling_panel(axes, fit)
        for axes in panels[: len(fits)]:
            _time_axis(axes)
        for axes in panels[len(fits) :]:
            axes.set_axis_off()
        figure.supylabel("time of a step (log scale)", fontsize=10, color=style.INK)
    return figure


def _scaling_panel(axes: Axes, fit: dict[str, Any]) -> None:
    values, seconds = np.asarray(fit["values"]), np.asarray(fit["seconds"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    # A least-squares line passes through the mean of the points, here that of their logarithms.
    center, level = (np.exp(np.mean(np.log(each))) for each in (values, seconds))
    line = level * (values / center) ** fit["exponent"]
    axes.plot(values, line, color=style.FAINT, linewidth=1.2)
    axes.plot(values, seconds, linestyle="none", marker="o", color="#0072B2")
    axes.set_title(f"{fit['axis']}: power {fit['exponent']:.2f}")
    axes.xaxis.set_major_locator(FixedLocator(fit["values"]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(labelsize=style.SMALL)


def _time_axis(axes: Axes) -> None:
    """Ticks at powers of ten, or between them where the panels span less than two."""
    low, high = axes.get_ylim()
    decades = [10.0**power for power in range(-7, 4)]
    ticks = [each for each in decades if low <= each <= high]
    if len(ticks) < 2:
        ticks = [each * step for each in decades for step in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter("s"))
