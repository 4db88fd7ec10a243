"""Report of a published claim: words, table, picture and page from its results."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fm.report import style
from fm.report.headline import SMOKE_TEST
from fm.report.pages import (
    RenderedFigure,
    data_uri,
    flatten_config,
    template_environment,
    write_page,
)
from fm.report.schema import capitalize_first, is_smoke_test

Row = dict[str, Any]
# What a condition came to, by `holds`.
OUTCOMES = {True: "holds", False: "does not hold", None: "undecided"}


def headline(results: Row) -> str:
    """Returns the verdict, our figure beside the paper's, and each condition, a line each."""
    claim, verdict = results["claim"], results["verdict"]
    lines = [
        f"{claim['name']}: {verdict['verdict']} ({results['profile']} profile)",
        f"claim: {claim['statement']} ({citation(claim['paper'])})",
        f"measured: {verdict['figure']}",
    ]
    lines += [
        f"{OUTCOMES[each['holds']]}: {each['text']} ({each['figures']})"
        for each in verdict["conditions"]
    ]
    lines += verdict["notes"]
    return "\n".join([SMOKE_TEST, *lines] if is_smoke_test(results["config"]) else lines)


def citation(paper: Row) -> str:
    """Returns authors, year and venue of a paper."""
    return f"{paper['authors']} {paper['year']}, {paper['venue']}"


def conditions_csv(results: Row) -> str:
    """Returns the conditions with their outcomes as CSV."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("condition", "outcome", "figures"))
    for each in results["verdict"]["conditions"]:
        table.writerow((each["text"], OUTCOMES[each["holds"]], each["figures"]))
    return out.getvalue()


def draw(results: Row, plot: Callable[[Row, Figure], None], height: float) -> bytes:
    """Returns the claim's picture of what was measured, as PNG."""
    with style.plot_style():
        figure: Figure = style.new_figure(height)
        plot(results["measured"], figure)
    return style.to_png(figure)


def write(results: Row, out_dir: Path, plot: Callable[[Row, Figure], None], height: float) -> Path:
    """Writes report.html, table.csv and plots/NAME.png; returns the path of report.html.

    Args:
      results: of a claim.
      out_dir: folder of the report.
      plot: draws what was measured on a figure, see `fm.study.claims.registry.Claim`.
      height: of the figure, in inches.

    Raises:
      UserError: `out_dir` is a file.
    """
    name = results["claim"]["name"]
    caption = capitalize_first(name.replace("_", " "))
    png = draw(results, plot, height)
    figure = RenderedFigure("claim", None, f"{name}.png", caption, caption, png)
    return write_page(out_dir, render(results, figure), [figure], conditions_csv(results))


def render(results: Row, figure: RenderedFigure) -> str:
    """Returns the report as a self-contained HTML page; all values are escaped."""
    environment = template_environment()
    environment.filters |= {
        "capitalize_first": capitalize_first,
        "citation": citation,
        "data_uri": data_uri,
    }
    return environment.get_template("claims.html.jinja").render(
        results=results,
        claim=results["claim"],
        verdict=results["verdict"],
        outcomes=OUTCOMES,
        figure=figure,
        smoke_test=SMOKE_TEST if is_smoke_test(results["config"]) else "",
        config=flatten_config(results["config"]),
        versions=flatten_config({key: results[key] for key in ("versions", "device")}),
    )
